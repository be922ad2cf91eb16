"""Ranking losses against scipy's exact ranks, and proof that descending them improves the order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from torch import Tensor

from hf_distill.losses import pairwise_ranking_loss, soft_rank, spearman_loss


def scores(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Whole and half numbers: many ties, and no gap between 0 and 0.5.
tied_lists = st.lists(st.integers(-5, 5).map(lambda n: n / 2), min_size=1, max_size=12)


@given(values=tied_lists)
@settings(max_examples=100, deadline=None)
def test_soft_rank_becomes_the_exact_rank_with_ties_averaged(values):
    ranks = soft_rank(torch.tensor(values, dtype=torch.float64), temperature=1e-3)
    assert ranks.tolist() == pytest.approx(rankdata(values).tolist(), abs=1e-9)


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_soft_rank_is_within_bounds_ordered_and_permutes(seed, temperature):
    x = scores(seed, 3, 6)
    ranks = soft_rank(x, temperature)
    assert ((ranks >= 1) & (ranks <= 6)).all()
    torch.testing.assert_close(ranks.sum(dim=-1), torch.full((3,), 21.0, dtype=torch.float64))
    assert torch.equal(ranks.argsort(dim=-1), x.argsort(dim=-1))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(soft_rank(x[:, order], temperature), ranks[:, order])
    torch.testing.assert_close(soft_rank(x, torch.full((3, 1), temperature)), ranks)


def test_soft_rank_gradient():
    assert torch.autograd.gradcheck(lambda x: soft_rank(x, 0.3), scores(0, 2, 5).requires_grad_())


@given(seed=st.integers(0, 2**31), count=st.integers(3, 40))
@settings(max_examples=50, deadline=None)
def test_spearman_loss_becomes_scipys_spearman(seed, count):
    student, teacher = (scores(s, count).mul(100).round() for s in (seed, seed + 1))  # gaps are 0 or at least 1
    exact = 1 - spearmanr(student, teacher).statistic
    assert spearman_loss(student, teacher, temperature=1e-6).item() == pytest.approx(exact, abs=1e-9)


def test_spearman_loss_becomes_scipys_spearman_with_ties():
    student = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.2, 0.1], dtype=torch.float64)
    teacher = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    exact = 1 - spearmanr(student, teacher).statistic
    assert spearman_loss(student, teacher, temperature=1e-4).item() == pytest.approx(exact, abs=1e-9)


def test_default_temperature_is_close_to_exact_and_a_large_one_is_pearson():
    teacher = scores(1, 200)
    student = teacher + scores(2, 200)
    assert spearman_loss(student, teacher).item() == pytest.approx(1 - spearmanr(student, teacher).statistic, abs=0.01)
    pearson = 1 - pearsonr(student, teacher).statistic
    assert spearman_loss(student, teacher, temperature=1e3).item() == pytest.approx(pearson, abs=1e-4)


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_spearman_loss_is_blind_to_scale_and_shift(seed, scale, shift):
    student, teacher = scores(seed, 12), scores(seed + 1, 12)
    value = spearman_loss(student, teacher)
    torch.testing.assert_close(spearman_loss(scale * student + shift, teacher), value, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(spearman_loss(student, scale * teacher + shift), value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("monotone", "temperature"), [(torch.exp, 0.2), (torch.tanh, 0.2), (lambda x: x**3, 5e-3), (lambda x: x**3, 1e-6)]
)
def test_spearman_loss_is_nearly_blind_to_monotone_maps(monotone, temperature):
    student, teacher = scores(3, 100), scores(4, 100)
    value = spearman_loss(monotone(student), teacher, temperature)
    assert value.item() == pytest.approx(spearman_loss(student, teacher, temperature).item(), abs=0.02)


def test_spearman_loss_averages_separate_lists():
    student, teacher = scores(5, 3, 8), scores(6, 3, 8)
    each = [spearman_loss(s, t) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(spearman_loss(student, teacher), torch.stack(each).mean())


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_spearman_loss_of_tied_lists(count):
    tied = torch.full((count,), 0.1, requires_grad=True)
    other = torch.linspace(0, 1, count)
    value = spearman_loss(tied, other)
    value.backward()
    assert value.item() == pytest.approx(0 if count == 1 else 1)
    assert torch.equal(tied.grad, torch.zeros(count))
    assert spearman_loss(tied, torch.full((count,), 0.7)) == 0


@pytest.mark.parametrize("loss", [spearman_loss, pairwise_ranking_loss])
def test_descent_raises_scipys_spearman(loss):
    teacher = 0.2 * scores(7, 64)
    student = (0.2 * scores(8, 64)).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.01)
    course = []
    for step in range(201):
        if step % 50 == 0:
            course.append(spearmanr(student.detach(), teacher).statistic)
        optimizer.zero_grad()
        loss(student, teacher).backward()
        optimizer.step()
    assert course[0] < 0.2
    assert course == sorted(course)
    assert course[-1] > 0.99


def test_pairwise_ranking_matches_a_naive_reference():
    student, teacher = (0.3 * scores(seed, 7) for seed in (9, 10))
    teacher[1] = teacher[0] + 0.005  # below min_gap: says nothing
    terms = []
    for i in range(7):
        for j in range(7):
            if abs(teacher[i] - teacher[j]) > 0.01:
                logit = torch.tensor((student[i] - student[j]).item() / 0.05)
                label = torch.tensor(float(teacher[i] > teacher[j]))
                terms.append(torch.nn.functional.binary_cross_entropy_with_logits(logit, label).item())
    assert pairwise_ranking_loss(student, teacher).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_pairwise_ranking_pulls_a_discordant_pair_the_right_way():
    student = torch.tensor([0.5, 0.4, 0.1], requires_grad=True)
    pairwise_ranking_loss(student, torch.tensor([0.2, 0.8, 0.2])).backward()
    assert student.grad[1] < 0 < student.grad[0]  # descent raises the second score and lowers the first
    assert student.grad[0] > student.grad[2] > 0  # the third is in order already, and pulled less
    assert student.grad.sum().abs() < 1e-6


def test_pairwise_ranking_at_its_landmarks():
    teacher = torch.tensor([0.0, 0.5, 1.0])
    assert pairwise_ranking_loss(torch.zeros(3), teacher).item() == pytest.approx(math.log(2))
    assert pairwise_ranking_loss(teacher, teacher) < 1e-4
    tied = torch.zeros(3, requires_grad=True)
    value = pairwise_ranking_loss(tied, torch.tensor([0.5, 0.505, 0.5]))
    value.backward()
    assert value == 0
    assert torch.equal(tied.grad, torch.zeros(3))


@pytest.mark.parametrize("loss", [spearman_loss, pairwise_ranking_loss])
def test_shapes_must_agree(loss):
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\).*same shape"):
        loss(torch.zeros(3), torch.zeros(4))


def test_bad_parameters_are_named():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"soft_rank: temperature must be > 0"):
        soft_rank(x, 0.0)
    with pytest.raises(ValueError, match=r"spearman_loss: temperature must be > 0"):
        spearman_loss(x, x, temperature=float("nan"))
    with pytest.raises(ValueError, match=r"margin must be > 0"):
        pairwise_ranking_loss(x, x, margin=0.0)
    with pytest.raises(ValueError, match=r"min_gap must be >= 0"):
        pairwise_ranking_loss(x, x, min_gap=-0.1)
