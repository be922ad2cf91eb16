"""The chunked delta rule equals the token loop, values and gradients; pads, chunk borders and batch mates do not exist."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.models.deltanet import ops_deltanet
from hf_distill.models.deltanet.ops_deltanet import delta_rule_chunk, delta_rule_recurrent, triangular_inverse

LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 300)


def _inputs(
    length: int, gated: bool = True, batch: int = 2, heads: int = 2, dim: int = 5, value_dim: int = 3, seed: int = 0
):
    """q, k, v, beta, log_decay, initial_state in float64, with pads at random inside."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = F.normalize(normal(2, batch, length, heads, dim), dim=-1).unbind()
    real = torch.rand(batch, length, 1, generator=generator) > 0.2
    beta = normal(batch, length, heads).sigmoid() * real
    log_decay = F.logsigmoid(normal(batch, length, heads) + 1) * real if gated else None
    return [q, k, normal(batch, length, heads, value_dim), beta, log_decay, normal(batch, heads, dim, value_dim)]


def _values_and_grads(op, tensors, **kwargs) -> list[torch.Tensor]:
    leaves = [None if x is None else x.clone().requires_grad_() for x in tensors]
    out, state = op(*leaves, **kwargs)
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out * cotangent).sum() + (state * state.detach().cos()).sum()
    return [out, state, *torch.autograd.grad(loss, [x for x in leaves if x is not None])]


def _check_equal(tensors, chunk_size: int = 32, exclude_self: bool = False, tolerance: float = 1e-10) -> None:
    fast = _values_and_grads(delta_rule_chunk, tensors, exclude_self=exclude_self, chunk_size=chunk_size)
    naive = _values_and_grads(delta_rule_recurrent, tensors, exclude_self=exclude_self)
    for actual, expected in zip(fast, naive, strict=True):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_token_loop(length: int, gated: bool, exclude_self: bool) -> None:
    _check_equal(_inputs(length, gated), exclude_self=exclude_self)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 300),
    chunk_size=st.sampled_from([1, 3, 7, 16, 17, 32, 48, 64, 301]),
    gated=st.booleans(),
    exclude_self=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_token_loop_sampled(length: int, chunk_size: int, gated: bool, exclude_self: bool, seed: int) -> None:
    if chunk_size < 7:
        length = min(length, 40)
    _check_equal(_inputs(length, gated, batch=1, seed=seed), chunk_size, exclude_self)


def test_recurrence_is_the_formula() -> None:
    """The loop against the equation written with explicit (D, D) projectors."""
    q, k, v, beta, log_decay, state = _inputs(9, batch=1, heads=1)
    out, last = delta_rule_recurrent(q, k, v, beta, log_decay, state)
    memory, eye = state[0, 0], torch.eye(5, dtype=q.dtype)
    for t in range(9):
        key, step = k[0, t, 0], beta[0, t, 0]
        projector = eye - step * torch.outer(key, key)
        memory = log_decay[0, t, 0].exp() * projector @ memory + step * torch.outer(key, v[0, t, 0])
        torch.testing.assert_close(out[0, t, 0], q[0, t, 0] @ memory)
    torch.testing.assert_close(last[0, 0], memory)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("exclude_self", [False, True])
def test_gradcheck(gated: bool, exclude_self: bool) -> None:
    tensors = [x if x is None else x.requires_grad_() for x in _inputs(5, gated, batch=1, heads=1, dim=3, value_dim=2)]
    assert torch.autograd.gradcheck(
        lambda *leaves: delta_rule_chunk(*leaves, exclude_self=exclude_self, chunk_size=2), tensors
    )


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 32, 33, 64, 100])
def test_triangular_inverse(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    a = torch.randn(3, size, size, generator=generator, dtype=torch.float64) / size**0.5
    a.requires_grad_()
    exact = torch.linalg.inv(torch.eye(size, dtype=a.dtype) + a.tril(-1))
    inverse = triangular_inverse(a)
    torch.testing.assert_close(inverse, exact, atol=1e-10, rtol=1e-10)
    cotangent = torch.randn(3, size, size, generator=generator, dtype=torch.float64).tril()
    grads = [torch.autograd.grad(x, a, cotangent)[0] for x in (inverse, exact)]
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-9)


