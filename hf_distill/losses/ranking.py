"""Losses on the order of similarity scores: a Spearman correlation with a gradient, and pairwise ranking.

Hard ranks (argsort) are piecewise constant: a "Spearman loss" on them moves the logged number and nothing else. Here
ranks are soft, and as the temperature falls they become exactly scipy's, ties included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import cosine_distance, full_precision, mean


@full_precision
def soft_rank(x: Tensor, temperature: float | Tensor) -> Tensor:
    """Differentiable ascending ranks: 1 + the sum over the others j of sigmoid((x_i - x_j) / temperature).

    Args:
        x: Scores, shape (..., N). Memory grows with N^2.
        temperature: Distance, in units of `x`, over which two scores count as close; a number > 0, or a tensor that
            broadcasts to (..., 1).

    Returns:
        Ranks in [1, N], shape (..., N), of sum N (N + 1) / 2. As `temperature` -> 0 they are the exact ranks, ties
        sharing their average; as it grows they become linear in `x`.

    Raises:
        ValueError: If a numeric `temperature` is not positive.

    References:
        - A general approximation framework for direct optimization of information retrieval measures (ApproxNDCG),
          https://doi.org/10.1007/s10791-009-9124-x

    Example:
        >>> soft_rank(torch.tensor([0.3, 0.1, 0.1]), temperature=1e-3)
        tensor([3.0000, 1.5000, 1.5000])
    """
    if not isinstance(temperature, Tensor):
        _check_positive(temperature, "soft_rank", "temperature")
    elif temperature.ndim:
        temperature = temperature.unsqueeze(-1)
    gaps = x[..., :, None] - x[..., None, :]
    return 0.5 + (gaps / temperature).sigmoid().sum(dim=-1)  # a score beats itself by sigmoid(0): 0.5 + 0.5 = rank 1


@full_precision
def spearman_loss(student_scores: Tensor, teacher_scores: Tensor, temperature: float = 0.2) -> Tensor:
    """1 - the Spearman correlation of the scores, by the Pearson correlation of their soft ranks.

    The temperature is measured in standard deviations of each side's scores. So scaling or shifting either side
    changes nothing, as for the exact correlation, and other monotone maps change little.

    Args:
        student_scores: Scores, such as the cosines of N text pairs, shape (..., N). Leading dimensions are separate
            lists, averaged.
        teacher_scores: The teacher's scores of the same pairs, of the same shape.
        temperature: Softness of the ranks: towards 0 the exact Spearman correlation, whose gradient only neighbours
            in rank feel; large values approach the Pearson correlation.

    Returns:
        Scalar in [0, 2], 0 at equality. A list without order (all tied, or N = 1) correlates 0 with another, with no
        gradient, and 1 with its like.

    Raises:
        ValueError: If the shapes differ or `temperature` is not positive.

    References:
        - Fast Differentiable Sorting and Ranking (the same loss on other soft ranks), https://arxiv.org/abs/2002.08871

    Relations:
        - `pairwise_ranking_loss` counts discordant pairs (closer to Kendall's tau), with an absolute margin.
        - `gram_loss` wants the scores themselves, not only their order.

    Example:
        >>> teacher = torch.tensor([0.1, 0.5, 0.9])
        >>> spearman_loss(-teacher, teacher).round(decimals=4)
        tensor(2.)
    """
    _check_same_shape(student_scores, teacher_scores, "spearman_loss")
    _check_positive(temperature, "spearman_loss", "temperature")
    count = student_scores.shape[-1]
    ranks = []
    for scores in (student_scores, teacher_scores):
        # The standard deviation, by a norm whose gradient at 0 is 0.
        deviations = scores - scores.mean(dim=-1, keepdim=True)
        spread = torch.linalg.vector_norm(deviations, dim=-1, keepdim=True) / max(count, 1) ** 0.5
        rank = soft_rank(scores, temperature * spread.clamp_min(1e-6))
        ranks.append(rank - (count + 1) / 2)  # soft ranks, too, have exactly this mean
    return mean(cosine_distance(*ranks))


@full_precision
def pairwise_ranking_loss(
    student_scores: Tensor, teacher_scores: Tensor, margin: float = 0.05, min_gap: float = 0.01
) -> Tensor:
    """Logistic ranking loss: mean of log(1 + exp(-(s_i - s_j) / margin)) over the pairs the teacher puts i above j.

    Args:
        student_scores: Scores, shape (..., N). Memory grows with N^2.
        teacher_scores: The teacher's scores, of the same shape.
        margin: Gap, in units of the scores, at which a pair in the right order stops to matter; the scale of the
            logistic, not a hinge.
        min_gap: Teacher gaps up to this size are ties and say nothing.

    Returns:
        Scalar > 0 in nats: log 2 for a student without order, towards 0 for one that separates all pairs widely (so
        not 0 at equality), and 0 where the teacher has no pair to say anything about.

    Raises:
        ValueError: If the shapes differ, `margin` is not positive or `min_gap` is negative.

    References:
        - Learning to Rank using Gradient Descent (RankNet), https://doi.org/10.1145/1102351.1102363

    Relations:
        - `spearman_loss` weighs a discordant pair by its distance in rank; its optimum is the teacher's order itself.

    Example:
        >>> pairwise_ranking_loss(torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.8])) < 1e-6
        tensor(True)
    """
    _check_same_shape(student_scores, teacher_scores, "pairwise_ranking_loss")
    _check_positive(margin, "pairwise_ranking_loss", "margin")
    if min_gap < 0:
        raise ValueError(f"pairwise_ranking_loss: min_gap must be >= 0, but is {min_gap}.")
    student_gaps = student_scores[..., :, None] - student_scores[..., None, :]
    above = teacher_scores[..., :, None] - teacher_scores[..., None, :] > min_gap
    return (F.softplus(-student_gaps / margin) * above).sum() / above.sum().clamp_min(1)


def _check_same_shape(student_scores: Tensor, teacher_scores: Tensor, name: str) -> None:
    if student_scores.shape != teacher_scores.shape:
        raise ValueError(
            f"{name}: student scores {tuple(student_scores.shape)} and teacher scores {tuple(teacher_scores.shape)} "
            "must have the same shape: one score of each for every text pair."
        )


def _check_positive(value: float, name: str, field: str) -> None:
    if not value > 0:
        raise ValueError(f"{name}: {field} must be > 0, but is {value}.")
