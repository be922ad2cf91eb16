"""Embedding losses against naive loops and closed forms."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.losses import (
    batch_similarities,
    contrastive_loss,
    cosine_loss,
    gram_loss,
    l2_loss,
    matryoshka_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    row_similarities,
    spearman_loss,
)


def rows(seed: int, count: int, dim: int = 4) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_cosine_and_l2_match_their_definitions():
    student, teacher = rows(0, 5), rows(1, 5)
    expected = np.mean([1 - cos(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    assert cosine_loss(student, teacher).item() == pytest.approx(expected)
    assert l2_loss(student, teacher).item() == pytest.approx(((student - teacher) ** 2).sum().item() / 5)
    unit_student, unit_teacher = (x / x.norm(dim=1, keepdim=True) for x in (student, teacher))
    torch.testing.assert_close(l2_loss(unit_student, unit_teacher), 2 * cosine_loss(student, teacher))
    assert cosine_loss(student, -student).item() == pytest.approx(2)


def test_cosine_resolves_near_equality_in_float32():
    teacher = torch.nn.functional.normalize(rows(2, 50, dim=384).float())
    noise = 1e-4 * torch.nn.functional.normalize(rows(3, 50, dim=384).float())
    exact = cosine_loss((teacher + noise).double(), teacher.double()).item()
    assert exact == pytest.approx(5e-9, rel=0.1)  # 1 - a.b in float32 would be rounding noise, partly negative
    assert cosine_loss(teacher + noise, teacher).item() == pytest.approx(exact, rel=1e-2)


def naive_contrastive(anchor: Tensor, positive: Tensor, scale: float, smoothing: float, ids: list[int]) -> float:
    losses = []
    for a, b in ((anchor.numpy(), positive.numpy()), (positive.numpy(), anchor.numpy())):
        for i in range(len(a)):
            allowed = [j for j in range(len(b)) if j == i or ids[j] != ids[i]]
            logits = np.array([scale * cos(a[i], b[j]) for j in allowed])
            log_p = logits - np.log(np.exp(logits).sum())
            target = np.full(len(allowed), smoothing / len(allowed))
            target[allowed.index(i)] += 1 - smoothing
            losses.append(-(target * log_p).sum())
    return float(np.mean(losses))


@given(
    seed=st.integers(0, 2**31), ids=st.lists(st.integers(0, 3), min_size=1, max_size=6), smoothing=st.floats(0, 0.9)
)
@settings(max_examples=50, deadline=None)
def test_contrastive_matches_a_naive_reference(seed, ids, smoothing):
    anchor, positive = rows(seed, len(ids)), rows(seed + 1, len(ids))
    value = contrastive_loss(anchor, positive, 5.0, smoothing, torch.tensor(ids))
    assert value.item() == pytest.approx(naive_contrastive(anchor, positive, 5.0, smoothing, ids), abs=1e-9)


def test_contrastive_without_ids_is_smoothed_cross_entropy_both_ways():
    anchor, positive = rows(4, 6), rows(5, 6)
    logits = 20 * torch.nn.functional.normalize(anchor) @ torch.nn.functional.normalize(positive).T
    ways = [torch.nn.functional.cross_entropy(x, torch.arange(6), label_smoothing=0.1) for x in (logits, logits.T)]
    torch.testing.assert_close(contrastive_loss(anchor, positive), sum(ways) / 2)
    torch.testing.assert_close(contrastive_loss(positive, anchor), sum(ways) / 2)


def test_contrastive_duplicates_are_not_pushed_apart():
    anchor = rows(6, 3).requires_grad_()
    positive = rows(7, 3)
    contrastive_loss(anchor, positive, positive_ids=torch.tensor([7, 7, 7])).backward()
    assert torch.equal(anchor.grad, torch.zeros_like(anchor))

    only_pair = torch.tensor([1, 1, 2])
    moved = positive.clone()
    moved[1] += 10  # row 0 must not see row 1's positive
    first = [
        torch.autograd.grad(contrastive_loss(anchor, p, positive_ids=only_pair), anchor)[0][0]
        for p in (positive, moved)
    ]
    torch.testing.assert_close(*first)


def test_contrastive_of_one_pair_is_zero_with_zero_gradient():
    anchor = rows(8, 1).requires_grad_()
    value = contrastive_loss(anchor, rows(9, 1))
    value.backward()
    assert value == 0
    assert torch.equal(anchor.grad, torch.zeros_like(anchor))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_contrastive_rejects_bad_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\)"):
        contrastive_loss(torch.eye(2), torch.eye(2), label_smoothing=smoothing)


def test_similarities():
    x, y = rows(10, 4), rows(11, 4)
    assert row_similarities(x, y).tolist() == pytest.approx(
        [cos(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    )
    expected = [[cos(a, b) for j, b in enumerate(x.numpy()) if j != i] for i, a in enumerate(x.numpy())]
    np.testing.assert_allclose(batch_similarities(x).numpy(), expected)
    assert batch_similarities(x[:1]).shape == (1, 0)


def test_gram_matches_naive_loops():
    student, teacher = rows(12, 5), rows(13, 5, dim=7)
    s, t = student.numpy(), teacher.numpy()
    errors = [(cos(s[i], s[j]) - cos(t[i], t[j])) ** 2 for i in range(5) for j in range(5) if i != j]
    assert gram_loss(student, teacher).item() == pytest.approx(np.mean(errors))


def test_rkd_distance_matches_naive_loops():
    student, teacher = rows(14, 5), rows(15, 5, dim=7) ** 3
    ratios = []
    for x in (student.numpy(), teacher.numpy()):
        distances = np.array([np.linalg.norm(x[i] - x[j]) for i in range(5) for j in range(i)])
        ratios.append(distances / distances.mean())
    expected = np.mean([huber(s - t) for s, t in zip(*ratios, strict=True)])
    assert rkd_distance_loss(student, teacher).item() == pytest.approx(expected)
    torch.testing.assert_close(rkd_distance_loss(9 * student, teacher), rkd_distance_loss(student, teacher))


@pytest.mark.parametrize("duplicate", [False, True])
def test_rkd_angle_matches_naive_loops(duplicate):
    student, teacher = rows(16, 5), rows(17, 5, dim=7)
    if duplicate:
        student[3] = student[1]  # an arm of length 0 has cosine 0, and i == k still counts for nothing
    angles = []
    for x in (student.numpy(), teacher.numpy()):
        triples = [(i, j, k) for i in range(5) for j in range(5) for k in range(5) if len({i, j, k}) == 3]
        arms = [(x[i] - x[j], x[k] - x[j]) for i, j, k in triples]
        angles.append([cos(a, b) if a.any() and b.any() else 0.0 for a, b in arms])
    expected = np.mean([huber(s - t) for s, t in zip(*angles, strict=True)])
    assert rkd_angle_loss(student, teacher).item() == pytest.approx(expected)


def test_relational_losses_vanish_where_there_is_nothing_to_relate():
    for loss, count in ((gram_loss, 1), (rkd_distance_loss, 2), (rkd_angle_loss, 2)):
        student = rows(18, count).requires_grad_()
        value = loss(student, rows(19, count))
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-12)
        assert student.grad.abs().max() < 1e-12


def test_matryoshka_is_the_weighted_mean_over_renormalised_prefixes():
    student, teacher = rows(20, 5), rows(21, 5)
    full, half = cosine_loss(student, teacher), cosine_loss(student[:, :2], teacher[:, :2])
    torch.testing.assert_close(matryoshka_loss(cosine_loss, student, teacher, (4,)), full)
    torch.testing.assert_close(matryoshka_loss(cosine_loss, student, teacher, (4, 2)), (full + half) / 2)
    torch.testing.assert_close(
        matryoshka_loss(cosine_loss, student, teacher, (4, 2), (6, 2)), 0.75 * full + 0.25 * half
    )
    expected = (2 * full + 2 * half) / 2  # of unit vectors
    torch.testing.assert_close(matryoshka_loss(l2_loss, student, teacher, (4, 2)), expected)


def test_matryoshka_of_relations_holds_prefixes_against_the_whole_teacher():
    student, teacher = rows(22, 5), rows(23, 5, dim=9)
    expected = (gram_loss(student, teacher) + gram_loss(student[:, :2], teacher)) / 2
    value = matryoshka_loss(gram_loss, student, teacher, (4, 2), truncate_teacher=False)
    torch.testing.assert_close(value, expected)

    def spearman(s: Tensor, t: Tensor) -> Tensor:
        return spearman_loss(batch_similarities(s), batch_similarities(t))

    for loss in (spearman, rkd_distance_loss, rkd_angle_loss):
        assert matryoshka_loss(loss, student, teacher, (4, 2), truncate_teacher=False) > 0


def test_matryoshka_of_contrastive_truncates_both_sides():
    anchor, positive = rows(24, 4), rows(25, 4)
    loss = functools.partial(contrastive_loss, positive_ids=torch.tensor([0, 0, 1, 2]))
    expected = loss(anchor[:, :3], positive[:, :3])
    torch.testing.assert_close(matryoshka_loss(loss, anchor, positive, (3,)), expected)


def test_matryoshka_trains_the_prefix():
    teacher, student = rows(26, 8), rows(27, 8).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    before = cosine_loss(student[:, :2], teacher[:, :2]).item()
    for _ in range(100):
        optimizer.zero_grad()
        matryoshka_loss(cosine_loss, student, teacher, (4, 2)).backward()
        optimizer.step()
    assert cosine_loss(student[:, :2], teacher[:, :2]) < 0.01 * before


@pytest.mark.parametrize("dims", [(), (4, 5), (0,), (-1, 2)])
def test_matryoshka_rejects_dims_outside_the_width(dims):
    with pytest.raises(ValueError, match=r"1\.\.\.4: the student is 4 wide"):
        matryoshka_loss(cosine_loss, torch.eye(4), torch.eye(4), dims)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0)])
def test_matryoshka_rejects_bad_weights(weights):
    with pytest.raises(ValueError, match=r"must be 2 numbers >= 0, one for each of \[4, 2\]"):
        matryoshka_loss(cosine_loss, torch.eye(4), torch.eye(4), (4, 2), weights)


def test_matryoshka_rejects_a_teacher_of_another_width():
    with pytest.raises(ValueError, match=r"student is 4 wide, the teacher 9.*truncate_teacher=False"):
        matryoshka_loss(cosine_loss, torch.ones(2, 4), torch.ones(2, 9), (4, 2))