def test_triangular_inverse_gradcheck() -> None:
    a = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(triangular_inverse, a)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_repeated_keys_stay_exact_in_float32(noise: float) -> None:
    """Alternating binomials cancel in the inverse here: series expansions lose four digits, substitution none."""
    generator = torch.Generator().manual_seed(0)
    k = F.normalize(
        torch.randn(1, 1, 1, 16, generator=generator) + noise * torch.randn(1, 64, 1, 16, generator=generator), dim=-1
    )
    v, beta = torch.randn(1, 64, 1, 16, generator=generator), torch.full((1, 64, 1), 0.95)
    exact, _ = delta_rule_recurrent(*(x.double() for x in (k, k, v, beta)))
    torch.testing.assert_close(delta_rule_chunk(k, k, v, beta)[0].double(), exact, atol=2e-6, rtol=1e-5)


def test_float32_is_close_to_float64_over_long_texts_and_strong_decay() -> None:
    q, k, v, beta, log_decay, state = _inputs(300, dim=32, value_dim=32)
    for decay in (None, log_decay, 30 * log_decay):  # exp(-G) alone would overflow float32 in the last one
        exact = _values_and_grads(delta_rule_recurrent, [q, k, v, beta, decay, state])
        tensors = [x if x is None else x.float() for x in (q, k, v, beta, decay, state)]
        for actual, expected in zip(_values_and_grads(delta_rule_chunk, tensors), exact, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(actual.double(), expected, atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("op", [delta_rule_recurrent, delta_rule_chunk])
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_changes_nothing(op, where: str) -> None:
    *tensors, state = _inputs(21)
    expected, expected_state = op(*tensors, state)
    position = {"left": 0, "right": 21, "inside": 8}[where]
    padded = []
    for x, filler in zip(tensors, (7.0, -9.0, 50.0, 0.0, 0.0), strict=True):
        pad = torch.full_like(x[:, :1], filler).expand(-1, 39, *x.shape[2:])
        padded.append(torch.cat([x[:, :position], pad, x[:, position:]], dim=1))
    out, last = op(*padded, state)
    real = torch.cat([out[:, :position], out[:, position + 39 :]], dim=1)
    torch.testing.assert_close(real, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(last, expected_state, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", [delta_rule_recurrent, delta_rule_chunk])
def test_row_of_pads_keeps_its_state_and_gives_finite_gradients(op) -> None:
    tensors = _inputs(40)
    tensors[3][1] = 0.0
    tensors[4][1] = 0.0
    out, state, *grads = _values_and_grads(op, tensors)
    assert torch.equal(state[1], tensors[5][1])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert not op(*tensors[:5])[0][1].any()
    assert out[0].any()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("splits", [(1, 99), (32, 68), (33, 50, 17), (99, 1)])
def test_state_carried_across_a_split_equals_the_full_run(splits: tuple[int, ...], gated: bool) -> None:
    *tensors, state = _inputs(100, gated)
    expected, expected_state = delta_rule_recurrent(*tensors, state)
    parts, start = [], 0
    for size in splits:
        chunk = [x if x is None else x[:, start : start + size] for x in tensors]
        part, state = delta_rule_chunk(*chunk, initial_state=state)
        parts.append(part)
        start += size
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(state, expected_state, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("op", [delta_rule_recurrent, delta_rule_chunk])
def test_causal_and_exclude_self_reads_strictly_earlier_tokens(op) -> None:
    *tensors, state = _inputs(50)
    tensors[3].clamp_(min=0.1)
    changed = [x.clone() for x in tensors]
    changed[1][:, 20] = changed[1][:, 20].flip(-1)
    changed[2][:, 20] += 1.0
    for exclude_self, first in ((False, 20), (True, 21)):
        outs = [op(*x, state, exclude_self)[0] for x in (tensors, changed)]
        moved = (outs[0] - outs[1]).abs().amax((0, 2, 3)) > 1e-9
        assert not moved[:first].any()
        assert moved[first]


def test_two_passes_count_no_token_twice() -> None:
    """One token alone: forward answers, the reversed pass that excludes it says nothing."""
    q, k, v, beta, log_decay, _ = _inputs(1)
    assert not delta_rule_chunk(q, k, v, beta, log_decay, exclude_self=True)[0].any()


def test_rows_do_not_depend_on_their_batch_mates() -> None:
    tensors = [x.float() for x in _inputs(70, batch=4)]
    out, state = delta_rule_chunk(*tensors)
    order = torch.tensor([2, 0, 3, 1])
    for rows in (order, order[:1]):
        part, part_state = delta_rule_chunk(*(x[rows] for x in tensors))
        torch.testing.assert_close(part, out[rows], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(part_state, state[rows], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("op", [delta_rule_recurrent, delta_rule_chunk])
def test_autocast_computes_in_float32(op) -> None:
    tensors = [x.bfloat16() for x in _inputs(70)]
    leaves = [[x.to(dtype).requires_grad_() for x in tensors] for dtype in (torch.bfloat16, torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = op(*leaves[0])
    exact, exact_state = op(*leaves[1])
    assert out.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert torch.equal(out, exact.bfloat16())
    assert torch.equal(state, exact_state)
    grads = [torch.autograd.grad(x.square().sum(), y[1:]) for x, y in zip((state, exact_state), leaves, strict=True)]
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(*grads, strict=True))


def test_backward_inside_autocast_does_not_fail() -> None:
    """Users forget to leave the context; PyTorch then runs its own backward products in bfloat16, ours stay float32."""
    tensors = [x.float() for x in _inputs(70)]
    exact = _values_and_grads(delta_rule_chunk, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = _values_and_grads(delta_rule_chunk, tensors)
    for actual, expected in zip(inside, exact, strict=True):
        torch.testing.assert_close(actual, expected, atol=0.1, rtol=0.1)


def test_accepts_strided_views_of_a_fused_projection() -> None:
    fused = torch.randn(2, 45, 2, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = fused.split(5, dim=-1)
    beta = torch.full((2, 45, 2), 0.1, dtype=torch.float64)
    torch.testing.assert_close(delta_rule_chunk(q, k, v, beta), delta_rule_recurrent(q, k, v, beta))


def test_bad_chunk_size_is_named() -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        delta_rule_chunk(*_inputs(4), chunk_size=0)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_fla_adapter_speaks_the_kernels_language(monkeypatch, exclude_self: bool, with_state: bool) -> None:
    """The adapter around fla's signature, with the token loop in the place of the Triton kernel."""

    def kernel(q, k, v, g, beta, scale, initial_state, output_final_state):
        assert q.dtype == k.dtype == v.dtype == beta.dtype == torch.bfloat16
        assert output_final_state
        return delta_rule_recurrent(q * scale, k, v, beta, g, initial_state)

    monkeypatch.setattr(ops_deltanet, "fla_chunk_gated_delta_rule", kernel)
    *tensors, state = _inputs(20)
    tensors = [x.bfloat16() for x in tensors]
    state = state.float() if with_state else None
    out, last = ops_deltanet._delta_rule_fla(*tensors, state, exclude_self)
    expected, expected_last = delta_rule_recurrent(*tensors, state, exclude_self)
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.02)
    torch.testing.assert_close(last, expected_last, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    not torch.cuda.is_available() or ops_deltanet.fla_chunk_gated_delta_rule is None,
    reason="needs a GPU and flash-linear-attention",
)
@pytest.mark.parametrize("exclude_self", [False, True])
def test_fla_kernel_equals_token_loop(exclude_self: bool) -> None:
    tensors = [x.cuda().bfloat16() for x in _inputs(300, dim=32, value_dim=32)]
    tensors[5] = tensors[5].float()
    fast = _values_and_grads(delta_rule_chunk, tensors, exclude_self=exclude_self)
    naive = _values_and_grads(delta_rule_recurrent, tensors, exclude_self=exclude_self)
    for actual, expected in zip(fast, naive, strict=True):
        error = (actual.float() - expected.float()).norm() / expected.float().norm()
        assert error < 2e-2
