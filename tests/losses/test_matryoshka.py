"""Matryoshka over every loss of rows: the mean over prefixes, 0 at equality, a gradient that trains the prefix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_distill.losses import (
    batch_similarities,
    cosine_loss,
    gram_loss,
    l2_loss,
    matryoshka_loss,
    pairwise_ranking_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    spearman_loss,
)


def spearman(student: Tensor, teacher: Tensor) -> Tensor:
    return spearman_loss(batch_similarities(student), batch_similarities(teacher))


def ranking(student: Tensor, teacher: Tensor) -> Tensor:
    return pairwise_ranking_loss(batch_similarities(student), batch_similarities(teacher))


# each loss, and whether the teacher is truncated likewise, as the trainer has it
POINTWISE = [(cosine_loss, True), (l2_loss, True)]
RELATIONAL = [(loss, False) for loss in (gram_loss, rkd_distance_loss, rkd_angle_loss, spearman, ranking)]
DIMS = (6, 3)


def rows(seed: int, count: int = 8, dim: int = 6) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


@pytest.mark.parametrize(("loss", "truncate"), POINTWISE + RELATIONAL)
def test_is_the_mean_over_normalised_prefixes(loss, truncate):
    student, teacher = rows(0), rows(1)
    unit = torch.nn.functional.normalize
    parts = [loss(unit(student[:, :dim]), unit(teacher[:, :dim]) if truncate else teacher) for dim in DIMS]
    value = matryoshka_loss(loss, student, teacher, DIMS, truncate_teacher=truncate)
    torch.testing.assert_close(value, sum(parts) / 2)
    torch.testing.assert_close(matryoshka_loss(loss, student, teacher, (6,), truncate_teacher=truncate), parts[0])


@pytest.mark.parametrize(("loss", "truncate"), POINTWISE + RELATIONAL)
def test_both_prefixes_learn(loss, truncate):
    teacher = rows(2)
    student = rows(3).requires_grad_()
    unit = torch.nn.functional.normalize

    def prefix() -> float:
        small = unit(student.detach()[:, :3])
        return loss(small, unit(teacher[:, :3]) if truncate else teacher).item()

    before = prefix()
    optimizer = torch.optim.Adam([student], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        matryoshka_loss(loss, student, teacher, DIMS, truncate_teacher=truncate).backward()
        assert student.grad.isfinite().all()
        assert student.grad[:, :3].any()
        assert student.grad[:, 3:].any()
        optimizer.step()
    assert prefix() < 0.8 * before


@pytest.mark.parametrize(("loss", "truncate"), [pair for pair in POINTWISE + RELATIONAL if pair[0] is not ranking])
def test_is_0_at_equality(loss, truncate):
    rotation = torch.linalg.qr(rows(5, 6))[0]
    student = torch.cat([rows(4, dim=3), torch.zeros(8, 3, dtype=torch.float64)], dim=1)  # both prefixes say the same
    teacher = student if truncate else student @ rotation
    value = matryoshka_loss(loss, student, teacher, DIMS, truncate_teacher=truncate)
    assert value.item() == pytest.approx(0, abs=1e-9)
