"""The converged, bidirectional delta rule ("ridge"): closed form, no scan, no order.

The delta rule is one online gradient pass over `sum_j beta_j |S^T k_j - v_j|^2`. An encoder may look at the whole text, so
it can have what that pass converges to: ridge regression from keys to values. With weights `w = beta / sum(beta)`

    S = (K^T W K + lam I)^-1 K^T W V,        o = q^T S                                  (center=False)
    S = (Kc^T W Kc + lam I)^-1 Kc^T W Vc,    o = v_mean + (q - k_mean)^T S              (center=True)

where `Kc`, `Vc` are centered by their w-means: uniform attention plus a second-order correction. The division by
`sum(beta)` makes both independent of the text's length. Everything the solution needs are five running sums
([`RidgeSums`]), so a document can be read in chunks of any size, in any order, in constant memory.

Related: MesaNet (https://arxiv.org/abs/2506.05233) solves the same problem causally, once a token.
Layout: q, k (B, T, H, D), v (B, T, H, Dv), beta (B, T, H) with 0 at pads. Sums and solves are float32 (float64 where
float64 is given), also under autocast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RidgeSums(NamedTuple):
    """What a set of tokens contributes to the ridge problem; sums of two sets are the sums of their union.

    Attributes:
        gram (`torch.Tensor` of shape `(B, H, D, D)`): sum of beta k k^T.
        cross (`torch.Tensor` of shape `(B, H, D, Dv)`): sum of beta k v^T.
        key_sum (`torch.Tensor` of shape `(B, H, D)`): sum of beta k.
        value_sum (`torch.Tensor` of shape `(B, H, Dv)`): sum of beta v.
        weight (`torch.Tensor` of shape `(B, H)`): sum of beta.
    """

    gram: Tensor
    cross: Tensor
    key_sum: Tensor
    value_sum: Tensor
    weight: Tensor


class RidgeSolution(NamedTuple):
    """The fitted memory.

    Attributes:
        map (`torch.Tensor` of shape `(B, H, D, Dv)`): S, the linear map from keys to values.
        key_mean (`torch.Tensor` of shape `(B, H, D)`): Weighted mean key; zero if not centered.
        value_mean (`torch.Tensor` of shape `(B, H, Dv)`): Weighted mean value; zero if not centered.
    """

    map: Tensor
    key_mean: Tensor
    value_mean: Tensor


def _memory_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any is float64, float32 otherwise: float16 and bfloat16 never reach a sum or a solve."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _swap_tokens_and_heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`(B, T, H, ...)` to `(B, H, T, ...)`, or back, contiguous and in `dtype`, in one pass over memory."""
    # `to` alone leaves a tensor that has the dtype already as it lies, and the products would copy it again and again.
    return x.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).contiguous()


def ridge_sums(k: Tensor, v: Tensor, beta: Tensor) -> RidgeSums:
    """The five weighted sums over time of one chunk (or the whole) of a text.

    Args:
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta (`torch.Tensor` of shape `(B, T, H)`): Weight of each token, >= 0, and 0 at pads.

    Returns:
        [`RidgeSums`] in float32 (float64 where given).
    """
    with torch.autocast(k.device.type, enabled=False):
        dtype = _memory_dtype(k, v, beta)
        k, v, beta = (_swap_tokens_and_heads(x, dtype) for x in (k, v, beta))
        written = (k * beta.unsqueeze(-1)).transpose(-1, -2)  # (B, H, D, T)
        return RidgeSums(
            gram=written @ k,
            cross=written @ v,
            key_sum=written.sum(-1),
            value_sum=(beta.unsqueeze(-2) @ v).squeeze(-2),
            weight=beta.sum(-1),
        )


def merge_ridge_sums(a: RidgeSums, b: RidgeSums) -> RidgeSums:
    """The sums of the union of two disjoint sets of tokens (chunks of one document, in any order)."""
    return RidgeSums(*(x + y for x, y in zip(a, b, strict=True)))


