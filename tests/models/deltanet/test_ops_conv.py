"""The shifted multiply-add convolution equals F.conv1d, values and gradients, and pads stay out of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.models.deltanet import ops_conv
from hf_distill.models.deltanet.ops_conv import dynamic_conv, dynamic_conv_naive, short_conv, short_conv_naive

LENGTHS = (1, 2, 3, 15, 16, 17, 33, 127, 300)


def _inputs(length: int, size: int, channels: int = 5, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(channels, size, generator=generator, dtype=torch.float64)
    mask = (torch.rand(batch, length, generator=generator) > 0.3).long()
    return x, weight, mask


def _check_equal(x: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> None:
    results = []
    for op in (short_conv, short_conv_naive):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = op(*leaves, mask, causal)
        cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
        results.append((out, *torch.autograd.grad(out, leaves, cotangent)))
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_conv1d(length: int, size: int, causal: bool) -> None:
    x, weight, mask = _inputs(length, size)
    _check_equal(x, weight, mask, causal)
    _check_equal(x, weight, None, causal)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 300), size=st.integers(1, 7), causal=st.booleans(), seed=st.integers(0, 1000))
def test_equals_conv1d_sampled(length: int, size: int, causal: bool, seed: int) -> None:
    x, weight, mask = _inputs(length, size, batch=2, seed=seed)
    _check_equal(x, weight, mask, causal)


@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(causal: bool) -> None:
    x, weight, mask = _inputs(7, 4, channels=2, batch=2)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: short_conv(a, b, mask, causal), leaves)


def test_causal_reads_no_later_token_and_centered_reads_one() -> None:
    x, weight, _ = _inputs(12, 4)
    changed = x.clone()
    changed[:, 6] += 1.0
    for causal, first, last in ((True, 6, 9), (False, 5, 8)):
        moved = (short_conv(changed, weight, None, causal) - short_conv(x, weight, None, causal)).abs().amax(
            (0, 2)
        ) > 0
        assert moved.nonzero().flatten().tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_either_side_changes_nothing(causal: bool) -> None:
    x, weight, _ = _inputs(9, 4)
    expected = short_conv(x, weight, None, causal)
    garbage = torch.full((3, 5, 5), 100.0, dtype=x.dtype)
    ones, zeros = torch.ones(3, 9), torch.zeros(3, 5)
    left = short_conv(torch.cat([garbage, x], 1), weight, torch.cat([zeros, ones], 1), causal)
    right = short_conv(torch.cat([x, garbage], 1), weight, torch.cat([ones, zeros], 1), causal)
    torch.testing.assert_close(left[:, 5:], expected)
    torch.testing.assert_close(right[:, :9], expected)
    assert not left[:, :5].any()
    assert not right[:, 9:].any()


def test_pads_are_zero_and_receive_no_gradient() -> None:
    x, weight, mask = _inputs(17, 3)
    mask[1] = 0  # a row of pads only
    x.requires_grad_()
    out = short_conv(x, weight, mask, causal=False)
    out.square().sum().backward()
    assert not out[mask == 0].any()
    assert not x.grad[mask == 0].any()
    assert torch.isfinite(x.grad).all()


def test_streaming_with_history_equals_the_full_run() -> None:
    x, weight, _ = _inputs(40, 4)
    full = short_conv(x, weight, None, causal=True)
    parts, history = [], x[:, :0]
    for chunk in x.split((1, 2, 13, 24), dim=1):
        seen = torch.cat([history, chunk], dim=1)
        parts.append(short_conv(seen, weight, None, causal=True)[:, history.shape[1] :])
        history = seen[:, -3:]
    torch.testing.assert_close(torch.cat(parts, dim=1), full)


def test_rows_do_not_depend_on_their_batch_mates() -> None:
    x, weight, mask = _inputs(33, 3)
    out = short_conv(x, weight, mask, causal=False)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(short_conv(x[order], weight, mask[order], causal=False), out[order])
    assert torch.equal(short_conv(x[1:2], weight, mask[1:2], causal=False), out[1:2])


def test_keeps_bfloat16_with_float32_weights() -> None:
    x, weight, mask = _inputs(16, 3)
    out = short_conv(x.bfloat16(), weight.float(), mask, causal=True)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), short_conv(x, weight, mask, causal=True), atol=0.1, rtol=0.05)


def test_wrong_weight_shape_is_named() -> None:
    x, weight, _ = _inputs(4, 3)
    with pytest.raises(ValueError, match="channels=5"):
        short_conv(x, weight.T, None, causal=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 31, 32, 33, 48, 130])  # one block up to 32, whole and cut ones beyond
def test_dynamic_taps_equal_the_reference_values_and_gradients(length: int, size: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(length + size)
    x = torch.randn(3, length, 2, 4, generator=generator, dtype=torch.float64)
    taps = torch.randn(3, length, 2, size, generator=generator, dtype=torch.float64)
    mask = (torch.rand(3, length, generator=generator) < 0.8).long()
    mask[0] = 0  # a row of pads only
    seen = []
    for op in (dynamic_conv, dynamic_conv_naive):
        leaves = x.clone().requires_grad_(), taps.clone().requires_grad_()
        out = op(*leaves, mask, causal)
        out.sin().sum().backward()
        seen.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for fast, naive in zip(*seen, strict=True):
        torch.testing.assert_close(fast, naive)
    assert not seen[0][0][mask == 0].any()


@pytest.mark.parametrize("short", [0, 32])
def test_dynamic_taps_gradcheck(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_conv, "_SHORT", short)  # 0: also this short text is cut into blocks
    monkeypatch.setattr(ops_conv, "_BLOCK", 2)
    x = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: dynamic_conv(*a, None, False), (x, taps))


def test_dynamic_taps_of_another_shape_are_named() -> None:
    with pytest.raises(ValueError, match="taps"):
        dynamic_conv(torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 3, 5), None, False)
