"""Model folders obey the rules of transformers' remote-code scanner, so that every saved student loads anywhere.

The scanner copies flat sibling imports only and checks every absolute import it finds, also in functions and `if`s.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "hf_distill" / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/__init__.py"))
FILES = sorted(file for folder in FOLDERS for file in folder.glob("*.py") if file.name != "__init__.py")
ALLOWED = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
OPTIONAL = {"fla", "turkish_tokenizer"}  # only inside `try`


def violations(source: str, siblings: set[str]) -> list[str]:
    """What the scanner of transformers would trip over, as `line: reason`."""
    tree, found = ast.parse(source), []
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    top = {id(node) for node in tree.body} | guarded
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found.append(f"{node.lineno}: imports under TYPE_CHECKING are imported for real")
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if id(node) not in top:
            found.append(f"{node.lineno}: import inside a function, class or `if`")
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or node.module is None or "." in node.module:
                found.append(f"{node.lineno}: only flat sibling imports `from .sibling import name` are copied")
            elif node.module not in siblings:
                found.append(f"{node.lineno}: no file `{node.module}.py` beside this one")
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for package in (name.split(".")[0] for name in names):
            if package not in ALLOWED and not (package in OPTIONAL and id(node) in guarded):
                found.append(f"{node.lineno}: `{package}` is not available where the student is loaded")
    return found


def test_there_are_model_folders() -> None:
    assert MODELS / "deltanet" in FOLDERS
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_imports_of_model_files(file: Path) -> None:
    assert violations(file.read_text(), {sibling.stem for sibling in file.parent.glob("*.py")}) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_are_flat_and_file_names_safe(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"] == []
    assert all(file.stem.isidentifier() for file in folder.glob("*.py"))
    kinds = {file.name.partition("_")[0] for file in folder.glob("*.py")}
    assert {"configuration", "modeling"} <= kinds or "tokenization" in kinds


def test_file_names_are_unique_over_all_models() -> None:
    names = [file.name for file in FILES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    "source",
    [
        "from hf_distill.losses import cosine_loss",
        "from ..common import x",
        "from .ops.kernel import x",
        "from . import ops",
        "from .missing import x",
        "import einops",
        "import fla",
        "def f():\n    import math",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ],
)
def test_the_check_itself_finds_violations(source: str) -> None:
    assert violations(source, {"ops"})


@pytest.mark.parametrize(
    "source",
    [
        "from .ops import (\n    a,\n    b,\n)",
        "try:\n    from fla.ops import x\nexcept ImportError:\n    x = None",
        "import torch",
    ],
)
def test_the_check_itself_lets_good_imports_pass(source: str) -> None:
    assert violations(source, {"ops"}) == []
