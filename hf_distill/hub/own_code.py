"""The code that travels in a student's folder: whose it is, and what must be installed before it runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Packages besides transformers that a file of ours needs.
_PACKAGES = {"tokenization_mft.py": "turkish-tokenizer==0.2.26"}


@dataclass(frozen=True)
class OwnCode:
    """Code in a student's folder.

    Args:
        files (`list[str]`): the Python files; empty where transformers has all that is needed.
        model (`bool`): whether `AutoModel` needs them.
        tokenizer (`list[str]`): those that `AutoTokenizer` begins with.
        packages (`list[str]`): what they need besides torch and transformers, as pip wants it.
    """

    files: list[str]
    model: bool
    tokenizer: list[str]
    packages: list[str]

    @property
    def install(self) -> str:
        """Return the command that installs the packages; empty without any."""
        return f"pip install --no-deps {' '.join(self.packages)}" if self.packages else ""


def own_code(folder: str | Path) -> OwnCode:
    """Find out what code a student brings.

    Args:
        folder (`str` or `Path`): the model's folder.

    Returns:
        `OwnCode`: its files and what they are for.
    """
    folder = Path(folder)
    files = sorted(path.name for path in folder.glob("*.py"))
    packages = [package for name, package in _PACKAGES.items() if name in files]
    classes = _auto_map(folder / "tokenizer_config.json").get("AutoTokenizer") or []  # the slow one and the fast one
    classes = [classes] if isinstance(classes, str) else classes
    modules = dict.fromkeys(f"{name.rpartition('.')[0]}.py" for name in classes if name)
    return OwnCode(files, bool(_auto_map(folder / "config.json")), list(modules), packages)


def _auto_map(path: Path) -> dict[str, Any]:
    """Read which Auto classes of a configuration are the folder's own."""
    return json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {} if path.is_file() else {}


__all__ = ["OwnCode", "own_code"]
