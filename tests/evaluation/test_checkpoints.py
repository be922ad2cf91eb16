"""Checkpoints: found, compared, loaded, and swapped in as the model without ever losing the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_distill.evaluation import checkpoints as module
from hf_distill.evaluation.checkpoints import (
    best_logged,
    choose_checkpoints,
    find_checkpoints,
    load_checkpoint,
    load_run_teacher,
    publish_checkpoint,
    read_log_history,
    require_same_config,
)


@pytest.fixture
def run(tmp_path, tiny_sentence_transformer):
    for step in (20, 100, 3):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(tiny_sentence_transformer, folder)
        log = [{"step": s, "loss": 1 / s} for s in (3, 20, 100) if s <= step]
        state = {"global_step": step, "best_global_step": 20, "log_history": log}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        for name in ("optimizer.pt", "training_args.bin", "distill_heads.safetensors", "distill_state.json"):
            (folder / name).write_bytes(b"x")
    return tmp_path / "run"


def test_find_and_choose(run):
    (run / "checkpoint-best").mkdir()
    (run / "checkpoint-7").mkdir()  # killed while it was written
    steps = lambda which: [checkpoint.step for checkpoint in choose_checkpoints(run, which)]  # noqa: E731
    assert steps("all") == [3, 20, 100]
    assert steps("final") == [100]
    assert steps("best") == [20]
    assert steps("100, 3") == [3, 100]
    with pytest.raises(ValueError, match="no checkpoint '3,4' .* steps among 3, 20, 100"):
        choose_checkpoints(run, "3,4")


def test_no_run_and_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run folder"):
        find_checkpoints(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        find_checkpoints(tmp_path)


def test_another_config_is_named(run):
    found = find_checkpoints(run)
    require_same_config(found)
    path = run / "checkpoint-20" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "0", "_name_or_path": "elsewhere"}))
    require_same_config(found)  # not a matter of the student
    path.write_text(json.dumps({**config, "hidden_size": 999}))
    with pytest.raises(
        ValueError, match=r"checkpoint-20 is a checkpoint of another config .*hidden_size' \(999 against 32"
    ):
        require_same_config(found)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        require_same_config(found)


def test_best_that_is_gone(run):
    shutil.rmtree(run / "checkpoint-20")
    with pytest.raises(ValueError, match="deleted its best checkpoint, step 20.*--checkpoints all"):
        best_logged(run, find_checkpoints(run))


def test_log_is_the_newest(run):
    assert [entry["step"] for entry in read_log_history(run)] == [3, 20, 100]
    assert read_log_history(run / "model") == []


def test_publish_takes_the_model_and_leaves_the_rest(run, tiny_model, tiny_texts):
    target = publish_checkpoint(find_checkpoints(run)[1], run / "model")
    files = {path.name for path in target.rglob("*")}
    assert {"model.safetensors", "modules.json", "config.json"} <= files
    assert not {name for name in files if name.endswith((".pt", ".bin")) or name.startswith(("distill_", "trainer_"))}
    vectors = load_checkpoint(target, device="cpu").encode(tiny_texts[:3])
    np.testing.assert_allclose(vectors, tiny_model.encode(tiny_texts[:3]), atol=1e-6)
    (target / "old").touch()
    publish_checkpoint(find_checkpoints(run)[0], target)
    assert not (target / "old").exists()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("broken", ["copytree", "replace"])
def test_a_full_disk_leaves_the_old_model(run, monkeypatch, broken):
    target = publish_checkpoint(find_checkpoints(run)[0], run / "model")
    (target / "old").touch()
    real = module.os.replace

    def full(source, destination, *args, **kwargs):
        if broken == "copytree" or str(source).endswith("new-" + str(module.os.getpid())):
            raise OSError(28, "No space left on device")
        return real(source, destination)

    monkeypatch.setattr(module.shutil if broken == "copytree" else module.os, broken, full)
    with pytest.raises(OSError, match="step 20 could not be written .*No space left"):
        publish_checkpoint(find_checkpoints(run)[1], target)
    monkeypatch.undo()
    assert (target / "old").exists()
    load_checkpoint(target, device="cpu")
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_damaged_weights(run):
    (run / "checkpoint-3" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="checkpoint-3 cannot be loaded"):
        load_checkpoint(run / "checkpoint-3")


def test_the_teacher_of_a_run_or_of_its_experiment(run, tiny_sentence_transformer):
    assert load_run_teacher(run) is None
    teacher = str(tiny_sentence_transformer)
    (run.parent / "recipe.json").write_text(json.dumps({"teacher": teacher}))
    (run / "recipe.json").write_text(json.dumps({"name": "mft-e5", "tokenizer": "mft"}))
    shown, model = load_run_teacher(run)
    assert shown == "/".join(Path(teacher).parts[-2:])
    assert model.get_embedding_dimension() == 32
    asked = {"teacher": teacher, "prompt": "the mill: ", "teacher_revision": None}
    (run.parent / "recipe.json").write_text(json.dumps(asked))
    prompted = load_run_teacher(run)[1].encode(["a river"])  # as it taught
    np.testing.assert_allclose(prompted, model.encode(["the mill: a river"]), atol=1e-6)
    np.testing.assert_allclose(load_run_teacher(run, teacher)[1].encode(["a river"]), model.encode(["a river"]))
    (run.parent / "recipe.json").write_text(json.dumps(asked | {"teacher_dim": 16}))
    assert load_run_teacher(run) is None, "the projection is the recipe's"
    (run / "recipe.json").write_text(json.dumps({"teacher": "nobody/nothing"}))  # the run's own comes first
    with pytest.raises((OSError, ValueError), match="nobody/nothing"):
        load_run_teacher(run)
