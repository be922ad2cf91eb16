"""Hashes that identify what a teacher saw and what it is: texts, weights, tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def text_hash(text: str) -> bytes:
    """Return the 8-byte BLAKE2b hash under which a cache knows a text.

    Two different texts of a million collide with a probability of about 3e-8.
    """
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def hash_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Check and hash every text, before any work starts.

    Args:
        texts: The rows to embed; every row must be a string with something else than white space.

    Returns:
        The hashes, ``uint64 (N,)``, and the lengths in characters, ``int64 (N,)``.

    Raises:
        ValueError: If there are no rows, or a row is not a string or is blank; the error names the row.
    """
    if len(texts) == 0:
        raise ValueError("There are no texts to embed: the source is empty. Check its name, filter and limit.")
    hashes = bytearray()
    lengths = np.empty(len(texts), dtype=np.int64)
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"Row {row} has no text: {text!r}. Every row needs a non-blank string; drop or fix the row, "
                "for instance with `dataset.filter(lambda row: bool((row['text'] or '').strip()))`."
            )
        hashes += text_hash(text)
        lengths[row] = len(text)
    return np.frombuffer(bytes(hashes), dtype="<u8"), lengths


def sha256_of_weights(model: torch.nn.Module) -> str:
    """Return the SHA-256 over all parameters of a module, in order of registration.

    Only dtype, shape and bytes count, not the names: those differ between versions of sentence-transformers.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        data = parameter.detach().cpu().contiguous()
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_tokenizer(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's definition.

    Truncation and padding are left out: they are state of the last call, not part of the definition.
    A Python tokenizer is known by its class, its vocabulary and its special tokens.
    """
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        tokenizer = tokenizer.backend_tokenizer
    if isinstance(tokenizer, Tokenizer):
        definition = json.loads(tokenizer.to_str())
        definition.update(truncation=None, padding=None)
    else:
        definition = {
            "class": type(tokenizer).__name__,
            "vocabulary": sorted(tokenizer.get_vocab().items()),
            "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        }
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
