"""The libraries below are used as they were installed: no file of theirs is changed, and no method is replaced."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from importlib import metadata

import pytest

# Imports all of the library, trains a student on ids, and looks for code of ours among the names of the others.
CODE = """
import importlib, inspect, pkgutil, sys, types
from pathlib import Path
import hf_distill

for found in pkgutil.walk_packages(hf_distill.__path__, "hf_distill."):
    importlib.import_module(found.name)

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from hf_distill import EmbeddingDistillConfig, EmbeddingDistillTrainer

OURS = str(Path(hf_distill.__file__).parent)
STOCK = ("sentence_transformers", "transformers", "accelerate", "torch")

def is_ours(value):
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    return isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(OURS)

def patched():
    found = []
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in STOCK:
            found += [f"{name}.{key}" for key, value in list(vars(module).items()) if is_ours(value)]
            classes = {key: value for key, value in list(vars(module).items()) if inspect.isclass(value)}
            found += [f"{name}.{c}.{key}" for c in classes for key, value in list(vars(classes[c]).items()) if is_ours(value)]
    return found

student = SentenceTransformer(sys.argv[1], device="cpu")
texts = ["a small river", "two children with a red ball", "the train", "a long letter"]
ids = student.tokenizer(texts)["input_ids"]
data = Dataset.from_dict({"text": texts, "own_input_ids": ids, "v": student.encode(texts).tolist()})
args = EmbeddingDistillConfig(
    sys.argv[2], ids_column="own_input_ids", teacher_column="v", cosine_weight=1.0, hidden_weight=0.0, max_steps=2,
    warmup_phase_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
)
trainer = EmbeddingDistillTrainer(student, args, data)
trainer.train()
assert trainer.state.global_step == 3
student.encode(texts)

assert sum(name.split(".")[0] in STOCK for name in sys.modules) > 500
assert patched() == [], patched()
for module in student.modules():
    own = [key for key, value in vars(module).items() if callable(value) and hasattr(type(module), key)]
    assert own == [], (type(module), own)
SentenceTransformer.encode = EmbeddingDistillTrainer.compute_loss  # the search does find something
assert "sentence_transformers.SentenceTransformer.encode" in patched()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_patched_in_memory(tiny_sentence_transformer: str, tmp_path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, tiny_sentence_transformer, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("package", ["sentence-transformers", "transformers"])
def test_no_installed_file_is_changed(package: str) -> None:
    """Every file has the hash that its wheel gave it."""
    files = [file for file in metadata.files(package) or [] if file.hash is not None and file.suffix == ".py"]
    assert len(files) > 50
    changed = []
    for file in files:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    assert changed == []
