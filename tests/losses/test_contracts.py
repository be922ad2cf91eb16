"""What every loss promises: >= 0, 0 at equality, full precision under autocast, finite gradients on degenerate rows."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hf_distill.losses as losses
from hf_distill.losses import (
    batch_similarities,
    contrastive_loss,
    cosine_loss,
    gram_loss,
    hidden_state_loss,
    l2_loss,
    matryoshka_loss,
    pairwise_ranking_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    row_similarities,
    spearman_loss,
    state_decorrelation_loss,
)
from hf_distill.losses.numerics import cosine_distance, unit


def spearman_of_batch(student: Tensor, teacher: Tensor) -> Tensor:
    return spearman_loss(batch_similarities(student), batch_similarities(teacher))


def ranking_of_batch(student: Tensor, teacher: Tensor) -> Tensor:
    return pairwise_ranking_loss(batch_similarities(student), batch_similarities(teacher))


def hidden_of_rows(student: Tensor, teacher: Tensor) -> Tensor:
    return hidden_state_loss(student[:, None], teacher[:, None])


def matryoshka_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return matryoshka_loss(cosine_loss, student, teacher, dims=(2, 4))


# All losses as functions of (student, teacher) rows; those that are 0 at equality; those that only relate rows.
RELATIONAL = [gram_loss, rkd_distance_loss, rkd_angle_loss, spearman_of_batch]
ZERO_AT_EQUALITY = [cosine_loss, l2_loss, hidden_of_rows, matryoshka_cosine, *RELATIONAL]
EVERY = [*ZERO_AT_EQUALITY, contrastive_loss, ranking_of_batch]
BLIND_TO_ROW_SCALE = [cosine_loss, gram_loss, spearman_of_batch, matryoshka_cosine, contrastive_loss, ranking_of_batch]


def rows(seed: int, count: int, dim: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


seeds = st.integers(0, 2**31)


@pytest.mark.parametrize("loss", EVERY)
@given(seed=seeds, count=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_is_finite_not_negative_and_ignores_the_order_of_rows(loss, seed, count):
    student, teacher = rows(seed, count), rows(seed + 1, count)
    value = loss(student, teacher)
    assert value.ndim == 0
    assert value.isfinite()
    assert value >= 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[order], teacher[order]), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ZERO_AT_EQUALITY)
@given(seed=seeds, count=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_is_exactly_zero_at_equality(loss, seed, count):
    x = rows(seed, count)
    assert loss(x, x.clone()) == 0


@pytest.mark.parametrize("loss", EVERY)
def test_has_a_gradient_away_from_equality(loss):
    student = rows(0, 5).requires_grad_()
    loss(student, rows(1, 5)).backward()
    assert student.grad.isfinite().all()
    assert (student.grad.abs().sum(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("loss", EVERY)
def test_gradient_is_the_derivative(loss):
    student = rows(2, 4, dtype=torch.float64).requires_grad_()
    teacher = rows(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)


@pytest.mark.parametrize("loss", BLIND_TO_ROW_SCALE)
@given(seed=seeds, scale=st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_scale_of_a_row_does_not_matter_to_cosines(loss, seed, scale):
    student, teacher = rows(seed, 5), rows(seed + 1, 5)
    scales = torch.tensor([scale, 1.0, 2.0, 1.0, 0.5])[:, None]
    torch.testing.assert_close(loss(student * scales, teacher), loss(student, teacher), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", RELATIONAL)
def test_relations_do_not_change_under_rotation_and_take_any_width(loss):
    teacher = rows(4, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(rows(5, 4, dtype=torch.float64)).Q
    assert loss(teacher @ rotation, teacher) < 1e-12
    wider = torch.cat([teacher, torch.zeros(6, 3)], dim=1)
    assert loss(wider, teacher) < 1e-12
    assert loss(rows(6, 6, dim=9), teacher) > 1e-3


DEGENERATE = {
    "no row": torch.zeros(0, 4),
    "one row": rows(0, 1),
    "two rows": rows(0, 2),
    "all zero": torch.zeros(4, 4),
    "one zero row": torch.cat([rows(0, 3), torch.zeros(1, 4)]),
    "all rows identical": rows(0, 1).expand(4, 4).clone(),
    "two identical rows": rows(0, 3)[[0, 1, 2, 0]],
    "opposite rows": torch.cat([rows(0, 2), -rows(0, 2)]),
    "tiny": rows(0, 4) * 1e-20,
}


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_rows_have_moderate_gradients(loss, case):
    bad = DEGENERATE[case]
    good = rows(7, len(bad))
    for student, teacher in ((bad, good), (good, bad), (bad, bad)):
        student = student.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert value.isfinite()
        assert value >= 0
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e4 if len(bad) else True


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_inputs_compute_in_float32(loss, dtype):
    student, teacher = rows(8, 6).to(dtype), rows(9, 6).to(dtype)
    exact = loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher)
        value.backward()
    assert value.dtype == torch.float32
    assert value == exact
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("loss", EVERY)
def test_mixed_dtypes_meet_in_the_wider_one(loss):
    student = rows(10, 4).requires_grad_()
    value = loss(student, rows(11, 4, dtype=torch.float64))
    value.backward()
    assert value.dtype == torch.float64
    assert student.grad.dtype == torch.float32


@pytest.mark.parametrize("loss", [cosine_loss, l2_loss, contrastive_loss, row_similarities, state_decorrelation_loss])
def test_another_width_is_an_error_that_names_both_and_the_remedy(loss):
    with pytest.raises(ValueError, match=r"384 wide, the teacher 768\. Project the teacher .*pca_projection.* head"):
        loss(torch.ones(2, 384), torch.ones(2, 768))


@pytest.mark.parametrize("loss", [cosine_loss, l2_loss, contrastive_loss, *RELATIONAL[:3]])
def test_another_number_of_rows_is_an_error(loss):
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(2, 4\).*same texts"):
        loss(torch.ones(3, 4), torch.ones(2, 4))


def test_unit_and_cosine_distance_at_zero():
    zero, one = torch.zeros(3, requires_grad=True), torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(unit(zero), torch.zeros(3))
    assert cosine_distance(zero, one) == 1
    assert cosine_distance(one, zero) == 1
    assert cosine_distance(zero, torch.zeros(3)) == 0
    cosine_distance(zero, one).backward()
    assert torch.equal(zero.grad, torch.zeros(3))


@pytest.mark.parametrize("name", ["combine", "embedding", "hidden", "ranking", "regularizers"])
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"hf_distill.losses.{name}")
    globs = {**vars(losses), "torch": torch}
    result = doctest.testmod(module, extraglobs=globs)
    assert result.attempted >= 2
    assert result.failed == 0


def test_imports_nothing_but_torch():
    code = (
        "import sys, hf_distill.losses; "
        "heavy = {'transformers', 'sentence_transformers', 'datasets', 'scipy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
