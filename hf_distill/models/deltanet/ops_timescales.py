"""Two coupled delta-rule memories, S_fast and S_slow: a token loop to read, and the exact chunk-parallel form to run.

Both memories share keys, values and queries and differ in decay `a_x = exp(log_decay_x)` and step size `beta_x`. One token:

    D_x = a_x S_x                                                     each memory forgets
    M_x = sum_y coupling[x, y] D_y                                    they leak into each other (identity without coupling)
    r   = v - (M_fast + M_slow)^T k       joint: one shared error     r_x = v - M_x^T k     separate: an error each
    S_x = M_x + beta_x k r^T                                          S_x = M_x + beta_x k r_x^T
    o_x = S_x^T q                                                     (exclude_self: o_x = M_x^T q)

The coupling acts on the memory index and the delta rule on the key index, so both commute and a chunk stays one unit lower
triangular system: with `E[i, j] = prod_{j < t <= i} coupling_t diag(a_t)` (2 x 2), token j reaches token i as
`(k_i . k_j) E[i, j] beta_j r_j`. The products E are built row by row, never by dividing by a product, so nothing
overflows however small the decays are.

A joint error is written by both memories: keep `beta_fast + beta_slow` within [0, 1] (below 2 at least), as for one memory.
Layout and padding as in `ops_deltanet`; the coupling (B, T, H, 2, 2), `[to, from]` with fast first, is the identity at pads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops_deltanet import (
    chunk_scan,
    delta_rule_chunk,
    from_chunks,
    pairwise_decay,
    to_chunks,
    triangular_inverse,
    upcast,
)


def two_timescale_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta_fast: Tensor,
    beta_slow: Tensor,
    log_decay_fast: Tensor,
    log_decay_slow: Tensor,
    coupling: Tensor | None = None,
    joint: bool = True,
    initial_state: tuple[Tensor, Tensor] | None = None,
    exclude_self: bool = False,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Two memories token by token: the reference, and the right form for decoding one token at a time.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys of unit length.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta_fast (`torch.Tensor` of shape `(B, T, H)`): Step sizes of the fast memory; 0 at pads.
        beta_slow (`torch.Tensor` of shape `(B, T, H)`): Step sizes of the slow memory; 0 at pads.
        log_decay_fast (`torch.Tensor` of shape `(B, T, H)`): Log decays of the fast memory, <= 0; 0 at pads.
        log_decay_slow (`torch.Tensor` of shape `(B, T, H)`): Log decays of the slow memory, <= 0; 0 at pads.
        coupling (`torch.Tensor` of shape `(B, T, H, 2, 2)`, *optional*): How the memories leak into each other before each
            write, `[to, from]`; identity at pads. `None`: not at all.
        joint (`bool`, *optional*, defaults to `True`): Both memories learn from what their sum gets wrong; otherwise each
            from its own error.
        initial_state (pair of `torch.Tensor` of shape `(B, H, D, Dv)`, *optional*): (S_fast, S_slow) before the first token.
        exclude_self (`bool`, *optional*, defaults to `False`): Read before the token is written, for a reversed pass.

    Returns:
        Outputs of the fast and of the slow memory, each `(B, T, H, Dv)` in the dtype of `v`, and (S_fast, S_slow) after the
        last token, each `(B, H, D, Dv)`.
    """
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):
        fast, slow = (None, None) if initial_state is None else initial_state
        q, k, v, beta_fast, beta_slow, log_decay_fast, log_decay_slow, coupling, fast, slow = upcast(
            q, k, v, beta_fast, beta_slow, log_decay_fast, log_decay_slow, coupling, fast, slow
        )
        if fast is None:
            fast = slow = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
        outputs_fast, outputs_slow = [], []
        for t in range(q.shape[1]):
            fast = fast * log_decay_fast[:, t].exp()[..., None, None]
            slow = slow * log_decay_slow[:, t].exp()[..., None, None]
            if coupling is not None:
                rho = coupling[:, t, :, :, :, None, None]  # (B, H, to, from, 1, 1)
                fast, slow = (
                    rho[:, :, 0, 0] * fast + rho[:, :, 0, 1] * slow,
                    rho[:, :, 1, 0] * fast + rho[:, :, 1, 1] * slow,
                )
            before = fast, slow
            key, value = k[:, t].unsqueeze(-1), v[:, t].unsqueeze(-2)  # (B, H, D, 1), (B, H, 1, Dv)
            said_fast, said_slow = (key.transpose(-1, -2) @ state for state in before)
            error_fast = value - (said_fast + said_slow if joint else said_fast)
            error_slow = error_fast if joint else value - said_slow
            fast = fast + key @ (beta_fast[:, t, :, None, None] * error_fast)
            slow = slow + key @ (beta_slow[:, t, :, None, None] * error_slow)
            read = before if exclude_self else (fast, slow)
            query = q[:, t].unsqueeze(-2)
            outputs_fast.append(query @ read[0])
            outputs_slow.append(query @ read[1])
        outputs = (torch.cat(x, dim=2).transpose(1, 2).to(dtype) for x in (outputs_fast, outputs_slow))
        return *outputs, (fast, slow)


