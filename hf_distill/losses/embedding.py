"""Losses on sentence embeddings: pointwise (cosine, L2), contrastive, relational (Gram, RKD), and Matryoshka.

All take one row per text and average over rows, pairs or triples, so their scale does not depend on the batch size,
and the order of the rows does not matter. A padding row is left out by indexing: ``loss(student[keep], teacher[keep])``;
no rows at all give 0. Gradients flow into both arguments: pass the teacher detached, as a cache or `no_grad` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.losses.numerics import check_pair, cosine_distance, full_precision, mean, unit


@full_precision
def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos(student, teacher): the direction of each embedding.

    Args:
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings of the same texts, shape (B, D).

    Returns:
        Scalar in [0, 2], 0 at equal directions. A zero row counts as cosine 0 and has no gradient.

    Raises:
        ValueError: If the shapes differ; the message names both widths and the remedy.

    Relations:
        - `l2_loss` of normalised embeddings is exactly twice this loss.
        - `gram_loss` compares texts with each other instead, so the two widths may differ.

    Example:
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """
    check_pair(student, teacher, "cosine_loss")
    return mean(cosine_distance(student, teacher))


@full_precision
def l2_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of the squared L2 distance, which is D times the mean squared error.

    Args:
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings of the same texts, shape (B, D).

    Returns:
        Scalar >= 0, 0 at equality.

    Raises:
        ValueError: If the shapes differ; the message names both widths and the remedy.

    References:
        - EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval, https://arxiv.org/abs/2301.12005

    Relations:
        - `torch.nn.functional.mse_loss` divides by D as well: at D = 384 a weight of 1 then all but disappears beside
          a contrastive term.

    Example:
        >>> l2_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(5.)
    """
    check_pair(student, teacher, "l2_loss")
    return mean((student - teacher).square().sum(dim=-1))


@full_precision
def contrastive_loss(
    anchor: Tensor,
    positive: Tensor,
    scale: float = 20.0,
    label_smoothing: float = 0.1,
    positive_ids: Tensor | None = None,
) -> Tensor:
    """In-batch contrastive loss: cross-entropy over scaled cosines, anchor to positive and back, averaged.

    Every other row's positive is a negative. Two rows of the same `positive_ids` are never each other's negatives.

    Args:
        anchor: Embeddings, shape (B, D).
        positive: Embeddings of the paired texts, shape (B, D).
        scale: Inverse temperature of the cosines.
        label_smoothing: Probability spread evenly over the row's allowed columns, its own included.
        positive_ids: Integer ids, shape (B,): equal ids mark duplicates (one positive text, or one cluster of
            paraphrases). `None` takes every row as different.

    Returns:
        Scalar >= 0 in nats; 0 with a zero gradient where a batch has no negatives (B = 1, or all ids equal).

    Raises:
        ValueError: If the shapes differ, or `label_smoothing` is outside [0, 1).

    References:
        - Efficient Natural Language Response Suggestion for Smart Reply, https://arxiv.org/abs/1705.00652
        - Rethinking the Inception Architecture (label smoothing), https://arxiv.org/abs/1512.00567

    Relations:
        - sentence-transformers' `MultipleNegativesSymmetricRankingLoss` without smoothing, and without the mask.

    Example:
        >>> contrastive_loss(torch.eye(2), torch.eye(2), label_smoothing=0.0) < 1e-6
        tensor(True)
    """
    check_pair(anchor, positive, "contrastive_loss")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"contrastive_loss: label_smoothing must lie in [0, 1), but is {label_smoothing}.")
    logits = scale * unit(anchor) @ unit(positive).T
    own = torch.eye(len(anchor), dtype=torch.bool, device=anchor.device)
    allowed = torch.ones_like(own)
    if positive_ids is not None:
        allowed = (positive_ids[:, None] != positive_ids[None, :]) | own
    even = allowed.to(logits.dtype) / allowed.sum(dim=1, keepdim=True)
    target = (1.0 - label_smoothing) * own.to(logits.dtype) + label_smoothing * even
    # The smallest finite number instead of -inf: a forbidden column has target 0, and 0 * -inf would be NaN.
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    both = torch.stack([logits, logits.T]).log_softmax(dim=-1).masked_fill(~allowed, 0.0)
    return mean(-(target * both).sum(dim=-1))


@full_precision
def row_similarities(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each row of `a` with the same row of `b`: (B, D), (B, D) -> (B,), the scores STS compares with people.

    Example:
        >>> row_similarities(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor([1., 0.])
    """
    check_pair(a, b, "row_similarities")
    return (unit(a) * unit(b)).sum(dim=-1)


