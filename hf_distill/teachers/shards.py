"""Shards: the files of a teacher cache, safetensors that are written once, atomically, and read by memory map.

A shard is named ``<key>-<sha>.safetensors``: the key is the hash of the teacher's fingerprint and of the texts in it,
so that a resumed or extended job finds what is already there; the second part is the start of the SHA-256 of the file,
so that a damaged one is noticed and made again.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from transformers.utils import logging

from hf_distill.teachers.files import replace_file, sha256_of_file
from hf_distill.teachers.manifest import ShardInfo

logger = logging.get_logger(__name__)

_NUMPY_TYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8")}
_KEY_CHARS = 32
_SHA_CHARS = 16


def shard_key(fingerprint: str, hashes: np.ndarray, input_ids: list[np.ndarray] | None = None) -> str:
    """Return the name that a shard of these texts has under this teacher.

    Args:
        fingerprint: The teacher's fingerprint.
        hashes: Text hashes of the rows, ``uint64 (N,)``.
        input_ids: The rows' token ids, where they were given from outside: then they count too.
    """
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(hashes.astype("<u8").tobytes())
    if input_ids is not None:
        digest.update(np.fromiter(map(len, input_ids), dtype="<i8").tobytes())
        digest.update(np.concatenate(input_ids).astype("<i8").tobytes())
    return digest.hexdigest()[:_KEY_CHARS]


def find_shard(folder: Path, key: str) -> ShardInfo | None:
    """Return the finished shard with this key if it is there and sound; a damaged one is deleted with a warning."""
    for path in sorted(folder.glob(f"{key}-*.safetensors")):
        sha256 = sha256_of_file(path)
        if sha256.startswith(path.stem.rsplit("-", 1)[-1]):
            arrays = open_shard(path)
            tokens = int(arrays["token_count"][0])
            return ShardInfo(file=path.name, rows=len(arrays["text_hash"]), tokens=tokens, sha256=sha256)
        logger.warning(f"The teacher shard {path} is damaged (its content does not match its name); making it again.")
        path.unlink()
    return None


def save_shard(folder: Path, key: str, arrays: dict[str, np.ndarray]) -> ShardInfo:
    """Write one shard, atomically.

    Args:
        folder: Where the shards lie.
        key: The shard's key.
        arrays: ``text_hash (N,)``, ``token_count (1,)``, ``embedding (N, D)`` and, with hidden layers,
            ``offsets (N+1,)`` and ``hidden_<i> (tokens, D)``.

    Returns:
        The shard's entry in the manifest.

    Raises:
        OSError: If it cannot be written; nothing half-written stays.
    """
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{key}-{sha256[:_SHA_CHARS]}.safetensors"
    replace_file(path, data)
    tokens = int(arrays["token_count"][0])
    return ShardInfo(file=path.name, rows=len(arrays["text_hash"]), tokens=tokens, sha256=sha256)


def open_shard(path: Path) -> dict[str, np.ndarray]:
    """Map a safetensors file into memory and return its arrays as views: nothing is read until rows are.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is cut short or its header is damaged.
    """
    remedy = "Run the job (recipes/cache_teacher.py) again: only what is missing or damaged is made anew."
    if not path.is_file():
        raise FileNotFoundError(f"The teacher cache lacks {path}. {remedy}")
    try:
        mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        (header_bytes,) = struct.unpack("<Q", mapped[:8].tobytes())
        start = 8 + header_bytes
        header = json.loads(mapped[8:start].tobytes())
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            arrays[name] = (
                mapped[start + begin : start + end].view(_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
            )
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"The teacher shard {path} is damaged ({error}). {remedy}") from error
    return arrays
