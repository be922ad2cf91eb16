"""The chunked pair of memories equals the token loop for every kind of coupling; pads and chunk borders do not exist."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.models.deltanet.ops_deltanet import delta_rule_recurrent
from hf_distill.models.deltanet.ops_timescales import two_timescale_chunk, two_timescale_recurrent

LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 300)
OPS = (two_timescale_recurrent, two_timescale_chunk)


def _inputs(
    length: int, coupled: bool = True, batch: int = 2, heads: int = 2, dim: int = 4, value_dim: int = 3, seed: int = 0
):
    """q, k, v, two betas, two log decays, coupling, S_fast, S_slow in float64, with pads at random inside."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = F.normalize(normal(2, batch, length, heads, dim), dim=-1).unbind()
    real = torch.rand(batch, length, 1, generator=generator) > 0.2
    total, share = normal(2, batch, length, heads).sigmoid().unbind()
    fast = F.logsigmoid(normal(batch, length, heads) - 1) * real
    slow = F.logsigmoid(normal(batch, length, heads) + 2) * real
    coupling = None
    if coupled:
        leak = 0.5 * normal(batch, length, heads, 2, 1).sigmoid()
        coupling = torch.cat([1 - leak, leak], dim=-1)
        coupling = torch.stack([coupling[..., 0, :], coupling[..., 1, :].flip(-1)], dim=-2)
        coupling = torch.where(real[..., None, None], coupling, torch.eye(2, dtype=coupling.dtype))
    states = normal(2, batch, heads, dim, value_dim).unbind()
    values = normal(batch, length, heads, value_dim)
    return [q, k, values, total * share * real, total * (1 - share) * real, fast, slow, coupling, *states]


def _run(op, tensors, joint: bool, **kwargs) -> list[torch.Tensor]:
    *tensors, fast, slow = tensors
    out_fast, out_slow, states = op(*tensors, joint=joint, initial_state=(fast, slow), **kwargs)
    return [out_fast, out_slow, *states]


def _values_and_grads(op, tensors, joint: bool, **kwargs) -> list[torch.Tensor]:
    leaves = [None if x is None else x.clone().requires_grad_() for x in tensors]
    results = _run(op, leaves, joint, **kwargs)
    loss = sum(
        (torch.linspace(-1, 2 + i, x.numel(), dtype=x.dtype).view_as(x) * x).sum() for i, x in enumerate(results)
    )
    return [*results, *torch.autograd.grad(loss, [x for x in leaves if x is not None])]


def _check_equal(tensors, joint: bool, tolerance: float = 1e-10, **kwargs) -> None:
    exclude_self = kwargs.get("exclude_self", False)
    fast = _values_and_grads(two_timescale_chunk, tensors, joint, **kwargs)
    naive = _values_and_grads(two_timescale_recurrent, tensors, joint, exclude_self=exclude_self)
    for actual, expected in zip(fast, naive, strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_token_loop(length: int, coupled: bool, joint: bool) -> None:
    _check_equal(_inputs(length, coupled), joint)


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 300),
    chunk_size=st.sampled_from([1, 3, 7, 16, 17, 32, 301]),
    coupled=st.booleans(),
    joint=st.booleans(),
    exclude_self=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_token_loop_sampled(
    length: int, chunk_size: int, coupled: bool, joint: bool, exclude_self: bool, seed: int
) -> None:
    length = min(length, 40) if chunk_size in (1, 3, 301) else length
    tensors = _inputs(length, coupled, batch=1, seed=seed)
    _check_equal(tensors, joint, chunk_size=chunk_size, exclude_self=exclude_self)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
