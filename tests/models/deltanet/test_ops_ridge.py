"""The ridge mixer equals its explicit reference, and its sums merge, stream, ignore pads, order and batch mates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.models.deltanet.ops_ridge import (
    RidgeSums,
    merge_ridge_sums,
    ridge_mix,
    ridge_mix_by_tokens,
    ridge_naive,
    ridge_read,
    ridge_solve,
    ridge_sums,
)

FORMS = pytest.mark.parametrize("mix", [ridge_mix, ridge_mix_by_tokens])
LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 300)


def _inputs(
    length: int, batch: int = 2, heads: int = 2, dim: int = 6, value_dim: int = 4, seed: int = 0, masked: bool = True
) -> list[torch.Tensor]:
    """q, k, v, beta, lam in float64; beta is 0 at random inside pads."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = normal(2, batch, length, heads, dim).unbind()
    v = normal(batch, length, heads, value_dim) + 0.5
    beta = normal(batch, length, heads).sigmoid()
    if masked:
        beta = beta * (torch.rand(batch, length, 1, generator=generator) > 0.25)
    return [q, k + 0.3, v, beta, torch.linspace(0.05, 0.5, heads, dtype=torch.float64)]


def _values_and_grads(op, tensors: list[torch.Tensor], center: bool) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = op(*leaves, center)
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, leaves, cotangent, allow_unused=True, materialize_grads=True)]


def _check_equal(tensors: list[torch.Tensor], center: bool, mix=ridge_mix) -> None:
    # a pad's beta is a constant 0: the reference never sees the token, so compare real ones only
    real = tensors[3] > 0
    fast, naive = (_values_and_grads(op, tensors, center) for op in (mix, ridge_naive))
    fast[4], naive[4] = fast[4][real], naive[4][real]
    for actual, expected in zip(fast, naive, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_reference(length: int, center: bool) -> None:
    _check_equal(_inputs(length), center)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_solving_over_tokens_equals_reference(length: int, center: bool) -> None:
    _check_equal(_inputs(length), center, ridge_mix_by_tokens)


def test_solves_the_smaller_of_the_two_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, solve = [], torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda matrix: sizes.append(matrix.shape[-1]) or solve(matrix))
    for length in (1, 5, 6, 20):
        ridge_mix(*_inputs(length, dim=6))
    assert sizes == [1, 5, 6, 6]


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 300), seed=st.integers(0, 1000), center=st.booleans(), value_dim=st.integers(1, 7))
def test_equals_reference_sampled(length: int, seed: int, center: bool, value_dim: int) -> None:
    _check_equal(_inputs(length, value_dim=value_dim, seed=seed), center)


@FORMS
@pytest.mark.parametrize("center", [True, False])
def test_gradcheck(mix, center: bool) -> None:
    leaves = [x.requires_grad_() for x in _inputs(5, dim=3, value_dim=2, masked=False)]
    assert torch.autograd.gradcheck(lambda *tensors: mix(*tensors, center), leaves)


