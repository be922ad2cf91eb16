"""The same numbers on a CUDA device as on the CPU: the ops, the encoder, a teacher's cache, and a few real steps.

Each test also runs on the CPU, so that a machine without a GPU keeps them working.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from hf_distill.models.deltanet.ops_deltanet import delta_rule_chunk, delta_rule_recurrent
from hf_distill.models.deltanet.ops_ridge import ridge_mix, ridge_naive
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.writer import write_cache
from hf_distill.trainers.alignment import MixerAlignmentTrainer
from hf_distill.trainers.alignment_config import MixerAlignmentConfig
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.students import build_student

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@devices
@pytest.mark.parametrize("length", [1, 33, 300])
def test_the_chunked_delta_rule_equals_the_token_loop(length: int, device: str) -> None:
    q, k = _random(2, length, 2, 5), normalize(_random(2, length, 2, 5).flip(1), dim=-1)
    inputs = [q, k, _random(2, length, 2, 3), _random(2, length, 2).sigmoid(), -_random(2, length, 2).exp()]
    inputs[3][1, length // 2 :] = inputs[4][1, length // 2 :] = 0.0  # right padding
    results = []
    for op, place in ((delta_rule_chunk, device), (delta_rule_recurrent, "cpu")):
        leaves = [x.clone().to(place).requires_grad_() for x in inputs]
        out, state = op(*leaves)
        gradients = torch.autograd.grad(out.sin().sum() + state.sin().sum(), leaves)
        results.append([x.cpu() for x in (out, state, *gradients)])
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive, atol=1e-9, rtol=1e-9)


@devices
@pytest.mark.parametrize("length", [1, 33, 300])
def test_the_ridge_mixer_equals_its_reference(length: int, device: str) -> None:
    inputs = [_random(2, length, 2, 6), _random(2, length, 2, 6) + 0.3, _random(2, length, 2, 4)]
    inputs += [_random(2, length, 2).sigmoid(), torch.tensor([0.1, 0.4], dtype=torch.float64)]
    results = []
    for op, place in ((ridge_mix, device), (ridge_naive, "cpu")):
        leaves = [x.clone().to(place).requires_grad_() for x in inputs]
        out = op(*leaves, False)
        results.append([x.cpu() for x in (out, *torch.autograd.grad(out.sin().sum(), leaves))])
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive, atol=1e-8, rtol=1e-8)


@devices
@pytest.mark.parametrize("mixer", ["ridge", "delta_causal", "delta_flip", "delta_split"])
def test_an_encoder_gives_the_same_embeddings(
    mixer: str, device: str, tiny_sentence_transformer: str, tiny_texts: list[str]
) -> None:
    torch.set_float32_matmul_precision("highest")  # a trainer before this one may have allowed TF32
    student = build_student("deltanet", SentenceTransformer(tiny_sentence_transformer, device="cpu"), mixer=mixer)
    expected = student.encode(tiny_texts, batch_size=16, show_progress_bar=False)
    found = student.to(device).encode(tiny_texts, batch_size=16, show_progress_bar=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    with torch.autocast(device, dtype=torch.bfloat16):
        rounded = student.encode(tiny_texts, batch_size=16, show_progress_bar=False)
    assert (normalize(torch.tensor(rounded).float()) * torch.tensor(expected)).sum(dim=-1).min() > 0.99


@devices
def test_a_cache_holds_what_the_cpu_says(
    device: str, tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path
) -> None:
    here = LiveTeacher(tiny_sentence_transformer, dtype="float32", device="cpu").embed(tiny_texts)
    there = LiveTeacher(tiny_sentence_transformer, dtype="bfloat16", device=device)
    cache = write_cache(tiny_texts, there, tmp_path, progress=False)
    rows = cache.embeddings(cache.rows_for(tiny_texts)).astype(np.float32)
    assert (rows * here).sum(axis=-1).min() > 0.99


@devices
def test_both_stages_train_every_parameter(
    device: str, tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path
) -> None:
    texts, common = Dataset.from_dict({"text": tiny_texts}), {"report_to": "none", "disable_tqdm": True, "bf16": True}
    common |= {"use_cpu": device == "cpu", "save_strategy": "no", "max_steps": 3, "logging_steps": 1}
    teacher = LiveTeacher(tiny_sentence_transformer, device=device)
    student = build_student("deltanet", SentenceTransformer(tiny_sentence_transformer, device="cpu"), mixer="ridge")
    stage_1 = MixerAlignmentConfig(output_dir=str(tmp_path / "one"), token_budget=512, **common)
    MixerAlignmentTrainer(student[0].auto_model, stage_1, texts, teacher=teacher).train()
    before = {name: value.detach().cpu().clone() for name, value in student.named_parameters()}
    stage_2 = EmbeddingDistillConfig(
        output_dir=str(tmp_path / "two"), per_device_train_batch_size=8, learning_rate=1e-3, warmup_steps=0, **common
    )
    trainer = EmbeddingDistillTrainer(student.to(device), stage_2, texts, teacher=teacher)
    trainer.train()
    assert all(parameter.device.type == device for parameter in student.parameters())
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    still = [name for name, value in student.named_parameters() if torch.equal(value.detach().cpu(), before[name])]
    assert not still
