"""No dead flag: every field that a config of this library declares is read by code that acts on it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_distill.trainers.embedding_config import TERMS

ROOT = Path(__file__).parents[2]
CONFIGS = ("DistillArguments", "EmbeddingDistillConfig", "MixerAlignmentConfig", "EmbeddingRecipe", "TokenizerRecipe")
# How code calls what it holds a config in. Any other `x.fresh` or `x.only` may be a field of something else.
HOLDERS = {"args", "config", "recipe"}
# Read as getattr(self, f"{term}_weight") for the terms of TERMS, see EmbeddingDistillConfig.weights_at.
BY_TERM = {f"{term}_weight" for term in TERMS}


def only_checks(statement: ast.stmt) -> bool:
    """Whether a statement of a class declares a field, or is a method that only prepares and refuses values."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name == "__post_init__" or statement.name.startswith("_check")
    return isinstance(statement, ast.AnnAssign)


def reads(node: ast.AST, holders: set[str]) -> Iterator[str]:
    """Yield the attributes that are read, not set, from any of the named holders, `args.x` and `self.args.x` alike."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            holder = getattr(child.value, "id", getattr(child.value, "attr", None))
            if holder in holders:
                yield child.attr


def fields_and_reads(source: str) -> tuple[dict[str, list[str]], set[str]]:
    """Return the fields that each config in a source declares, and the names that the rest of the source reads."""
    declared: dict[str, list[str]] = {}
    read: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in CONFIGS:
            declared[node.name] = [s.target.id for s in node.body if isinstance(s, ast.AnnAssign)]
            node.body = [s for s in node.body if not only_checks(s)]
            read |= set(reads(node, {"self"}))
    return declared, read | set(reads(tree, HOLDERS))


@cache
def whole_tree() -> tuple[dict[str, list[str]], set[str]]:
    """Return the fields of all configs, and all names that library and recipes read from one."""
    declared: dict[str, list[str]] = {}
    read: set[str] = set()
    for file in [*(ROOT / "hf_distill").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        found, names = fields_and_reads(file.read_text(encoding="utf-8"))
        declared |= found
        read |= names
    return declared, read


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_read(config: str) -> None:
    declared, read = whole_tree()
    inherited = set(TrainingArguments.__dataclass_fields__)  # another default for a field that transformers reads
    own = set(declared[config]) - inherited
    assert own
    assert own - read - BY_TERM == set()


def test_a_dead_field_is_found() -> None:
    source = """
class EmbeddingRecipe:
    used: int
    shown: int
    dead: int

    def __post_init__(self):
        self.dead = abs(self.dead)

    def _check_sizes(self):
        return self.dead > 0

    @property
    def twice(self):
        return 2 * self.used

def show(recipe, other):
    other.dead, recipe.dead = other.dead, 1
    return recipe.shown
"""
    declared, read = fields_and_reads(source)
    assert set(declared["EmbeddingRecipe"]) - read == {"dead"}