class _SolvePositiveDefinite(torch.autograd.Function):
    """`A^-1 B` for symmetric positive definite A by Cholesky.

    The backward pass reuses the factor (two triangular solves instead of differentiating through it). The gradient for A is
    returned unsymmetrised, which is right because every A here is built symmetric.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rhs: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(matrix)
        solution = torch.cholesky_solve(rhs, factor)
        ctx.save_for_backward(factor, solution)
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        factor, solution = ctx.saved_tensors
        grad_rhs = torch.cholesky_solve(grad, factor)
        return -grad_rhs @ solution.transpose(-1, -2), grad_rhs


def ridge_solve(sums: RidgeSums, lam: Tensor, center: bool = True) -> RidgeSolution:
    """Fits the memory from its sums.

    Args:
        sums ([`RidgeSums`]): Of the whole text, from [`ridge_sums`] and [`merge_ridge_sums`].
        lam (`torch.Tensor` of shape `(H,)`): Ridge strength per head, > 0. It is added to the *mean* of k k^T (the Gram
            matrix is divided by the sum of beta), so it means the same for every length.
        center (`bool`, *optional*, defaults to `True`): Fit an intercept (center keys and values by their weighted means).

    Returns:
        [`RidgeSolution`]. A row without any weight (all pads) has a zero map and zero means.

    Raises:
        torch.linalg.LinAlgError: If a Gram matrix is not finite.
    """
    with torch.autocast(sums.gram.device.type, enabled=False):
        gram, cross, weight = sums.gram, sums.cross, sums.weight
        real = torch.where(weight > 0, weight, 1.0)  # 1 for a row without any weight: its map is (lam I)^-1 0
        key_mean, value_mean = sums.key_sum / real.unsqueeze(-1), sums.value_sum / real.unsqueeze(-1)
        floor = _rounding_floor(gram)
        if center:
            gram = _minus_outer(gram, key_mean, sums.key_sum)
            cross = _minus_outer(cross, key_mean, sums.value_sum)
        else:
            key_mean, value_mean = torch.zeros_like(key_mean), torch.zeros_like(value_mean)
        # Everything is times the sum of beta here, lam too: that spares two passes over the matrices.
        matrix = _plus_diagonal(gram, torch.maximum(lam.to(gram.dtype) * real, floor))
        return RidgeSolution(_SolvePositiveDefinite.apply(matrix, cross), key_mean, value_mean)


def _rounding_floor(matrix: Tensor) -> Tensor:
    """The least ridge `(...)` for which Cholesky is safe: rounding can push the smallest eigenvalue of `(..., N, N)` below
    zero by about eps * trace (2e-6 in float32 for unit keys).
    """
    return 8 * torch.finfo(matrix.dtype).eps * matrix.detach().diagonal(dim1=-2, dim2=-1).sum(-1)


def _minus_outer(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`matrix - left right^T` for `(B, H, N, M)`, `(B, H, N)` and `(B, H, M)`, in one pass."""
    flat = (x.flatten(0, 1) for x in (matrix, left.unsqueeze(-1), right.unsqueeze(-2)))
    return torch.baddbmm(*flat, alpha=-1).view_as(matrix)


def _plus_diagonal(matrix: Tensor, ridge: Tensor) -> Tensor:
    """`matrix + ridge I` for `(..., N, N)` and `(...)`."""
    return matrix + torch.diag_embed(ridge.unsqueeze(-1).expand(matrix.shape[:-1]))


def ridge_read(q: Tensor, solution: RidgeSolution) -> Tensor:
    """Reads the memory: `value_mean + (q - key_mean)^T map`.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        solution ([`RidgeSolution`]): From [`ridge_solve`].

    Returns:
        `torch.Tensor` of shape `(B, T, H, Dv)` in the dtype of `q`.
    """
    with torch.autocast(q.device.type, enabled=False):
        query = _swap_tokens_and_heads(q, solution.map.dtype)
        offset = solution.value_mean.unsqueeze(-2) - solution.key_mean.unsqueeze(-2) @ solution.map  # (B, H, 1, Dv)
        return _swap_tokens_and_heads(_product_plus(query, solution.map, offset), q.dtype)


def _product_plus(left: Tensor, right: Tensor, offset: Tensor) -> Tensor:
    """`left @ right + offset` for `(B, H, T, D)`, `(B, H, D, Dv)` and `(B, H, 1, Dv)`, in one pass."""
    return torch.baddbmm(*(x.flatten(0, 1) for x in (offset, left, right))).unflatten(0, left.shape[:2])


