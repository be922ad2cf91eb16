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


def _upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """To one dtype: float64 if any is float64, float32 otherwise (float16 and bfloat16 never reach a sum or a solve)."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)


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
        k, v, beta = (x.transpose(1, 2) for x in _upcast(k, v, beta))  # (B, H, T, ...)
        dim = k.shape[-1]
        beta = beta.unsqueeze(-1)
        # One product for four of the sums: [k | 1]^T diag(beta) [k | v].
        left = torch.cat([k * beta, beta], dim=-1)
        sums = left.transpose(-1, -2) @ torch.cat([k, v], dim=-1)
        return RidgeSums(
            gram=sums[..., :dim, :dim],
            cross=sums[..., :dim, dim:],
            key_sum=sums[..., dim, :dim],
            value_sum=sums[..., dim, dim:],
            weight=beta.sum((-1, -2)),
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
        lam = lam.to(sums.gram.dtype)
        scale = 1.0 / torch.where(sums.weight > 0, sums.weight, 1.0)[..., None, None]
        gram, cross = sums.gram * scale, sums.cross * scale
        # Rounding can push the smallest eigenvalue below zero by about eps * trace: a smaller lam would not keep Cholesky
        # safe, so it is raised to that floor (2e-6 in float32 for unit keys).
        trace = gram.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
        floor = 8 * torch.finfo(gram.dtype).eps * trace
        if center:
            key_mean, value_mean = sums.key_sum * scale[..., 0], sums.value_sum * scale[..., 0]
            gram = gram - key_mean.unsqueeze(-1) * key_mean.unsqueeze(-2)
            cross = cross - key_mean.unsqueeze(-1) * value_mean.unsqueeze(-2)
        else:
            key_mean, value_mean = torch.zeros_like(sums.key_sum), torch.zeros_like(sums.value_sum)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        matrix = gram + torch.maximum(lam, floor)[..., None, None] * eye
        return RidgeSolution(_SolvePositiveDefinite.apply(matrix, cross), key_mean, value_mean)


def ridge_read(q: Tensor, solution: RidgeSolution) -> Tensor:
    """Reads the memory: `value_mean + (q - key_mean)^T map`.

    Args:
        q (`torch.Tensor` of shape `(B, T, H, D)`): Queries.
        solution ([`RidgeSolution`]): From [`ridge_solve`].

    Returns:
        `torch.Tensor` of shape `(B, T, H, Dv)` in the dtype of `q`.
    """
    with torch.autocast(q.device.type, enabled=False):
        query = q.to(solution.map.dtype).transpose(1, 2)
        offset = solution.value_mean.unsqueeze(-2) - solution.key_mean.unsqueeze(-2) @ solution.map  # (B, H, 1, Dv)
        return (query @ solution.map + offset).transpose(1, 2).to(q.dtype)


def ridge_mix(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, lam: Tensor, center: bool = True) -> Tensor:
    """Bidirectional token mixing by ridge regression: [`ridge_sums`], [`ridge_solve`] and [`ridge_read`] in a row.

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
    return ridge_read(q, ridge_solve(ridge_sums(k, v, beta), lam, center))


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
