"""recipes/evaluate_student.py on a run of tiny checkpoints: it chooses on validation, reads test once, reports, refuses."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "evaluate_student.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("evaluate_student", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def run(tmp_path, tiny_sentence_transformer):
    """Three checkpoints, ever noisier copies of the teacher; the trainer held the last for the best."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "my-run"
    for step, noise in ((10, 0.0), (20, 0.02), (30, 0.5)):
        model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter += noise * torch.randn_like(parameter)
        checkpoint = folder / f"checkpoint-{step}"
        model.save_pretrained(str(checkpoint))
        log = [{"step": s, "loss": 1 / s, "eval_stsb_spearman": s / 100} for s in (10, 20, 30) if s <= step]
        state = {"global_step": step, "best_global_step": 30, "log_history": log}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (folder / "recipe.json").write_text(json.dumps({"teacher": tiny_sentence_transformer}))
    return folder


@pytest.fixture
def splits_read(monkeypatch, tiny_texts):
    """STS-B and held-out text for a test: pairs whose scores are the teacher's own; notes which splits were read."""
    from datasets import Dataset

    from hf_distill.evaluation import suite

    read = []

    def load_stsb(split):
        read.append(split)
        scores = [
            len(set(a.lower().split()) & set(b.lower().split()))
            for a, b in zip(tiny_texts[:30], tiny_texts[30:60], strict=True)
        ]
        return Dataset.from_dict({"sentence1": tiny_texts[:30], "sentence2": tiny_texts[30:60], "score": scores})

    def heldout_texts(tokenizer, split, *args, **kwargs):
        read.append(split)
        return tiny_texts

    monkeypatch.setattr(suite, "load_stsb", load_stsb)
    monkeypatch.setattr(suite, "heldout_texts", heldout_texts)
    return read


def test_choose_on_validation_without_reading_test(recipe, run, splits_read):
    results = recipe.main(
        recipe.EvaluateConfig(str(run), tasks="stsb,fidelity,int8", metric="fidelity_cosine", speed=False)
    )
    assert set(splits_read) == {"validation"}
    assert results.selected_step == 10  # the untouched copy of the teacher, whatever the trainer logged
    assert [score.step for score in results.checkpoints] == [10, 20, 30]
    assert results.row("student").metrics["validation"]["fidelity_cosine"] == pytest.approx(1, abs=1e-3)
    assert list(results.row("student").metrics) == ["validation"]
    assert results.row("teacher").size.parameters == results.row("student").size.parameters
    files = {path.name for path in run.iterdir()}
    assert {"model", "results.json", "curves.png", "README.md", "report.html", "overview.png"} <= files
    assert (run / "model" / "model.safetensors").read_bytes() == (
        run / "checkpoint-10" / "model.safetensors"
    ).read_bytes()
    assert not any(
        str(run.parent) in (run / name).read_text() for name in ("results.json", "README.md", "report.html")
    )


def test_turkish_tasks_from_a_folder(recipe, run, monkeypatch, tiny_texts):
    """Without the folder the Hub is asked; with it, STSb-TR chooses the checkpoint and is scored."""
    from datasets import Dataset

    from hf_distill.data import stsb_tr

    asked = []

    def load_stsb_tr(split, folder=None):
        asked.append((split, folder))
        rows = {"sentence1": tiny_texts[:30], "sentence2": tiny_texts[30:60], "score": [i % 6 for i in range(30)]}
        return Dataset.from_dict(rows)

    monkeypatch.setattr(stsb_tr, "load_stsb_tr", load_stsb_tr)
    config = recipe.EvaluateConfig(
        str(run), tasks="stsb_tr", metric="stsb_tr_pearson", speed=False, stsb_tr_folder="f"
    )
    results = recipe.main(config)
    assert set(asked) == {("validation", "f")}
    assert results.selected_by == "validation stsb_tr_pearson"
    chosen = max(results.checkpoints, key=lambda score: score.metrics["stsb_tr_pearson"])
    assert results.selected_step == chosen.step
    for role in ("teacher", "student"):
        assert set(results.row(role).metrics["validation"]) == {"stsb_tr_pearson", "stsb_tr_spearman"}


