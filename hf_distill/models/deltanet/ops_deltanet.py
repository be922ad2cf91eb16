"""The (gated) delta rule: a token loop to read, and the exact chunk-parallel form to run.

Recurrence, for one head with state S (D, Dv), decay `a_t = exp(log_decay_t)` and step size `beta_t`:

    r_t = v_t - (a_t S_{t-1})^T k_t              what the decayed memory gets wrong about this token
    S_t = a_t S_{t-1} + beta_t k_t r_t^T         = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T
    o_t = S_t^T q_t                              (exclude_self: o_t = (a_t S_{t-1})^T q_t)

[`delta_rule_recurrent`] is these three lines in a loop. [`delta_rule_chunk`] solves each chunk of C tokens as one
unit lower triangular system and passes the state between chunks in two matrix products a chunk (WY form of
https://arxiv.org/abs/2406.06484, gated as in https://arxiv.org/abs/2412.06464). Both give the same values and gradients.

Layout: q, k (B, T, H, D), v (B, T, H, Dv), beta and log_decay (B, T, H), states (B, H, D, Dv). Keys should have unit length
and queries their scale already. A pad writes nothing and forgets nothing: beta = 0 and log_decay = 0 there, on any side.
Everything is computed in float32 (float64 where float64 is given), also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

try:  # optional, never a dependency: only called for half-precision tensors on CUDA
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as fla_chunk_gated_delta_rule
except ImportError:
    fla_chunk_gated_delta_rule = None


def upcast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """To one dtype: float64 if any is float64, float32 otherwise. `None` stays `None`."""
    dtype = torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t if t is None else t.to(dtype) for t in tensors)


def delta_rule_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    exclude_self: bool = False,
) -> tuple[Tensor, Tensor]:
    """The delta rule token by token: the reference, and the right form for decoding one token at a time.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys of unit length.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta (`torch.Tensor` of shape `(B, T, H)`): Step sizes in [0, 1]; 0 at pads.
        log_decay (`torch.Tensor` of shape `(B, T, H)`, *optional*): Log of the decay, <= 0; 0 at pads. `None`: no decay.
        initial_state (`torch.Tensor` of shape `(B, H, D, Dv)`, *optional*): State before the first token.
        exclude_self (`bool`, *optional*, defaults to `False`): Read the memory before the token is written. A reversed
            pass with it reads strictly later tokens, so that forward + reversed counts no token twice.

    Returns:
        Outputs `(B, T, H, Dv)` in the dtype of `v`, and the state after the last token `(B, H, D, Dv)`.
    """
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta, log_decay, state = upcast(q, k, v, beta, log_decay, initial_state)
        if state is None:
            state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
        outputs = []
        for t in range(q.shape[1]):
            if log_decay is not None:
                state = state * log_decay[:, t].exp()[..., None, None]
            key = k[:, t].unsqueeze(-1)  # (B, H, D, 1)
            residual = v[:, t].unsqueeze(-2) - key.transpose(-1, -2) @ state  # (B, H, 1, Dv)
            before = state
            state = state + key @ (beta[:, t, :, None, None] * residual)
            read = before if exclude_self else state
            outputs.append(q[:, t].unsqueeze(-2) @ read)
        return torch.cat(outputs, dim=2).transpose(1, 2).to(dtype), state


class _TriangularInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
        inverse = torch.linalg.solve_triangular(a, eye, upper=False, unitriangular=True)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        with torch.autocast(grad.device.type, enabled=False):
            transposed = ctx.saved_tensors[0].transpose(-1, -2)
            return (transposed @ grad @ transposed).tril_(-1).neg_()


def triangular_inverse(a: Tensor) -> Tensor:
    """Exact `(I + tril(a, -1))^-1`, differentiable through two products with the inverse itself.

    By forward substitution: its rounding error stays at 1e-7 where keys repeat, while Neumann doubling on 16 x 16 blocks
    loses four digits there (partial sums of the series reach binomial size before they cancel) and is no faster on a CPU.

    Args:
        a (`torch.Tensor` of shape `(..., C, C)`): Only the strictly lower triangle is read; float32 or float64.

    Returns:
        `torch.Tensor` of shape `(..., C, C)`, unit lower triangular.
    """
    return _TriangularInverse.apply(a)


def to_chunks(x: Tensor, chunk_size: int) -> Tensor:
    """(B, T, H, ...) -> (n, B * H, C, ...), chunks first so that a scan over them reads contiguous memory; T is zero-padded."""
    batch, length, heads = x.shape[:3]
    missing = -length % chunk_size
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    x = x.unflatten(1, (-1, chunk_size)).transpose(2, 3).transpose(0, 1)
    return x.reshape(-1, batch * heads, chunk_size, *x.shape[4:])


def from_chunks(x: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of [`to_chunks`]: (n, B * H, C, ...) -> (B, T, H, ...)."""
    x = x.unflatten(1, (batch, -1)).transpose(0, 1).transpose(2, 3)  # (B, n, C, H, ...)
    return x.flatten(1, 2)[:, :length]