def test_gradcheck(coupled: bool, joint: bool) -> None:
    tensors = _inputs(4, coupled, batch=1, heads=1, dim=2, value_dim=2)
    leaves = [x if x is None else x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(
        lambda *x: tuple(_run(two_timescale_chunk, x, joint, chunk_size=3)), leaves, atol=1e-6
    )


@pytest.mark.parametrize("op", OPS)
def test_without_shared_error_or_coupling_they_are_two_delta_rules(op) -> None:
    q, k, v, beta_fast, beta_slow, fast, slow, _, state_fast, state_slow = tensors = _inputs(40, coupled=False)
    results = _run(op, tensors, joint=False)
    for i, args in enumerate(((beta_fast, fast, state_fast), (beta_slow, slow, state_slow))):
        out, state = delta_rule_recurrent(q, k, v, *args)
        torch.testing.assert_close(results[i], out, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(results[i + 2], state, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_joint_error_with_equal_decays_is_one_delta_rule(op) -> None:
    """S_fast + S_slow then follows the delta rule with the sum of both step sizes."""
    tensors = _inputs(40, coupled=False)
    tensors[6] = tensors[5]
    q, k, v, beta_fast, beta_slow, decay, _, _, fast, slow = tensors
    results = _run(op, tensors, joint=True)
    out, state = delta_rule_recurrent(q, k, v, beta_fast + beta_slow, decay, fast + slow)
    torch.testing.assert_close(results[0] + results[1], out, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(results[2] + results[3], state, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
def test_coupling_is_to_from(op) -> None:
    """A full move from fast to slow before the only token: slow holds what fast held, fast only what is written."""
    tensors = _inputs(1, batch=1, heads=1)
    tensors[3][:], tensors[4][:], tensors[5][:], tensors[6][:] = 0.5, 0.0, 0.0, 0.0
    tensors[7][:] = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    out_fast, out_slow, fast, slow = _run(op, tensors, joint=False)
    torch.testing.assert_close(slow, tensors[8])
    torch.testing.assert_close(fast[0, 0], torch.outer(tensors[1].flatten(), 0.5 * tensors[2].flatten()))
    torch.testing.assert_close(out_slow.flatten(), tensors[0].flatten() @ tensors[8][0, 0])


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
def test_float32_is_close_even_under_strong_decay(coupled: bool, joint: bool) -> None:
    """Dividing by cumulative products would overflow here: a chunk decays by far more than float32 can hold."""
    tensors = _inputs(300, coupled, dim=16, value_dim=16)
    tensors[5], tensors[6] = 30 * tensors[5], 10 * tensors[6]
    exact = _values_and_grads(two_timescale_recurrent, tensors, joint)
    for size in (16, 32):
        single = [x if x is None else x.float() for x in tensors]
        for actual, expected in zip(
            _values_and_grads(two_timescale_chunk, single, joint, chunk_size=size), exact, strict=True
        ):
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(actual.double(), expected, atol=5e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("where", ["left", "right", "inside"])
def test_padding_changes_nothing(op, where: str, coupled: bool, joint: bool) -> None:
    tensors = _inputs(21, coupled)
    expected = _run(op, tensors, joint)
    position = {"left": 0, "right": 21, "inside": 8}[where]
    eye = torch.eye(2, dtype=torch.float64)
    padded = []
    for x, filler in zip(tensors[:8], (7.0, -9.0, 50.0, 0.0, 0.0, 0.0, 0.0, eye), strict=True):
        if x is not None:
            pad = torch.zeros_like(x[:, :1]).expand(-1, 27, *x.shape[2:]) + filler
            x = torch.cat([x[:, :position], pad, x[:, position:]], dim=1)
        padded.append(x)
    results = _run(op, [*padded, *tensors[8:]], joint)
    for i, x in enumerate(results):
        if i < 2:
            x = torch.cat([x[:, :position], x[:, position + 27 :]], dim=1)
        torch.testing.assert_close(x, expected[i], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("joint", [True, False])
def test_row_of_pads_keeps_its_states_and_gives_finite_gradients(op, joint: bool) -> None:
    tensors = _inputs(40)
    for x in tensors[3:7]:
        x[1] = 0.0
    tensors[7][1] = torch.eye(2, dtype=torch.float64)
    out_fast, out_slow, fast, slow, *grads = _values_and_grads(op, tensors, joint)
    torch.testing.assert_close(fast[1], tensors[8][1], atol=1e-14, rtol=0)
    torch.testing.assert_close(slow[1], tensors[9][1], atol=1e-14, rtol=0)
    assert all(torch.isfinite(grad).all() for grad in grads)
    empty_fast, empty_slow, _ = op(*tensors[:8], joint=joint)
    assert not empty_fast[1].any()
    assert not empty_slow[1].any()
    assert empty_fast[0].any()


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("splits", [(1, 99), (16, 84), (33, 50, 17)])
def test_states_carried_across_a_split_equal_the_full_run(splits: tuple[int, ...], coupled: bool, joint: bool) -> None:
    tensors = _inputs(100, coupled)
    expected = _run(two_timescale_recurrent, tensors, joint)
    states, start, parts = tensors[8:], 0, []
    for size in splits:
        chunk = [x if x is None else x[:, start : start + size] for x in tensors[:8]]
        *outs, fast, slow = _run(two_timescale_chunk, [*chunk, *states], joint)
        parts.append(outs)
        states = [fast, slow]
        start += size
    results = [torch.cat(x, dim=1) for x in zip(*parts, strict=True)] + states
    for actual, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("coupled", [True, False])
def test_exclude_self_reads_strictly_earlier_tokens(op, coupled: bool) -> None:
    tensors = _inputs(40, coupled)
    tensors[3].clamp_(min=0.1)
    tensors[4].clamp_(min=0.1)
    changed = [x if x is None else x.clone() for x in tensors]
    changed[2][:, 20] += 1.0
    for exclude_self, first in ((False, 20), (True, 21)):
        pairs = zip(*(_run(op, x, True, exclude_self=exclude_self)[:2] for x in (tensors, changed)), strict=True)
        for before, after in pairs:
            moved = (before - after).abs().amax((0, 2, 3)) > 1e-9
            assert not moved[:first].any()
            assert moved[first]


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
def test_rows_do_not_depend_on_their_batch_mates(coupled: bool, joint: bool) -> None:
    tensors = [x if x is None else x.float() for x in _inputs(40, coupled, batch=4)]
    results = _run(two_timescale_chunk, tensors, joint)
    order = torch.tensor([2, 0, 3, 1])
    for rows in (order, order[:1]):
        part = _run(two_timescale_chunk, [x if x is None else x[rows] for x in tensors], joint)
        for actual, expected in zip(part, results, strict=True):
            torch.testing.assert_close(actual, expected[rows], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
def test_autocast_computes_in_float32(op, coupled: bool, joint: bool) -> None:
    tensors = [x if x is None else x.bfloat16() for x in _inputs(40, coupled)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = _run(op, tensors, joint)
    exact = _run(op, [x if x is None else x.float() for x in tensors], joint)
    assert [x.dtype for x in results] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for actual, expected in zip(results, exact, strict=True):
        assert torch.equal(actual, expected.to(actual.dtype))


@pytest.mark.parametrize("joint", [True, False])
def test_bad_chunk_size_is_named(joint: bool) -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        _run(two_timescale_chunk, _inputs(4, coupled=False), joint, chunk_size=0)