@FORMS
@pytest.mark.parametrize("center", [True, False])
def test_float32_is_close_and_survives_few_or_repeated_keys(mix, center: bool) -> None:
    tensors = _inputs(300, dim=32, value_dim=32)
    expected = ridge_naive(*tensors, center)
    torch.testing.assert_close(mix(*(x.float() for x in tensors), center).double(), expected, atol=1e-4, rtol=1e-4)
    q, k, v, beta, _ = (x.float() for x in tensors)
    same = (10 * k[:, :1]).expand_as(k)  # one distinct key and no ridge to speak of: singular up to rounding
    assert torch.isfinite(mix(q, same, v, beta, torch.full((2,), 1e-9), center)).all()
    assert torch.isfinite(mix(q, same, v, beta, torch.full((2,), -1.0), center)).all()


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("splits", [(1, 299), (32, 100, 1, 167), (150, 150)])
def test_sums_merge_over_chunks(splits: tuple[int, ...], center: bool) -> None:
    q, k, v, beta, lam = _inputs(300)
    parts = [ridge_sums(*chunk) for chunk in zip(*(x.split(splits, dim=1) for x in (k, v, beta)), strict=True)]
    merged = parts[-1]
    for part in reversed(parts[:-1]):  # any order
        merged = merge_ridge_sums(merged, part)
    for actual, expected in zip(merged, ridge_sums(k, v, beta), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    streamed = torch.cat([ridge_read(c, ridge_solve(merged, lam, center)) for c in q.split(splits, dim=1)], dim=1)
    torch.testing.assert_close(streamed, ridge_mix(q, k, v, beta, lam, center), atol=1e-10, rtol=1e-10)


def test_merging_is_bit_exact_where_arithmetic_is() -> None:
    """With small integers no rounding hides a lost or doubled token."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randint(-4, 5, (2, 2, 101, 3, 5), generator=generator).double().unbind()
    beta = torch.randint(0, 3, (2, 101, 3), generator=generator).double()
    full = ridge_sums(k, v, beta)
    merged = merge_ridge_sums(
        ridge_sums(k[:, 37:], v[:, 37:], beta[:, 37:]), ridge_sums(k[:, :37], v[:, :37], beta[:, :37])
    )
    assert all(torch.equal(a, b) for a, b in zip(full, merged, strict=True))
    assert torch.equal(full.gram, torch.einsum("bthd,bth,bthe->bhde", k, beta, k))
    assert torch.equal(full.cross, torch.einsum("bthd,bth,bthe->bhde", k, beta, v))
    assert torch.equal(full.key_sum, torch.einsum("bthd,bth->bhd", k, beta))
    assert torch.equal(full.value_sum, torch.einsum("bthd,bth->bhd", v, beta))
    assert torch.equal(full.weight, beta.sum(1))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_changes_nothing(where: str, center: bool) -> None:
    tensors = _inputs(21, masked=False)
    expected = ridge_mix(*tensors, center)
    position = {"left": 0, "right": 21, "inside": 8}[where]
    padded = []
    for x, filler in zip(tensors[:4], (7.0, -9.0, 50.0, 0.0), strict=True):
        pad = torch.full_like(x[:, :1], filler).expand(-1, 11, *x.shape[2:])
        padded.append(torch.cat([x[:, :position], pad, x[:, position:]], dim=1))
    out = ridge_mix(*padded, tensors[4], center)
    real = torch.cat([out[:, :position], out[:, position + 11 :]], dim=1)
    torch.testing.assert_close(real, expected, atol=1e-12, rtol=1e-12)


@FORMS
@pytest.mark.parametrize("center", [True, False])
def test_row_of_pads_gives_zero_and_finite_gradients(mix, center: bool) -> None:
    tensors = [x.float() for x in _inputs(9, batch=3)]
    tensors[3][1] = 0.0
    out, *grads = _values_and_grads(mix, tensors, center)
    assert not out[1].any()
    assert out[0].any()
    assert all(torch.isfinite(grad).all() for grad in grads)
    torch.testing.assert_close(out, _values_and_grads(ridge_naive, tensors, center)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("center", [True, False])
def test_order_and_repetition_of_the_text_do_not_matter(center: bool) -> None:
    """No scan: permuting the tokens permutes the outputs. Normalised: reading a text twice changes nothing."""
    q, k, v, beta, lam = _inputs(40)
    out = ridge_mix(q, k, v, beta, lam, center)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ridge_mix(*(x[:, order] for x in (q, k, v, beta)), lam, center), out[:, order])
    twice = ridge_mix(*(torch.cat([x, x], dim=1) for x in (q, k, v, beta)), lam, center)
    torch.testing.assert_close(twice[:, :40], out)


def test_intercept_makes_the_output_follow_a_shift_of_the_values() -> None:
    q, k, v, beta, lam = _inputs(30)
    shifted = ridge_mix(q, k, v + 3.0, beta, lam, center=True)
    torch.testing.assert_close(shifted, ridge_mix(q, k, v, beta, lam, center=True) + 3.0)


def test_strong_ridge_is_the_mean_and_weak_ridge_interpolates() -> None:
    q, k, v, beta, _ = _inputs(4, dim=6, masked=False)
    mean = ((beta / beta.sum(1, keepdim=True)).unsqueeze(-1) * v).sum(1, keepdim=True).expand_as(v)
    torch.testing.assert_close(ridge_mix(q, k, v, beta, torch.full((2,), 1e9), True), mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ridge_mix(k, k, v, beta, torch.full((2,), 1e-9), True), v, atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_their_batch_mates() -> None:
    q, k, v, beta, lam = (x.float() for x in _inputs(33, batch=4))
    out = ridge_mix(q, k, v, beta, lam)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        ridge_mix(q[order], k[order], v[order], beta[order], lam), out[order], atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(ridge_mix(q[1:2], k[1:2], v[1:2], beta[1:2], lam), out[1:2], atol=1e-6, rtol=1e-6)


def test_autocast_keeps_sums_and_solve_in_float32() -> None:
    q, k, v, beta, lam = (x.bfloat16() for x in _inputs(65))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = ridge_sums(k, v, beta)
        solution = ridge_solve(sums, lam)
        out = ridge_mix(q, k, v, beta, lam)
    assert isinstance(sums, RidgeSums)
    assert {x.dtype for x in (*sums, *solution)} == {torch.float32}
    assert out.dtype == torch.bfloat16
    exact = ridge_mix(*(x.float() for x in (q, k, v, beta, lam)))
    assert torch.equal(out, exact.bfloat16())


def test_not_finite_input_is_an_error_not_a_nan() -> None:
    q, k, v, beta, lam = _inputs(5)
    k[0, 0, 0, 0] = float("nan")
    beta[0, 0] = 1.0
    with pytest.raises(torch.linalg.LinAlgError):
        ridge_mix(q, k, v, beta, lam)