class _ChunkScan(torch.autograd.Function):
    """`R_c = U_c - W_c S_c; S_{c+1} = M_c S_c + K_c^T R_c` over chunks, with the reversed scan written out.

    The loop holds two or three batched products a chunk and nothing else; the gradients of W, K and M are formed for all
    chunks at once afterwards.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, w: Tensor, k: Tensor, carry: Tensor | None, state: Tensor) -> tuple[Tensor, ...]:
        residuals = torch.empty_like(u, memory_format=torch.contiguous_format)
        states = state.new_empty(u.shape[0] + 1, *state.shape)
        states[0] = state
        for c in range(u.shape[0]):
            torch.baddbmm(u[c], w[c], states[c], alpha=-1, out=residuals[c])
            kept = states[c] if carry is None else _mix(carry[c], states[c])
            torch.baddbmm(kept, k[c].transpose(1, 2), residuals[c], out=states[c + 1])
        ctx.save_for_backward(residuals, w, k, carry, states)
        return residuals, states[:-1], states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_residuals: Tensor, grad_before: Tensor, grad_last: Tensor
    ) -> tuple[Tensor | None, ...]:
        residuals, w, k, carry, states = ctx.saved_tensors
        chunks = residuals.shape[0]
        with torch.autocast(residuals.device.type, enabled=False):
            grad_u = torch.empty_like(residuals)
            grad_states = torch.empty_like(states)
            grad_states[chunks] = grad_last
            for c in reversed(range(chunks)):
                after = grad_states[c + 1]
                torch.baddbmm(grad_residuals[c], k[c], after, out=grad_u[c])
                kept = grad_before[c] + (after if carry is None else _mix(carry[c].transpose(1, 2), after))
                torch.baddbmm(kept, w[c].transpose(1, 2), grad_u[c], alpha=-1, out=grad_states[c])
            before, after = states[:-1], grad_states[1:]
            grad_w = -_bmm(grad_u, before.transpose(-1, -2))
            grad_k = _bmm(residuals, after.transpose(-1, -2))
            grad_carry = None
            if carry is not None:
                rows = carry.shape[-1]
                grad_carry = _bmm(
                    after.reshape(*after.shape[:2], rows, -1),
                    before.reshape(*before.shape[:2], rows, -1).transpose(-1, -2),
                )
        return grad_u, grad_w, grad_k, grad_carry, grad_states[0]


def _mix(carry: Tensor, state: Tensor) -> Tensor:
    """(N, m, m) applied to the m memories stacked in the rows of (N, m * D, Dv)."""
    if carry.shape[-1] == 1:
        return state * carry
    return torch.bmm(carry, state.reshape(state.shape[0], carry.shape[-1], -1)).view_as(state)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """A batched product over the two leading dimensions."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


