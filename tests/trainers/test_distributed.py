"""Two processes (torchrun, gloo, CPU): heads stay equal, and the run is that of one with the doubled batch; no sharding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import Trainer

from hf_distill.trainers.distributed import gather_rows, world_size

WORKER = Path(__file__).parent / "distributed_worker.py"


def run_worker(processes: int, arguments: dict, folder: Path) -> dict:
    """Trains in `processes` processes and reads what every rank wrote."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = command if processes > 1 else [sys.executable]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(WORKER.parents[2])}
    spec = folder / "spec.json"
    spec.write_text(json.dumps({**arguments, "folder": str(folder)}))
    done = subprocess.run([*command, str(WORKER), str(spec)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(folder / f"rank-{rank}.safetensors") for rank in range(processes)]
    return {"ranks": ranks, **json.loads((folder / "result.json").read_text())}


@pytest.fixture(scope="module")
def model_and_cache(tiny_sentence_transformer, cache, tiny_texts):
    return {"model": tiny_sentence_transformer, "cache": str(cache.path), "texts": tiny_texts}


@pytest.mark.parametrize(
    ("sharding", "message"),
    [("fsdp", "FSDP would shard.*--multi_gpu"), (3, "ZeRO-3 would partition.*zero2.yaml"), (2, None)],
)
def test_a_launcher_that_shards_the_student_is_refused(make_trainer, monkeypatch, sharding, message):
    create = Trainer.create_accelerator_and_postprocess

    def create_sharded(trainer):
        create(trainer)
        trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = sharding == "fsdp", sharding != "fsdp"
        plugin = SimpleNamespace(zero_stage=sharding)
        monkeypatch.setattr(AcceleratorState, "deepspeed_plugin", property(lambda state: plugin))

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create_sharded)
    if message is None:
        assert make_trainer().is_deepspeed_enabled
        return
    with pytest.raises(ValueError, match=message):
        make_trainer()


@pytest.mark.slow
@pytest.mark.parametrize("terms", ["rows", "batch"])
def test_two_processes_equal_one_with_the_doubled_batch(model_and_cache, tmp_path, terms):
    weights = {"cosine_weight": 1.0, "l2_weight": 0.5}
    if terms == "batch":
        weights |= {"gram_weight": 1.0, "contrastive_weight": 0.1, "spearman_weight": 0.3, "rkd_distance_weight": 0.2}
    fields = {**weights, "max_steps": 3, "embedding_projection": "learned", "bucket_by_length": False, "optim": "sgd"}
    fields |= {"learning_rate": 0.05, "max_grad_norm": 0.5}
    two = run_worker(2, {**model_and_cache, "fields": {**fields, "per_device_train_batch_size": 4}}, tmp_path / "two")
    one = run_worker(1, {**model_and_cache, "fields": {**fields, "per_device_train_batch_size": 8}}, tmp_path / "one")
    assert two["world_size"] == 2, "the launcher must really start two processes"
    assert one["world_size"] == 1
    first, second = two["ranks"]
    assert any("head" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"
        assert torch.allclose(value, one["ranks"][0][name], atol=1e-6), f"{name} differs from one process"
    for both, alone in zip(two["log"], one["log"], strict=True):
        assert both == pytest.approx(alone, rel=1e-4)
    assert two["log"][-1]["loss/cosine"] < two["log"][0]["loss/cosine"]


@pytest.mark.slow
def test_a_stream_in_two_processes_equals_one_with_the_doubled_batch(model_and_cache, tmp_path):
    """30 pairs in two unequal files: each process gets its own rows, whole batches, and the second pass begins at once."""
    arguments = {**model_and_cache, "texts": model_and_cache["texts"][:60], "shards": 2}
    fields = {"l2_weight": 0.5, "gram_weight": 1.0, "max_steps": 6, "embedding_projection": "learned", "optim": "sgd"}
    fields |= {"learning_rate": 0.05, "warmup_phase_steps": 1, "dataloader_drop_last": True}
    two = run_worker(2, {**arguments, "fields": {**fields, "per_device_train_batch_size": 4}}, tmp_path / "two")
    one = run_worker(1, {**arguments, "fields": {**fields, "per_device_train_batch_size": 8}}, tmp_path / "one")
    assert two["world_size"] == 2
    first, second = two["ranks"]
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"
        assert torch.allclose(value, one["ranks"][0][name], atol=1e-6), f"{name} differs from one process"
    losses = [[entry["loss/gram"] for entry in run["log"]] for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 7, "30 pairs make three batches of 8, so the stream was read three times"


@pytest.mark.slow
def test_resume_time_budget_and_token_batches_in_two_processes(model_and_cache, tmp_path):
    """Batches of different size on each rank, two epochs, a clock, and a resume in the second epoch: all ranks agree."""
    fields = {"token_budget": 256, "gram_weight": 1.0, "max_steps": 9, "max_minutes": 30.0, "save_strategy": "steps"}
    fields |= {"save_steps": 7, "embedding_projection": "learned", "learning_rate": 0.01}
    straight = run_worker(2, {**model_and_cache, "fields": fields}, tmp_path / "straight")
    resumed = run_worker(2, {**model_and_cache, "fields": fields, "kill_at": 7}, tmp_path / "resumed")
    for run in (straight, resumed):
        first, second = run["ranks"]
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    kill = straight["log"][fields["save_steps"] - 1]["epoch"]
    assert kill > 1, "the resume must fall into a later epoch,"
    assert kill % 1 > 0, "and inside it"
    rows = [entry["loss/cosine"] for entry in straight["log"]]
    again = [entry["loss/cosine"] for entry in resumed["log"]]
    assert again == pytest.approx(rows, rel=1e-3)  # the learning rate follows the clock, so only nearly


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert gather_rows(rows) is rows
