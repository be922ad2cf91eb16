"""The kernel of a training step on the CPU: chosen by length, the same values and gradients, kept out of checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hf_distill.trainers.attention import attention_kernel


def fused(width: int, **options) -> bool:
    """Whether PyTorch may use its fused kernel in the chosen context."""
    with attention_kernel(torch.zeros(2, width, dtype=torch.long), **options):
        return torch.backends.cuda.flash_sdp_enabled()


def test_short_batches_avoid_the_fused_kernel():
    assert not fused(1)
    assert not fused(128)
    assert fused(129)
    assert fused(16, recomputed=True)
    assert torch.backends.cuda.flash_sdp_enabled()  # nothing stays behind


@pytest.mark.parametrize("width", [1, 7, 37])
def test_values_and_gradients_are_those_of_the_fused_kernel(width):
    torch.manual_seed(0)
    mask = torch.rand(3, 1, 1, width) > 0.3
    mask[..., 0] = True
    results = []
    for ids in (torch.zeros(3, width), torch.zeros(3, 512)):  # the second chooses the fused kernel
        q, k, v = (torch.randn(3, 2, width, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        with attention_kernel(ids):
            out = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for short, long in zip(*results, strict=True):
        torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_runs_its_forward_in_it(make_trainer, monkeypatch, checkpointing):
    from hf_distill.trainers import embedding

    seen = []

    def spied(ids, recomputed):
        seen.append((len(ids), recomputed))
        return attention_kernel(ids, recomputed)

    monkeypatch.setattr(embedding, "attention_kernel", spied)
    trainer = make_trainer(max_steps=2, gradient_checkpointing=checkpointing)
    assert trainer.train().training_loss > 0
    assert seen == [(8, checkpointing)] * 2