def chunk_scan(u: Tensor, w: Tensor, k: Tensor, carry: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Passes the state through n chunks: `R_c = U_c - W_c S_c` and `S_{c+1} = carry_c S_c + K_c^T R_c`.

    Args:
        u (`torch.Tensor` of shape `(n, N, P, Dv)`): Residuals for an empty memory; P residuals a chunk.
        w (`torch.Tensor` of shape `(n, N, P, m * D)`): What each residual reads of the state before the chunk.
        k (`torch.Tensor` of shape `(n, N, P, m * D)`): Where each residual is written, as seen at the end of the chunk.
        carry (`torch.Tensor` of shape `(n, N, m, m)`, *optional*): How m stacked memories decay into (and leak between)
            each other over a chunk. `None`: the identity.
        state (`torch.Tensor` of shape `(N, m * D, Dv)`): State before the first chunk.

    Returns:
        Residuals `(n, N, P, Dv)`, states before each chunk `(n, N, m * D, Dv)`, and the last state `(N, m * D, Dv)`.
    """
    return _ChunkScan.apply(u, w, k, carry, state)


def pairwise_decay(cumulative: Tensor) -> Tensor:
    """`exp(G_i - G_j)` for i >= j, 0 above the diagonal; masked before the exponential, which cannot overflow then."""
    size = cumulative.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=cumulative.device).triu_(1)
    return (cumulative.unsqueeze(-1) - cumulative.unsqueeze(-2)).masked_fill(later, float("-inf")).exp()


def delta_rule_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    exclude_self: bool = False,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """The delta rule, exactly, in chunks: the form to train with.

    With G the cumulative log decay inside a chunk, `P = tril(Q K^T exp(G_i - G_j))`, the residuals of all its tokens solve

        (I + tril(diag(beta) K K^T exp(G_i - G_j), -1)) (beta R) = beta (V - exp(G) K S)

    so that `O = P (beta R) + exp(G) Q S` and `S' = exp(G_C) S + (exp(G_C - G) K)^T (beta R)`.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys of unit length.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta (`torch.Tensor` of shape `(B, T, H)`): Step sizes in [0, 1]; 0 at pads.
        log_decay (`torch.Tensor` of shape `(B, T, H)`, *optional*): Log of the decay, <= 0; 0 at pads.
        initial_state (`torch.Tensor` of shape `(B, H, D, Dv)`, *optional*): State before the first token.
        exclude_self (`bool`, *optional*, defaults to `False`): Read the memory before the token is written.
        chunk_size (`int`, *optional*, defaults to `32`): Tokens a chunk. It changes the speed, not the result.

    Returns:
        As [`delta_rule_recurrent`]: outputs `(B, T, H, Dv)` and the last state `(B, H, D, Dv)`.

    Raises:
        ValueError: If `chunk_size` is not positive.

    Example:
        ```python
        >>> q, k, v = torch.randn(3, 2, 70, 4, 8).unbind()
        >>> k = torch.nn.functional.normalize(k, dim=-1)
        >>> o, state = delta_rule_chunk(q, k, v, beta=torch.rand(2, 70, 4))
        >>> o.shape, state.shape
        (torch.Size([2, 70, 4, 8]), torch.Size([2, 4, 8, 8]))

        ```
    """
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}; it must be at least 1.")
    if fla_chunk_gated_delta_rule is not None and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return _delta_rule_fla(q, k, v, beta, log_decay, initial_state, exclude_self)
    dtype, (batch, length, heads, dim) = v.dtype, q.shape
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta, log_decay, state = upcast(q, k, v, beta, log_decay, initial_state)
        if state is None:
            state = v.new_zeros(batch, heads, dim, v.shape[-1])
        chunk_size = min(chunk_size, length)
        q, k, v, beta = (to_chunks(x, chunk_size) for x in (q, k, v, beta))
        transposed = k.transpose(-1, -2)
        system, scores = k @ transposed, q @ transposed
        if log_decay is None:
            scores = scores.tril(-1 if exclude_self else 0)
            key_read, key_write, carry = k, k, None
        else:
            total = to_chunks(log_decay, chunk_size).cumsum(-1)
            decay = pairwise_decay(total)
            system, scores = system * decay, scores * decay
            if exclude_self:
                scores = scores.tril(-1)
            since_start = total.exp().unsqueeze(-1)
            q, key_read = q * since_start, k * since_start
            key_write = k * (total[..., -1:] - total).exp().unsqueeze(-1)
            carry = since_start[..., -1:, :]
        inverse = triangular_inverse(system * beta.unsqueeze(-1)) * beta.unsqueeze(-2)
        residuals, states, last = chunk_scan(inverse @ v, inverse @ key_read, key_write, carry, state.flatten(0, 1))
        out = torch.baddbmm(_bmm(scores, residuals).flatten(0, 1), q.flatten(0, 1), states.flatten(0, 1)).view_as(
            residuals
        )
        return from_chunks(out, batch, length).to(dtype), last.unflatten(0, (batch, heads))


def _delta_rule_fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    exclude_self: bool,
) -> tuple[Tensor, Tensor]:
    """[`delta_rule_chunk`] through flash-linear-attention's Triton kernel.

    The kernel cannot leave a token out of its own reading, but the next query can be asked one token early:
    `(a_t S_{t-1})^T q_t = S_{t-1}^T (a_t q_t)`.
    """
    decay = torch.zeros_like(beta, dtype=torch.float32) if log_decay is None else log_decay.float()
    query = q
    if exclude_self:
        scaled = q * decay.exp().unsqueeze(-1).to(q.dtype)
        query = F.pad(scaled[:, 1:], (0, 0, 0, 0, 0, 1))
    out, state = fla_chunk_gated_delta_rule(
        query,
        k.to(q.dtype),
        v.to(q.dtype),
        g=decay,
        beta=beta.to(q.dtype),
        scale=1.0,
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=True,
    )
    if exclude_self:
        first = torch.zeros_like(out[:, :1])
        if initial_state is not None:
            first = (scaled[:, 0].float().unsqueeze(-2) @ initial_state.float()).transpose(1, 2).to(out.dtype)
        out = torch.cat([first, out[:, :-1]], dim=1)
    return out.to(v.dtype), state