def ridge_mix(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor, center: bool = True) -> Tensor:
    """Bidirectional token mixing by ridge regression: [`ridge_sums`], [`ridge_solve`] and [`ridge_read`] in a row.

    A text with fewer tokens than a key has channels is solved over its tokens instead ([`ridge_mix_by_tokens`]): the same
    regression by smaller matrices.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        k (`torch.Tensor` of shape `(B, T, H, D)`): Keys.
        v (`torch.Tensor` of shape `(B, T, H, Dv)`): Values.
        beta (`torch.Tensor` of shape `(B, T, H)`): Weight of each token, >= 0, and 0 at pads.
        lam (`torch.Tensor` of shape `(H,)`): Ridge strength per head, > 0.
        center (`bool`, *optional*, defaults to `True`): Fit an intercept.

    Returns:
        `torch.Tensor` of shape `(B, T, H, Dv)` in the dtype of `q`; zero for rows that are all pads. Outputs at pads of
        other rows are what their queries read; mask them if they matter.

    Example:
        ```python
        >>> q, k, v = torch.randn(3, 2, 7, 4, 8).unbind()
        >>> ridge_mix(q, k, v, beta=torch.rand(2, 7, 4), lam=torch.full((4,), 0.1)).shape
        torch.Size([2, 7, 4, 8])

        ```
    """
    if _fewer_tokens_than_channels(k):
        return ridge_mix_by_tokens(q, k, v, beta, lam, center)
    return ridge_read(q, ridge_solve(ridge_sums(k, v, beta), lam, center))


def _fewer_tokens_than_channels(k: Tensor) -> bool:
    return k.shape[1] < k.shape[-1]


def ridge_mix_by_tokens(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor, center: bool = True) -> Tensor:
    r"""[`ridge_mix`] in its dual form: matrices over pairs of tokens, `(T, T)`, instead of pairs of channels, `(D, D)`.

    With `A = \sqrt{W} K_c`, the map is `A^T (A A^T + \lambda I)^{-1} \sqrt{W} V_c` (the push-through identity), and it is
    never formed. Quadratic in the length: the faster form for short texts only.

    Args and Returns: as [`ridge_mix`]. The gradient at a beta of exactly 0 (a pad) is 0.
    """
    with torch.autocast(q.device.type, enabled=False):
        given, dtype = q.dtype, _memory_dtype(q, k, v, beta)
        q, k, v, beta = (_swap_tokens_and_heads(x, dtype) for x in (q, k, v, beta))
        total = beta.sum(-1, keepdim=True)
        weight = (beta / torch.where(total > 0, total, 1.0)).unsqueeze(-2)  # (B, H, 1, T)
        value_mean = torch.zeros_like(v[..., :1, :])
        if center:
            key_mean, value_mean = weight @ k, weight @ v
            q, k, v = q - key_mean, k - key_mean, v - value_mean
        # no square root of 0: its gradient is infinite
        root = (torch.where(weight > 0, weight, 1.0).sqrt() * (weight > 0)).transpose(-1, -2)
        a, target = k * root, v * root
        gram = a @ a.transpose(-1, -2)
        matrix = _plus_diagonal(gram, torch.maximum(lam.to(gram.dtype), _rounding_floor(gram)))
        answers = _SolvePositiveDefinite.apply(matrix, target)
        return _swap_tokens_and_heads(_product_plus(q @ a.transpose(-1, -2), answers, value_mean), given)


def ridge_naive(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor, center: bool = True) -> Tensor:
    """Reference for [`ridge_mix`]: one text and one head at a time, pads dropped, in float64, explicit inverse.

    Args and Returns: as [`ridge_mix`].
    """
    rows = []
    for b in range(q.shape[0]):
        heads = []
        for h in range(q.shape[2]):
            query, weight = q[b, :, h].double(), beta[b, :, h].double()
            real = weight > 0
            if not bool(real.any()):
                heads.append(query @ query.new_zeros(query.shape[-1], v.shape[-1]))
                continue
            weight = (weight[real] / weight[real].sum()).unsqueeze(-1)
            key, value = k[b, real, h].double(), v[b, real, h].double()
            key_mean, value_mean = (weight * key).sum(0), (weight * value).sum(0)
            if not center:
                key_mean, value_mean = torch.zeros_like(key_mean), torch.zeros_like(value_mean)
            key, value = key - key_mean, value - value_mean
            matrix = key.T @ (weight * key) + lam[h].double() * torch.eye(key.shape[-1], dtype=key.dtype)
            heads.append(value_mean + (query - key_mean) @ torch.linalg.inv(matrix) @ (key.T @ (weight * value)))
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows).to(q.dtype)