@full_precision
def batch_similarities(x: Tensor) -> Tensor:
    """Cosine of each text with every other text of the batch: (B, D) -> (B, B - 1), row i leaving out text i.

    Use it to give single texts, which have no partner, to the ranking losses: they rank row by row, at a cost of B^3
    (0.9 s a step for 256 rows on one CPU core), so pass a part of a large batch.

    Example:
        >>> batch_similarities(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        tensor([[1., 0.],
                [1., 0.],
                [0., 0.]])
    """
    x = unit(x)
    return _off_diagonal(x @ x.T)


@full_precision
def gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two in-batch cosine matrices, off the diagonal.

    Args:
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings of the same texts, shape (B, D_teacher), of any width.

    Returns:
        Scalar in [0, 4], 0 where all cosines agree (any rotation of the teacher) and for B < 2.

    Raises:
        ValueError: If the numbers of rows differ.

    References:
        - Similarity-Preserving Knowledge Distillation, https://arxiv.org/abs/1907.09682
        - Jasper and Stella: distillation of SOTA embedding models, https://arxiv.org/abs/2412.19048

    Relations:
        - `cosine_loss` = 0 implies this one = 0; the reverse holds up to a rotation.
        - `rkd_distance_loss` compares distances relative to their mean: weaker, blind to the spread of the batch.

    Example:
        >>> gram_loss(torch.eye(3), torch.eye(3).roll(1, dims=1))
        tensor(0.)
    """
    check_pair(student, teacher, "gram_loss", same_width=False)
    return mean((batch_similarities(student) - batch_similarities(teacher)).square())


@full_precision
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D: Huber loss between the pairwise distances of student and teacher, each divided by its batch mean.

    Args:
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings of the same texts, shape (B, D_teacher), of any width.

    Returns:
        Scalar >= 0, the mean over the B (B - 1) / 2 pairs; unchanged by scaling or rotating either side; 0 for B < 3.

    Raises:
        ValueError: If the numbers of rows differ.

    References:
        - Relational Knowledge Distillation, eq. 5-6, https://arxiv.org/abs/1904.05068

    Relations:
        - `rkd_angle_loss` compares the angles of triples; the paper uses the two with weights 1 (or 25) and 2 (or 50).

    Example:
        >>> rkd_distance_loss(torch.eye(3), 5.0 * torch.eye(3))
        tensor(0.)
    """
    check_pair(student, teacher, "rkd_distance_loss", same_width=False)
    ratios = []
    for x in (student, teacher):
        # Not through a Gram matrix, which is noise where two rows are nearly equal; and not by pdist, whose backward
        # crashes the process for a single row (torch 2.13).
        distances = _off_diagonal(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"))
        scale = mean(distances)
        ratios.append(distances / torch.where(scale > 1e-8, scale, 1.0))  # 1: a collapsed batch stays collapsed
    return mean(F.smooth_l1_loss(*ratios, reduction="none"))


@full_precision
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A: Huber loss between the cosines of the angles that triples of texts form, at every vertex.

    It needs memory for B^3 angles and B^2 (D + D_teacher) differences: pass a part of a batch beyond about 128 rows.

    Args:
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings of the same texts, shape (B, D_teacher), of any width.

    Returns:
        Scalar >= 0, the mean over the B (B - 1) (B - 2) ordered triples of distinct rows; 0 for B < 3. An angle with
        an arm of length 0 (two identical rows) has cosine 0.

    Raises:
        ValueError: If the numbers of rows differ.

    References:
        - Relational Knowledge Distillation, eq. 7-8, https://arxiv.org/abs/1904.05068

    Relations:
        - `rkd_distance_loss` compares pairs, at B^2 instead of B^3.

    Example:
        >>> rkd_angle_loss(torch.eye(3), 5.0 * torch.eye(3))
        tensor(0.)
    """
    check_pair(student, teacher, "rkd_angle_loss", same_width=False)
    count = len(student)
    angles = []
    for x in (student, teacher):
        arms = unit(x[None, :, :] - x[:, None, :])  # arms[j, i] points from vertex j to i; arms[j, j] = 0
        angles.append(arms @ arms.mT)
    different_ends = ~torch.eye(count, dtype=torch.bool, device=student.device)  # i == k is no angle
    errors = F.smooth_l1_loss(*angles, reduction="none") * different_ends
    return errors.sum() / max(count * (count - 1) * (count - 2), 1)


@full_precision
def matryoshka_loss(
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    dims: Sequence[int],
    dim_weights: Sequence[float] | None = None,
    truncate_teacher: bool = True,
) -> Tensor:
    """Weighted mean of an embedding loss over prefixes of the embedding, each normalised again.

    Args:
        loss_fn: Any loss of two tensors of rows, such as `cosine_loss`, `gram_loss` or a `functools.partial` of
            `contrastive_loss` (then student and teacher are anchor and positive).
        student: Student embeddings, shape (B, D).
        teacher: Teacher embeddings, shape (B, D), or (B, D_teacher) where `truncate_teacher` is off.
        dims: Prefix lengths, such as (384, 256, 128, 64), in any order.
        dim_weights: One weight >= 0 a prefix; `None` weighs all alike. Only their ratios matter.
        truncate_teacher: Truncate the teacher likewise. Switch it off for relational losses (`gram_loss`, `rkd_*`,
            `spearman_loss` of similarities): each prefix of the student is then held against the whole teacher, whose
            width is free and whose own prefixes need not mean anything.

    Returns:
        Scalar, in the units of `loss_fn`, 0 where it is 0 at every prefix.

    Raises:
        ValueError: If `dims` is empty, or not within 1...D; if `dim_weights` does not fit; or if the widths differ
            while `truncate_teacher` is on.

    References:
        - Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147

    Relations:
        - sentence-transformers' `MatryoshkaLoss` adds where this one averages, so there the number of prefixes changes
          the weight of the term.

    Example:
        >>> x = torch.eye(4)
        >>> matryoshka_loss(gram_loss, x, x, dims=(4, 2))
        tensor(0.)
    """
    weights = [1.0] * len(dims) if dim_weights is None else list(dim_weights)
    width = student.shape[-1]
    if len(dims) == 0 or not all(1 <= dim <= width for dim in dims):
        raise ValueError(
            f"matryoshka_loss: dims {list(dims)} must be one or more of 1...{width}: the student is {width} wide."
        )
    if len(weights) != len(dims) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"matryoshka_loss: dim_weights {weights} must be {len(dims)} numbers >= 0, one for each of {list(dims)}, "
            "not all 0."
        )
    if truncate_teacher and teacher.shape[-1] != width:
        raise ValueError(
            f"matryoshka_loss: the student is {width} wide, the teacher {teacher.shape[-1]}, so their prefixes do not "
            "match. Project the teacher's cache to the student's width, or, for a relational loss (gram, rkd, "
            "spearman of similarities), pass truncate_teacher=False."
        )
    total = student.new_zeros(())
    for dim, weight in zip(dims, weights, strict=True):
        target = unit(teacher[..., :dim]) if truncate_teacher else teacher
        total = total + weight * loss_fn(unit(student[..., :dim]), target)
    return total / sum(weights)


def _off_diagonal(matrix: Tensor) -> Tensor:
    """Drop the diagonal: (B, B) -> (B, B - 1)."""
    count = len(matrix)
    if count < 2:
        return matrix[:, :0]
    # In rows of B + 1, all diagonal elements but the last stand in column 0 (a boolean index would wait for the GPU).
    return matrix.flatten()[:-1].view(count - 1, count + 1)[:, 1:].reshape(count, count - 1)
