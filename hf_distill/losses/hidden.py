"""Layer-wise distillation: a masked loss on hidden states, which teacher layer each student layer follows, and PCA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distill.losses.numerics import check_pair, full_precision


@full_precision
def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None, relative: bool = True) -> Tensor:
    """Squared error of hidden states over the real tokens, by default as a share of the teacher's energy there.

    Args:
        student: Hidden states of one student layer, shape (B, T, D).
        teacher: Hidden states of its teacher layer (see `layer_map`), shape (B, T, D).
        mask: Attention mask, shape (B, T), non-zero at real tokens; `None` takes all. What stands at the other
            positions (NaN even) changes neither value nor gradient.
        relative: Divide by the sum of the teacher's squares at the real tokens, so that layers of different magnitude
            weigh alike and 1 is the error of predicting 0. Otherwise, and for a teacher of zeros, divide by the
            number of elements there (MSE).

    Returns:
        Scalar >= 0, 0 at equality, and 0 where every position is padding.

    Raises:
        ValueError: If the shapes differ; the message names both widths and the remedy.

    References:
        - TinyBERT: Distilling BERT for Natural Language Understanding, eq. 8, https://arxiv.org/abs/1909.10351

    Relations:
        - Uneven widths: project the teacher with `pca_projection`, or the student with a learned linear head.

    Example:
        >>> hidden_state_loss(torch.zeros(1, 2, 4), torch.ones(1, 2, 4), mask=torch.tensor([[1, 0]]))
        tensor(1.)
    """
    check_pair(student, teacher, "hidden_state_loss")
    if mask is None:
        mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    if mask.shape != student.shape[:-1]:
        raise ValueError(
            f"hidden_state_loss: the mask {tuple(mask.shape)} must have the shape {tuple(student.shape[:-1])} of the "
            "hidden states without their width."
        )
    padding = (mask == 0).unsqueeze(-1)
    # Filled, not multiplied: padding may hold NaN or inf, and 0 * NaN is NaN.
    error = (student - teacher).masked_fill(padding, 0.0).square().sum()
    scale = ((~padding).sum() * student.shape[-1]).clamp_min(1).to(error.dtype)
    if relative:
        energy = teacher.masked_fill(padding, 0.0).square().sum()
        scale = torch.where(energy > 1e-8, energy, scale)
    return error / scale


def layer_map(student_layers: int, teacher_layers: int, strategy: str | Sequence[int] = "uniform") -> list[int]:
    """Choose the teacher layer that each student layer starts from and follows.

    Args:
        student_layers: Number of student layers.
        teacher_layers: Number of teacher layers.
        strategy: ``"uniform"``: evenly spaced, first to first and last to last (a single student layer takes the
            last); it also stretches to students deeper than the teacher. ``"first"`` or ``"last"``: that many layers
            from that end. Or the list itself, which is checked and returned.

    Returns:
        One teacher layer per student layer, counted from 0. The output of layer `i` is ``hidden_states[i + 1]``,
        because ``hidden_states[0]`` are the embeddings.

    Raises:
        ValueError: If a number of layers is not positive, the strategy is unknown, ``"first"`` or ``"last"`` ask for
            more layers than the teacher has, or a list has the wrong length or names a layer that does not exist.

    Example:
        >>> layer_map(3, 6)
        [0, 2, 5]
        >>> layer_map(2, 6, "last")
        [4, 5]
    """
    if student_layers < 1 or teacher_layers < 1:
        raise ValueError(
            f"layer_map: both models need at least one layer, but have {student_layers} (student) and "
            f"{teacher_layers} (teacher)."
        )
    if not isinstance(strategy, str):
        layers = [int(layer) for layer in strategy]
        if len(layers) != student_layers or not all(0 <= layer < teacher_layers for layer in layers):
            raise ValueError(
                f"layer_map: {layers} must list {student_layers} teacher layers, one a student layer, each in "
                f"0...{teacher_layers - 1}."
            )
        return layers
    if strategy == "uniform":
        if student_layers == 1:
            return [teacher_layers - 1]
        return [i * (teacher_layers - 1) // (student_layers - 1) for i in range(student_layers)]
    if strategy not in ("first", "last"):
        raise ValueError(
            f"layer_map: unknown strategy {strategy!r}; use 'uniform', 'first', 'last' or a list of layers."
        )
    if student_layers > teacher_layers:
        raise ValueError(
            f"layer_map: {strategy!r} cannot give {student_layers} student layers out of {teacher_layers} teacher "
            "layers; use 'uniform' or a list with repeats."
        )
    start = 0 if strategy == "first" else teacher_layers - student_layers
    return list(range(start, start + student_layers))


@torch.no_grad()
def pca_projection(samples: Tensor, dim: int, center: bool = True) -> tuple[Tensor, Tensor]:
    """Principal directions of a sample, to bring a wide teacher down to a student's width.

    Computed in float64, each direction signed so that its largest component is positive: the same samples always give
    the same projection. Apply it as ``(x - mean) @ components.T``.

    Args:
        samples: Rows to fit, shape (N, D_in), N > dim; a few times D_in of them are enough.
        dim: Number of directions to keep, at most D_in.
        center: Subtract the mean. Without it (then `mean` is 0) the projection keeps inner products, and so cosines,
            as well as a linear map of that width can.

    Returns:
        `components` of shape (dim, D_in), orthonormal rows by falling variance, and `mean` of shape (D_in,), in the
        dtype of `samples` but at least float32.

    Raises:
        ValueError: If `samples` is not a matrix, has too few rows or a NaN or infinity, or `dim` is not in 1...D_in.

    References:
        - Pearson 1901; without centring, the Eckart-Young theorem, https://doi.org/10.1007/BF02288367

    Example:
        >>> components, mean = pca_projection(torch.tensor([[0.0, 3.0], [0.0, -3.0], [0.1, 0.0]]), dim=1)
        >>> components.round(decimals=2).abs()
        tensor([[0., 1.]])
    """
    if samples.ndim != 2:
        raise ValueError(f"pca_projection: samples must have the shape (N, D_in), but have {tuple(samples.shape)}.")
    rows, width = samples.shape
    if not 1 <= dim <= width:
        raise ValueError(f"pca_projection: dim must be in 1...{width}, the width of the samples, but is {dim}.")
    if rows <= dim:
        raise ValueError(f"pca_projection: {dim} directions need more than {dim} samples, but there are {rows}.")
    if not samples.isfinite().all():
        bad = int((~samples.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"pca_projection: row {bad} of the samples has a NaN or infinity; remove such rows first.")
    x = samples.double()
    mean = x.mean(dim=0) if center else x.new_zeros(width)
    x = x - mean
    directions = torch.linalg.eigh(x.T @ x / rows).eigenvectors  # columns, by rising variance
    components = directions[:, -dim:].flip(dims=(1,)).T
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    dtype = torch.promote_types(samples.dtype, torch.float32)
    return (components * largest.sign()).to(dtype), mean.to(dtype)
