"""Precision follows the GPU: TF32 and bf16 from compute capability 8.0 on, and the user's word before the hardware's."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from hf_distill.trainers.embedding_config import EmbeddingDistillConfig


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretends that there is a GPU of a compute capability; gives the config and what transformers switched in torch."""

    def build(capability, **fields):
        switched = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
        monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))  # there is none to set up
        monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.NOT_PARALLEL)
        for name in ("is_torch_tf32_available", "is_torch_bf16_gpu_available"):
            monkeypatch.setattr(f"transformers.training_args.{name}", lambda: capability >= (8, 0))
        monkeypatch.setattr("transformers.training_args.enable_tf32", switched.append)
        return EmbeddingDistillConfig(str(tmp_path), **fields), switched

    return build


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_ampere_and_later_train_in_tf32_and_bf16(gpu, capability):
    config, switched = gpu(capability)
    assert (config.tf32, config.bf16, config.use_cpu) == (True, True, False)
    assert switched == [True]


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_older_gpus_are_left_as_they_are(gpu, capability):
    config, switched = gpu(capability)
    assert (config.tf32, config.bf16, config.use_cpu) == (None, False, False)
    assert switched == []


def test_what_the_user_says_counts(gpu):
    config, switched = gpu((9, 0), tf32=False, bf16=False)
    assert (config.tf32, config.bf16) == (False, False)
    assert switched == [False]
    config, switched = gpu((9, 0), use_cpu=True, bf16=False)
    assert config.tf32 is None
    assert switched == []


def test_without_a_gpu_tf32_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = EmbeddingDistillConfig(str(tmp_path), bf16=False)
    assert config.tf32 is None
    assert config.use_cpu is not (torch.backends.mps.is_available() or torch.xpu.is_available())
