"""Hidden-state loss and its padding, the layer map, and PCA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_distill.losses import hidden_state_loss, layer_map, pca_projection


def states(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31), lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), relative=st.booleans())
@settings(max_examples=40, deadline=None)
def test_matches_a_loop_over_real_tokens(seed, lengths, relative):
    student, teacher = states(seed, len(lengths), 5, 3), states(seed + 1, len(lengths), 5, 3)
    mask = torch.arange(5)[None, :] < torch.tensor(lengths)[:, None]
    real = [(student[b, t], teacher[b, t]) for b, n in enumerate(lengths) for t in range(n)]
    error = sum(((s - t) ** 2).sum().item() for s, t in real)
    scale = sum((t**2).sum().item() for _, t in real) if relative else 3 * len(real)
    value = hidden_state_loss(student, teacher, mask, relative=relative)
    assert value.item() == pytest.approx(error / scale if real else 0.0)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_changes_neither_value_nor_gradient(relative, garbage, mask_dtype):
    student, teacher = states(0, 2, 3, 4).requires_grad_(), states(1, 2, 3, 4)
    exact = hidden_state_loss(student, teacher, torch.ones(2, 3), relative=relative)
    (exact_grad,) = torch.autograd.grad(exact, student)

    pad = torch.full((2, 2, 4), garbage, dtype=torch.float64)
    longer = torch.cat([student.detach(), pad], dim=1).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2).to(mask_dtype)
    value = hidden_state_loss(longer, torch.cat([teacher, pad], dim=1), mask, relative=relative)
    value.backward()
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(longer.grad[:, :3], exact_grad)
    assert torch.equal(longer.grad[:, 3:], torch.zeros(2, 2, 4))

    left_mask = mask.flip(dims=(1,))
    left = hidden_state_loss(
        torch.cat([pad, student], dim=1), torch.cat([pad, teacher], dim=1), left_mask, relative=relative
    )
    torch.testing.assert_close(left, exact)


def test_all_padding_is_zero_with_zero_gradient():
    student = states(2, 2, 3, 4).requires_grad_()
    for relative in (True, False):
        value = hidden_state_loss(student, states(3, 2, 3, 4), torch.zeros(2, 3), relative=relative)
        (grad,) = torch.autograd.grad(value, student)
        assert value == 0
        assert torch.equal(grad, torch.zeros_like(grad))


def test_relative_error_ignores_the_unit_and_predicting_zero_costs_one():
    student, teacher = states(4, 2, 3, 4), states(5, 2, 3, 4)
    torch.testing.assert_close(hidden_state_loss(10 * student, 10 * teacher), hidden_state_loss(student, teacher))
    assert hidden_state_loss(torch.zeros_like(teacher), teacher).item() == pytest.approx(1)
    assert hidden_state_loss(teacher, teacher) == 0


def test_masked_gradient_is_the_derivative():
    student, teacher = states(6, 2, 3, 2).requires_grad_(), states(7, 2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert torch.autograd.gradcheck(lambda x: hidden_state_loss(x, teacher, mask), student)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"384 wide, the teacher 768.*pca_projection"):
        hidden_state_loss(torch.zeros(1, 2, 384), torch.zeros(1, 2, 768))
    with pytest.raises(ValueError, match=r"mask \(2, 1\) must have the shape \(1, 2\)"):
        hidden_state_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(2, 1))


@given(student=st.integers(1, 30), teacher=st.integers(1, 30))
def test_uniform_map_is_monotone_spaced_evenly_and_ends_last(student, teacher):
    layers = layer_map(student, teacher)
    assert len(layers) == student
    assert layers == sorted(layers)
    assert layers[-1] == teacher - 1
    if student > 1:
        steps = [b - a for a, b in zip(layers, layers[1:], strict=False)]
        assert layers[0] == 0
        assert max(steps) - min(steps) <= 1
    if student == teacher:
        assert layers == list(range(teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "strategy", "expected"),
    [
        (3, 6, "uniform", [0, 2, 5]),
        (2, 6, "uniform", [0, 5]),
        (6, 12, "uniform", [0, 2, 4, 6, 8, 11]),
        (4, 2, "uniform", [0, 0, 0, 1]),
        (2, 6, "first", [0, 1]),
        (2, 6, "last", [4, 5]),
        (3, 6, (1, 3, 5), [1, 3, 5]),
    ],
)
def test_layer_maps(student, teacher, strategy, expected):
    assert layer_map(student, teacher, strategy) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "strategy", "message"),
    [
        (0, 6, "uniform", "at least one layer"),
        (2, 0, "uniform", "at least one layer"),
        (7, 6, "first", r"'first' cannot give 7 student layers out of 6"),
        (7, 6, "last", r"use 'uniform' or a list"),
        (2, 6, "middle", r"unknown strategy 'middle'; use 'uniform', 'first', 'last'"),
        (2, 6, [0, 1, 2], r"must list 2 teacher layers"),
        (2, 6, [0, 6], r"each in 0\.\.\.5"),
        (2, 6, [-1, 0], r"each in 0\.\.\.5"),
    ],
)
def test_impossible_layer_maps_are_errors(student, teacher, strategy, message):
    with pytest.raises(ValueError, match=message):
        layer_map(student, teacher, strategy)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_pca_is_the_best_orthonormal_projection(center, dtype):
    samples = (states(8, 60, 6) * torch.tensor([5, 3, 2, 1, 0.5, 0.1]) + 1).to(dtype)
    components, mean = pca_projection(samples, 2, center=center)
    assert components.dtype == mean.dtype == torch.promote_types(dtype, torch.float32)
    components, mean, x = components.double(), mean.double(), samples.double()
    torch.testing.assert_close(components @ components.T, torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        mean, x.mean(dim=0) if center else torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0
    )
    residual = (x - mean) - (x - mean) @ components.T @ components
    optimum = torch.linalg.svdvals(x - mean)[2:].square().sum()
    assert residual.square().sum().item() == pytest.approx(optimum.item(), rel=1e-4)
    variances = ((x - mean) @ components.T).square().sum(dim=0)
    assert variances[0] > variances[1]


def test_pca_does_not_depend_on_the_order_or_sign_of_the_samples():
    samples = states(9, 50, 5)
    components, _ = pca_projection(samples, 3)
    torch.testing.assert_close(pca_projection(samples.flip(dims=(0,)), 3)[0], components)
    torch.testing.assert_close(pca_projection(-samples, 3)[0], components)
    assert (components.gather(1, components.abs().argmax(dim=1, keepdim=True)) > 0).all()
    whole, _ = pca_projection(samples, 5)
    torch.testing.assert_close((samples @ whole.T) @ (samples @ whole.T).T, samples @ samples.T)


def test_pca_of_samples_on_a_line_is_still_orthonormal():
    samples = torch.outer(torch.arange(8.0), torch.ones(4))
    components, _ = pca_projection(samples, 3)
    torch.testing.assert_close(components @ components.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(components[0], torch.full((4,), 0.5))


def test_pca_rejects_bad_samples():
    with pytest.raises(ValueError, match=r"\(N, D_in\), but have \(4,\)"):
        pca_projection(torch.zeros(4), 2)
    with pytest.raises(ValueError, match=r"dim must be in 1\.\.\.4.*is 5"):
        pca_projection(torch.zeros(9, 4), 5)
    with pytest.raises(ValueError, match="need more than 3 samples, but there are 3"):
        pca_projection(torch.zeros(3, 4), 3)
    bad = torch.zeros(9, 4)
    bad[6, 1] = float("nan")
    with pytest.raises(ValueError, match="row 6 .* NaN"):
        pca_projection(bad, 2)
