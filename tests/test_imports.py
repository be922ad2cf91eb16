"""Tests of the public API: light, complete, the same for people, type checkers and `dir`."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hf_distill

PUBLIC = {
    "DistillObjective",
    "EmbeddingDistillConfig",
    "EmbeddingDistillTrainer",
    "HfdDeltaNetConfig",
    "HfdDeltaNetModel",
    "LiveTeacher",
    "MixerAlignmentTrainer",
    "TeacherCache",
    "TeacherEnsemble",
    "__version__",
    "write_cache",
}


def test_public_api_snapshot():
    assert set(hf_distill.__all__) == PUBLIC
    assert set(dir(hf_distill)) >= PUBLIC
    assert hf_distill.__version__ == "0.1.0"


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_can_be_imported(name):
    value = getattr(hf_distill, name)
    assert value.__name__ == name
    assert value.__doc__


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="TeacherCache"):
        hf_distill.TeachersCache  # noqa: B018


def test_type_checkers_see_the_same_names():
    """The TYPE_CHECKING block names every lazy name, from the module it really comes from."""
    tree = ast.parse(Path(hf_distill.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == hf_distill._MODULE_OF


def test_import_takes_less_than_two_seconds_and_loads_nothing_heavy():
    code = (
        "import sys, hf_distill; heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'mteb', 'trl'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - begin)
        assert result.stdout.strip() == "[]"
    assert min(times) < 2.0


@pytest.mark.parametrize("part", ["data", "evaluation", "losses", "models", "models.deltanet", "teachers", "trainers"])
def test_every_part_imports(part):
    assert importlib.import_module(f"hf_distill.{part}").__doc__
