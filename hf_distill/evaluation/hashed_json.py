"""JSON files that carry a hash of their own content: a figure that was changed by hand is refused when it is read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hf_distill.evaluation.score_cache import write_atomically


def write_hashed(path: Path, values: dict[str, Any], indent: int | None = 2) -> None:
    """Write values as JSON, atomically, with a hash of their content under `sha256`.

    Args:
        path (`Path`): the file.
        values (`dict`): JSON values with a `schema_version`; no NaN.
        indent (`int`, *optional*, defaults to 2): spaces a level; None for long lists, all in one line.
    """
    values = json.loads(json.dumps(values, allow_nan=False))
    values["sha256"] = _digest(values)
    write_atomically(path, json.dumps(values, indent=indent) + "\n")


def read_hashed(path: Path, version: int, again: str) -> dict[str, Any]:
    """Read such a file back.

    Args:
        path (`Path`): the file.
        version (`int`): the schema version that the caller reads.
        again (`str`): a sentence that says how the file is made anew.

    Returns:
        `dict`: the values, without the hash.

    Raises:
        ValueError: not JSON, another version of the schema, or edited since it was written.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}). {again}") from error
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != version:
        raise ValueError(f"{path} has schema version {found}, this hf_distill reads {version}. {again}")
    stored = values.pop("sha256", None)
    if stored != _digest(values):
        raise ValueError(
            f"{path} was edited by hand: its content has the sha256 {_digest(values)[:12]}…, but {str(stored)[:12]}… "
            f"was written with it. Restore the file. If you cannot: {again[0].lower()}{again[1:]}"
        )
    return values


def _digest(values: dict[str, Any]) -> str:
    """Hash the content of a file, whatever the order and the spacing of its JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


__all__ = ["read_hashed", "write_hashed"]