def test_test_split_once_for_the_chosen_checkpoint(recipe, run, splits_read, monkeypatch):
    from hf_distill.evaluation import suite
    from hf_distill.evaluation.results import ModelRow, Results
    from hf_distill.evaluation.speed import ModelSpeed

    scored = []
    original = suite.evaluate_model
    monkeypatch.setattr(
        suite,
        "evaluate_model",
        lambda model, tasks, split, *args, **more: (
            scored.append(split) or original(model, tasks, split, *args, **more)
        ),
    )
    earlier = ModelSpeed(9.0, 90.0, 1.0, 2.0, "another day", "float32")
    Results("my-run", [ModelRow("untrained", "u", speed=earlier)]).write(run)
    results = recipe.main(recipe.EvaluateConfig(str(run), checkpoints="10,30", tasks="stsb", test=True))
    assert results.row("untrained").speed is None  # it did not take turns with the others
    assert scored.count("test") == 2  # teacher and student, not the other checkpoint
    assert scored.index("test") > 2  # after the choice
    assert results.row("student").speed.texts_per_second > 0
    again = recipe.main(
        recipe.EvaluateConfig(str(run), checkpoints=str(results.selected_step), tasks="stsb", speed=False)
    )
    assert again.row("student").metrics["test"] == results.row("student").metrics["test"]  # of the same weights
    assert again.row("student").speed == results.row("student").speed
    other = {10: 30, 30: 10}[results.selected_step]
    recipe.main(recipe.EvaluateConfig(str(run), checkpoints=str(other), tasks="stsb", speed=False))
    assert "test" not in Results.read(run).row("student").metrics  # no score of other weights


def test_a_second_call_computes_nothing_again(recipe, run, splits_read, monkeypatch):
    from hf_distill.evaluation import suite

    config = recipe.EvaluateConfig(str(run), tasks="stsb,fidelity,int8", test=True, speed=False)
    first = recipe.main(config)
    assert (run.parent / "scores").is_dir()  # beside the run: its other seeds have the same teacher
    monkeypatch.setattr(suite, "_measure", lambda *args: pytest.fail("computed again"))
    assert recipe.main(config).rows == first.rows


def test_best_and_final(recipe, run, splits_read):
    for which in ("best", "final"):
        results = recipe.main(recipe.EvaluateConfig(str(run), checkpoints=which, tasks="stsb", speed=False))
        assert results.selected_step == 30
        assert len(results.checkpoints) == 1


def spoil(run, what):
    if what == "config":
        path = run / "checkpoint-10" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 7}))
    elif what == "teacher":
        (run / "recipe.json").unlink()
    elif what == "checkpoints":
        for path in run.glob("checkpoint-*"):
            shutil.rmtree(path)
    elif what == "run":
        shutil.rmtree(run)
    elif what == "results":
        (run / "results.json").write_text('{"schema_version": 2, "run": "x", "rows": [], "sha256": "0"}')


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("run", {}, "There is no run folder"),
        ("checkpoints", {}, "holds no complete checkpoint"),
        ("config", {}, "checkpoint of another config .*num_hidden_layers"),
        ("teacher", {}, "needs --teacher"),
        ("results", {}, "edited by hand"),
        ("", {"tasks": "stsb,arena"}, "no task 'arena': choose among stsb"),
        ("", {"tasks": "stsb,Banking77Classification"}, "has no validation split.*give --test"),
        ("", {"tasks": "Banking77Classification", "test": True}, "mteb/banking77 on the Hub.*data are local: stsb"),
        ("", {"checkpoints": "11"}, "steps among 10, 20, 30"),
        ("", {"metric": "accuracy"}, "No task has the metric"),
        ("", {"metric": "stsb_kendall", "tasks": "stsb"}, "no metric 'stsb_kendall'.*stsb_spearman"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_lost(recipe, run, splits_read, what, options, message):
    (run / "model").mkdir()
    (run / "model" / "old").touch()
    spoil(run, what)
    with pytest.raises((ValueError, OSError), match=message):
        recipe.main(recipe.EvaluateConfig(str(run), **options))
    assert what == "run" or (run / "model" / "old").exists()
    assert "test" not in splits_read


def test_the_test_split_cannot_choose(recipe):
    with pytest.raises(ValueError, match="must not be chosen on the test split"):
        recipe.EvaluateConfig("x", metric="test_stsb_spearman")


def test_command_line_prints_one_line_of_error(tmp_path):
    command = [sys.executable, str(RECIPE), "--run", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=RECIPE.parents[1], env=_environment())
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: There is no run folder")
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_in_one_line(monkeypatch, capsys):
    from hf_distill.trainers import recipe_arguments

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe_arguments, "parse_arguments", interrupted)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on: what has been scored is kept.\n"


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(RECIPE.parents[1])}
