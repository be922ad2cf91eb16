"""Training state without pickles: what goes in comes out, bit for bit; what cannot be stored is an error."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_distill.trainers.state_files import restore_state, write_state


def checkpoint(folder: Path, step: int = 4, best: int = 2) -> Path:
    """A checkpoint's training state as the trainer writes it."""
    folder.mkdir(parents=True)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4).bfloat16())]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3**step)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(schedule.state_dict(), folder / "scheduler.pt")
    generators = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    torch.save(generators, folder / "rng_state.pth")
    state = {"global_step": step, "best_global_step": best, "best_metric": 0.8}
    state["best_model_checkpoint"] = f"{folder.parent}/checkpoint-{best}"
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def same(a, b) -> bool:
    """Equal values of equal types, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_state_comes_back_as_it_was(tmp_path):
    source, target = checkpoint(tmp_path / "run" / "checkpoint-4"), tmp_path / "hub"
    target.mkdir()
    write_state(source, target)
    assert {path.suffix for path in target.iterdir()} == {".json", ".safetensors"}
    assert str(tmp_path) not in "".join(path.read_text() for path in target.glob("*.json"))
    restore_state(target)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        before, after = (torch.load(folder / name, weights_only=False) for folder in (source, target))
        assert same(before, after), name
    assert {path.name for path in target.glob(".*")} == set()


def test_the_best_checkpoint_is_found_where_it_is_now(tmp_path):
    source = checkpoint(tmp_path / "run" / "checkpoint-4")

    def restored(name: str, *beside: str) -> dict:
        folder = tmp_path / f"download{len(list(tmp_path.iterdir()))}"
        for other in (name, *beside):
            (folder / other).mkdir(parents=True)
        write_state(source, folder / name)
        restore_state(folder / name)
        return json.loads((folder / name / "trainer_state.json").read_text())

    state = restored("checkpoint-4", "checkpoint-2")
    assert Path(state["best_model_checkpoint"]).is_dir()
    assert state["best_metric"] == 0.8
    state = restored("last-checkpoint")
    assert state["best_model_checkpoint"] is state["best_metric"] is state["best_global_step"] is None
    source = checkpoint(tmp_path / "other" / "checkpoint-2", step=2)
    assert restored("last-checkpoint")["best_model_checkpoint"].endswith("last-checkpoint")


def test_an_ordinary_checkpoint_is_left_alone(tmp_path):
    source = checkpoint(tmp_path / "run" / "checkpoint-4")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    restore_state(source)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_what_cannot_be_stored_is_an_error(tmp_path):
    source = checkpoint(tmp_path / "run" / "checkpoint-4")
    torch.save({"x": torch.float32}, source / "scheduler.pt")
    with pytest.raises(ValueError, match=r"scheduler.pt holds a dtype.*hub_strategy='every_save'"):
        write_state(source, tmp_path)
