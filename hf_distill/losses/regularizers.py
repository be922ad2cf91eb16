"""Regularisers of linear-attention students: orthogonal projections, and memories that do not repeat each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_distill.losses.numerics import check_pair, full_precision, mean, unit


def orthogonality_loss(weights: Iterable[Tensor]) -> Tensor:
    """Mean over matrices of ||W W^T - I||_F^2 / rows: each projection keeps its directions apart and of length 1.

    Args:
        weights: Matrices of shape (rows, columns). One that is taller than wide is transposed first, because its
            rows cannot all be orthogonal.

    Returns:
        Scalar >= 0, 0 where the shorter side of every matrix is orthonormal.

    Raises:
        ValueError: If there are no weights, or one is not a matrix.

    References:
        - Can We Gain More from Orthogonality Regularizations in Training Deep CNNs? (SO),
          https://arxiv.org/abs/1810.09102

    Relations:
        - Dividing by the rows makes the value independent of the width; the plain squared norm is `rows` times this.

    Example:
        >>> orthogonality_loss([torch.eye(4), 2.0 * torch.eye(4)])
        tensor(4.5000)
    """
    terms = [_orthogonality(weight) for weight in weights]
    if not terms:
        raise ValueError("orthogonality_loss: there are no weights; leave the term out for a student without any.")
    return torch.stack(terms).mean()


@full_precision
def _orthogonality(weight: Tensor) -> Tensor:
    if weight.ndim != 2:
        raise ValueError(
            f"orthogonality_loss: every weight must be a matrix, but one has shape {tuple(weight.shape)}."
        )
    if weight.shape[0] > weight.shape[1]:
        weight = weight.T
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return (weight @ weight.T - identity).square().sum() / len(weight)


@full_precision
def state_decorrelation_loss(fast: Tensor, slow: Tensor) -> Tensor:
    """Mean squared Frobenius cosine of the fast and the slow memory: <S_f, S_s>^2 / (||S_f||^2 ||S_s||^2).

    Args:
        fast: States, shape (..., D, D_v), with batch and heads in front.
        slow: States of the other timescale, of the same shape.

    Returns:
        Scalar in [0, 1]: 0 for orthogonal memories (an empty one counts as such), 1 where one is a multiple of the
        other.

    Raises:
        ValueError: If the shapes differ.

    Relations:
        - Measures the correlation of the two. Asking each state alone for ||S S^T - I|| does not, and is all but
          constant for normalised states.

    Example:
        >>> state_decorrelation_loss(torch.eye(2), -3.0 * torch.eye(2)).round(decimals=4)
        tensor(1.)
    """
    check_pair(fast, slow, "state_decorrelation_loss")
    cosine = (unit(fast.flatten(-2)) * unit(slow.flatten(-2))).sum(dim=-1)
    return mean(cosine.square())
