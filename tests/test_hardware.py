"""Tests of hardware detection (CPU for real, GPUs by a fake torch.cuda) and of the memory estimate (against autograd)."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

from hf_distill import hardware
from hf_distill.hardware import detect_hardware, encoder_parameters, estimate_memory, use_all_cores


def saved_bytes(model: torch.nn.Module, batch_size: int, length: int, bf16: bool) -> int:
    """Return the bytes of all distinct storages that autograd keeps for the backward pass of one forward."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(5, 90, (batch_size, length))
    context = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with context, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert output.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def student(mixer: str, memory: str = "single") -> torch.nn.Module:
    """Return a small encoder with MiniLM's proportions."""
    if mixer == "attention":
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 1536}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertModel(BertConfig(vocab_size=100, **sizes, **dropout), add_pooling_layer=False).train()
    from hf_distill import HfdDeltaNetConfig, HfdDeltaNetModel

    return HfdDeltaNetModel(HfdDeltaNetConfig(vocab_size=100, num_hidden_layers=2, mixer=mixer, memory=memory)).train()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("mixer", "memory"),
    [("ridge", "single"), ("attention", "single"), ("delta_flip", "single"), ("delta_causal", "two_decay")],
)
def test_estimate_is_close_to_what_autograd_keeps(mixer, memory, bf16):
    real = saved_bytes(student(mixer, memory), 4, 96, bf16)
    dtype = "bfloat16" if bf16 else "float32"
    estimate = estimate_memory(batch_size=4, sequence_length=96, layers=2, mixer=mixer, memory=memory, dtype=dtype)
    assert 0.7 < estimate.activations / real < 1.6


def test_estimate_counts_weights_gradients_and_optimizer_in_float32():
    estimate = estimate_memory(batch_size=1, sequence_length=1, parameters=1000, teacher_parameters=10)
    assert (estimate.parameters, estimate.gradients, estimate.optimizer, estimate.teacher) == (4000, 4000, 8000, 20)
    assert estimate.total == 16_020 + estimate.activations == estimate.to_dict()["total"]


def test_estimate_grows_as_it_should():
    def activations(**changes):
        return estimate_memory(**{"batch_size": 8, "sequence_length": 64, "dtype": "float32", **changes}).activations

    base = activations()
    assert activations(batch_size=16) == 2 * base
    assert base < activations(sequence_length=128) < 2 * base  # the memory's matrices do not grow with the length
    assert activations(dtype="bfloat16", batch_size=512) < activations(batch_size=512)
    assert activations(activation_checkpointing=True) < 0.4 * base


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dtype": "int3"}, "dtype must be one of float32"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw"),
        ({"mixer": "fft"}, "mixer must be one of ridge"),
    ],
)
def test_estimate_refuses_nonsense(change, says):
    with pytest.raises(ValueError, match=says):
        estimate_memory(**{"batch_size": 8, "sequence_length": 64, **change})


def test_parameter_count_is_exact_for_bert_and_close_for_deltanet():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    bert = BertModel(BertConfig(vocab_size=50, max_position_embeddings=20, **sizes), add_pooling_layer=False)
    assert encoder_parameters(24, 3, 40, 50, 20) == sum(parameter.numel() for parameter in bert.parameters())
    with torch.device("meta"):
        deltanet = student("ridge")
    count = sum(parameter.numel() for parameter in deltanet.parameters())
    assert count == pytest.approx(encoder_parameters(layers=2, vocab_size=100), rel=0.01)


def test_this_machine():
    found = detect_hardware()
    assert found.torch == torch.__version__
    assert found.cpu_cores >= 1
    assert found.memory_gib > 0.5
    assert found.cpu_model
    assert len(found.gpus) == torch.cuda.device_count()
    assert json.loads(json.dumps(found.to_dict()))["python"].startswith("3.")


def test_bf16_agrees_with_the_trainers_default():
    from hf_distill.trainers.distill_args import default_bf16

    assert detect_hardware().bf16 == default_bf16()


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 9), True)])
def test_gpus_are_told_in_full(monkeypatch, capability, fast):
    """Requirement 2's own list for its L40."""
    gpu = SimpleNamespace(
        name="NVIDIA L40",
        total_memory=47_676_129_280,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=142,
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_002)
    found = detect_hardware()
    assert found.device == "cuda"
    assert [(g.name, g.memory_gib, g.multiprocessors) for g in found.gpus] == [("NVIDIA L40", 44.4, 142)] * 2
    assert found.gpus[0].compute_capability == f"{capability[0]}.{capability[1]}"
    assert (found.tf32, found.bf16) == (fast, fast)
    assert (found.cuda, found.cudnn) == ("12.8", "9.10.2")
    assert found.training_memory_gib == 44.4


@pytest.mark.parametrize(("number", "text"), [(None, None), (8907, "8.9.7"), (90100, "9.1.0"), (91002, "9.10.2")])
def test_cudnn_version(number, text):
    assert hardware._cudnn_version(number) == text


def test_versions_name_the_ten_packages():
    versions = hardware.package_versions()
    assert len(hardware.CORE_PACKAGES) == 10
    assert set(hardware.CORE_PACKAGES) < set(versions)
    assert "not installed" not in versions.values()


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(hardware, "CORE_PACKAGES", ("no-such-package-anywhere",))
    assert hardware.package_versions()["no-such-package-anywhere"] == "not installed"


@pytest.mark.parametrize(
    ("environment", "changes"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, True),
        ({"OMP_NUM_THREADS": "1"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "2"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, False),
    ],
)
def test_use_all_cores_only_undoes_accelerates_single_thread(monkeypatch, environment, changes):
    for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "usable_cores", lambda: 3)
    try:
        assert use_all_cores() == (3 if changes else 1)
    finally:
        torch.set_num_threads(1)


def test_usable_cores_is_the_affinity_mask():
    assert 1 <= hardware.usable_cores() <= (os.cpu_count() or 1)
