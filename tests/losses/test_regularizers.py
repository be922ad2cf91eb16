"""Orthogonality of weights, decorrelation of memories."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_distill.losses import orthogonality_loss, state_decorrelation_loss


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3)])
def test_orthogonality_is_zero_for_orthonormal_sides_only(shape):
    orthonormal = torch.nn.init.orthogonal_(torch.empty(*shape, dtype=torch.float64))
    assert orthogonality_loss([orthonormal]) < 1e-12
    assert orthogonality_loss([1.1 * orthonormal]).item() == pytest.approx(0.21**2)


def test_orthogonality_matches_its_definition():
    a, b = normal(0, 3, 5), normal(1, 6, 2)
    first = ((a @ a.T - torch.eye(3)) ** 2).sum() / 3
    second = ((b.T @ b - torch.eye(2)) ** 2).sum() / 2
    torch.testing.assert_close(orthogonality_loss(iter([a, b])), (first + second) / 2)
    assert torch.autograd.gradcheck(lambda w: orthogonality_loss([w, b]), a.requires_grad_())


def test_orthogonality_descends_to_an_orthonormal_matrix():
    weight = normal(2, 4, 6).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        orthogonality_loss([weight]).backward()
        optimizer.step()
    torch.testing.assert_close(torch.linalg.svdvals(weight), torch.ones(4, dtype=torch.float64), atol=1e-2, rtol=0)


def test_orthogonality_computes_in_float32_under_autocast():
    weight = normal(3, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = orthogonality_loss([weight])
    assert value.dtype == torch.float32
    assert value == orthogonality_loss([weight])


def test_orthogonality_rejects_what_it_cannot_measure():
    with pytest.raises(ValueError, match="there are no weights"):
        orthogonality_loss([])
    with pytest.raises(ValueError, match=r"must be a matrix, but one has shape \(4,\)"):
        orthogonality_loss([torch.eye(4), torch.ones(4)])


def test_decorrelation_is_the_squared_frobenius_cosine():
    fast, slow = normal(4, 2, 3, 4, 5), normal(5, 2, 3, 4, 5)
    expected = []
    for f, s in zip(fast.flatten(0, 1), slow.flatten(0, 1), strict=True):
        expected.append(((f * s).sum() / (f.norm() * s.norm())) ** 2)
    torch.testing.assert_close(state_decorrelation_loss(fast, slow), torch.stack(expected).mean())
    torch.testing.assert_close(state_decorrelation_loss(-7 * fast, slow), state_decorrelation_loss(fast, slow))
    assert state_decorrelation_loss(fast, -2 * fast).item() == pytest.approx(1)


def test_decorrelation_gradient_and_descent():
    fast, slow = normal(6, 2, 3, 3).requires_grad_(), normal(7, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(state_decorrelation_loss, (fast, slow))
    optimizer = torch.optim.Adam([fast, slow], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        state_decorrelation_loss(fast, slow).backward()
        optimizer.step()
    assert state_decorrelation_loss(fast, slow) < 1e-4


def test_an_empty_memory_is_uncorrelated_without_a_gradient():
    fast, slow = torch.zeros(2, 3, 3, requires_grad=True), normal(8, 2, 3, 3).float()
    value = state_decorrelation_loss(fast, slow)
    value.backward()
    assert value == 0
    assert torch.equal(fast.grad, torch.zeros_like(fast))


def test_decorrelation_rejects_other_shapes():
    with pytest.raises(ValueError, match="state_decorrelation_loss"):
        state_decorrelation_loss(torch.zeros(2, 3, 3), torch.zeros(2, 3, 4))
