"""Files that are either there in full or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

_READ_BYTES = 1 << 24


def sha256_of_file(path: str | Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks of 16 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: into a temporary file, flushed to the disk, then renamed.

    Raises:
        OSError: If it cannot be written; nothing half-written stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_space(folder: Path, needed: float, what: str, remedy: str) -> None:
    """Refuse work that the disk has no room for.

    Args:
        folder: Where it is written to; it is there.
        needed: Bytes that are still to be written, at least.
        what: Who needs them, the subject of the message.
        remedy: Sentence that says what to do.

    Raises:
        OSError: If fewer bytes are free; names need, free space and folder.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs at least {needed / 1e6:,.0f} MB more, but only {free / 1e6:,.0f} MB are free at {folder}. "
            f"{remedy}",
        )


def is_disk_full(error: OSError) -> bool:
    """Say whether an error means that the disk, or the user's quota, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
