"""Text for training and evaluation: named sources and mixes, STS-B, overlap removal, collation and batching.

Nothing heavy is imported before a name is used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "DistillCollator": "collators",
    "LengthBucketBatchSampler": "sampling",
    "OverlapReport": "overlap",
    "Passage": "prose",
    "SurgeryReport": "tokenizers",
    "Synset": "wordnet",
    "TokenMap": "tokenizers",
    "aligned_glosses": "turkish",
    "bucket_name": "length",
    "encode_corpus": "encoded_corpus",
    "installed_docstrings": "prose",
    "length_profile": "length",
    "load_encoded_corpus": "encoded_corpus",
    "load_mix": "sources",
    "load_source": "sources",
    "load_stsb": "stsb",
    "load_stsb_tr": "stsb_tr",
    "load_tokenizer": "encoded_corpus",
    "load_wordnet": "wordnet",
    "prune_model": "model_pruning",
    "prune_vocabulary": "pruning",
    "remove_overlap": "overlap",
    "source_names": "sources",
    "stdlib_passages": "prose",
    "swap_tokenizer": "tokenizers",
    "token_map": "tokenizers",
    "train_bpe": "bpe",
    "transplant_embeddings": "tokenizers",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