def two_timescale_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta_fast: Tensor,
    beta_slow: Tensor,
    log_decay_fast: Tensor,
    log_decay_slow: Tensor,
    coupling: Tensor | None = None,
    joint: bool = True,
    initial_state: tuple[Tensor, Tensor] | None = None,
    exclude_self: bool = False,
    chunk_size: int = 16,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Two memories, exactly, in chunks: the form to train with.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys of unit length.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta_fast (`torch.Tensor` of shape `(B, T, H)`): Step sizes of the fast memory; 0 at pads.
        beta_slow (`torch.Tensor` of shape `(B, T, H)`): Step sizes of the slow memory; 0 at pads.
        log_decay_fast (`torch.Tensor` of shape `(B, T, H)`): Log decays of the fast memory, <= 0; 0 at pads.
        log_decay_slow (`torch.Tensor` of shape `(B, T, H)`): Log decays of the slow memory, <= 0; 0 at pads.
        coupling (`torch.Tensor` of shape `(B, T, H, 2, 2)`, *optional*): Leak before each write, `[to, from]`; identity at
            pads. `None`: none.
        joint (`bool`, *optional*, defaults to `True`): One shared error, or one for each memory.
        initial_state (pair of `torch.Tensor` of shape `(B, H, D, Dv)`, *optional*): (S_fast, S_slow) before the first token.
        exclude_self (`bool`, *optional*, defaults to `False`): Read before the token is written, for a reversed pass.
        chunk_size (`int`, *optional*, defaults to `16`): Tokens a chunk. It changes the speed, not the result.

    Returns:
        As [`two_timescale_recurrent`].

    Raises:
        ValueError: If `chunk_size` is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` is {chunk_size}; it must be at least 1.")
    if coupling is None and not joint:
        return _independent(
            q, k, v, beta_fast, beta_slow, log_decay_fast, log_decay_slow, initial_state, exclude_self, chunk_size
        )
    dtype, (batch, length, heads, dim) = v.dtype, q.shape
    with torch.autocast(q.device.type, enabled=False):
        fast, slow = (None, None) if initial_state is None else initial_state
        q, k, v, beta_fast, beta_slow, log_decay_fast, log_decay_slow, coupling, fast, slow = upcast(
            q, k, v, beta_fast, beta_slow, log_decay_fast, log_decay_slow, coupling, fast, slow
        )
        if fast is None:
            fast = slow = v.new_zeros(batch, heads, dim, v.shape[-1])
        chunk_size = min(chunk_size, length)
        q, k, v = (to_chunks(x, chunk_size) for x in (q, k, v))
        beta = to_chunks(torch.stack([beta_fast, beta_slow], dim=-1), chunk_size).transpose(-1, -2)  # (n, N, 2, C)
        decay = to_chunks(torch.stack([log_decay_fast, log_decay_slow], dim=-1), chunk_size).transpose(-1, -2)
        if coupling is None:
            weight, since_start = _diagonal_reach(decay, beta)
        else:
            coupling = to_chunks(_pad_identity(coupling, chunk_size), chunk_size)
            weight, since_start = _coupled_reach(decay, beta, coupling, joint)
        state = torch.cat([fast, slow], dim=-2).flatten(0, 1)  # (N, 2 * D, Dv): the memories below each other
        out, last = _solve(q, k, v, weight, since_start, state, exclude_self)
        outputs = (from_chunks(x, batch, length).to(dtype) for x in out.unbind(2))
        fast, slow = last.unflatten(0, (batch, heads)).chunk(2, dim=-2)
        return *outputs, (fast, slow)


def _independent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta_fast: Tensor,
    beta_slow: Tensor,
    log_decay_fast: Tensor,
    log_decay_slow: Tensor,
    initial_state: tuple[Tensor, Tensor] | None,
    exclude_self: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Neither a shared error nor a coupling: two delta rules side by side on the head axis."""
    out, state = delta_rule_chunk(
        *(torch.cat([x, x], dim=2) for x in (q, k, v)),
        torch.cat([beta_fast, beta_slow], dim=2),
        torch.cat([log_decay_fast, log_decay_slow], dim=2),
        None if initial_state is None else torch.cat(initial_state, dim=1),
        exclude_self,
        chunk_size,
    )
    return *out.chunk(2, dim=2), state.chunk(2, dim=1)


def _pad_identity(coupling: Tensor, chunk_size: int) -> Tensor:
    """Fills the last chunk with couplings that change nothing (zeros would erase the state)."""
    missing = -coupling.shape[1] % chunk_size
    if not missing:
        return coupling
    eye = torch.eye(2, dtype=coupling.dtype, device=coupling.device)
    return torch.cat([coupling, eye.expand(coupling.shape[0], missing, coupling.shape[2], 2, 2)], dim=1)


def _diagonal_reach(decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """As [`_coupled_reach`] for a joint error and memories that only decay."""
    total = decay.cumsum(-1)
    weight = pairwise_decay(total) * beta.unsqueeze(-2)  # (n, N, x, i, j)
    return weight.unsqueeze(3), torch.diag_embed(total.exp().movedim(2, -1), dim1=2, dim2=3)


def _coupled_reach(decay: Tensor, beta: Tensor, coupling: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
    """How far each write, and the state before the chunk, reach.

    Args:
        decay: (n, N, 2, C) log decays.
        beta: (n, N, 2, C) step sizes.
        coupling: (n, N, C, 2, 2).
        joint: Whether both memories write the same residual.

    Returns:
        The weight (n, N, 2, p, C, C) at `[..., x, b, i, j]` with which residual b of token j is in memory x at token i (0 for
        j > i), and the products (n, N, 2, 2, C) at `[..., x, y, i]`: how much of memory y before the chunk is in x at i.
    """
    chunks, rows, size = coupling.shape[:3]
    steps = (coupling * decay.exp().transpose(-1, -2).unsqueeze(-2)).flatten(0, 1).unbind(1)  # C times (n * N, 2, 2)
    row = torch.eye(2, dtype=decay.dtype, device=decay.device).unsqueeze(-1)
    identity = row = row.expand(chunks * rows, 2, 2, 1)
    history = []
    for t, step in enumerate(steps):
        carried = torch.bmm(step, row.flatten(2)).view(-1, 2, 2, t + 1)
        row = torch.cat([carried, identity], dim=-1)
        history.append(F.pad(row, (0, size - 1 - t)))
    products = torch.stack(history, dim=3).unflatten(0, (chunks, rows))  # (n, N, 2, 2, C, 1 + C)
    weight = products[..., 1:] * beta[:, :, None, :, None, :]
    return weight.sum(3, keepdim=True) if joint else weight, products[..., 0]


def _solve(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, since_start: Tensor, state: Tensor, exclude_self: bool
) -> tuple[Tensor, Tensor]:
    """Residuals, states and outputs (n, N, 2, C, Dv) of all chunks, from what [`_coupled_reach`] says.

    A chunk has p residuals a token: one if the error is joint, else one a memory, ordered by token and then memory.
    Axes in the comments: n chunks, N rows, x memory written or read, a residual asking, b residual answering, y memory
    before the chunk, i later token, j earlier token.
    """
    chunks, rows, size, dim = k.shape
    joint = weight.shape[3] == 1
    source = since_start.sum(2, keepdim=True) if joint else since_start  # (n, N, a, y, i)
    system = weight.sum(2, keepdim=True) if joint else weight  # (n, N, a, b, i, j)
    count = weight.shape[3]
    transposed = k.transpose(-1, -2)

    system = (system * (k @ transposed).tril(-1)[:, :, None, None]).permute(0, 1, 4, 2, 5, 3)
    inverse = triangular_inverse(system.reshape(chunks, rows, size * count, size * count))
    key_read = (source.permute(0, 1, 4, 2, 3).unsqueeze(-1) * k[:, :, :, None, None]).reshape(
        chunks, rows, -1, 2 * dim
    )
    value = v.unsqueeze(3).expand(-1, -1, -1, count, -1).reshape(chunks, rows, -1, v.shape[-1])
    written = weight[..., -1, :].permute(0, 1, 4, 3, 2)  # (n, N, j, b, x)
    key_write = (written.unsqueeze(-1) * k[:, :, :, None, None]).reshape(chunks, rows, -1, 2 * dim)
    residuals, states, last = chunk_scan(inverse @ value, inverse @ key_read, key_write, since_start[..., -1], state)

    scores = (q @ transposed).tril(-1 if exclude_self else 0)
    scores = (weight * scores[:, :, None, None]).permute(0, 1, 2, 4, 5, 3).reshape(chunks, rows, 2 * size, -1)
    out = (scores @ residuals).unflatten(2, (2, size))  # (n, N, x, i, Dv)
    memory = q.unsqueeze(2) @ states.unflatten(2, (2, dim))  # (n, N, y, i, Dv)
    share = since_start.unsqueeze(-1)  # (n, N, x, y, i, 1)
    return out + share[:, :, :, 0] * memory[:, :, :1] + share[:, :, :, 1] * memory[:, :, 1:], last
