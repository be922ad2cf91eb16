"""What every loss shares: full precision under autocast, safe unit vectors, and shape checks that name the remedy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(fn: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss in float32 or better, whatever it is given and whatever autocast is active.

    Every floating tensor among the arguments is promoted to one common dtype, at least float32 (float64 stays
    float64), and autocast is off inside: a bfloat16 Gram matrix resolves cosines no finer than 0.004. TF32, where the
    process has switched it on, still applies to matrix products.

    Args:
        fn: Pure function of tensors. Integer and boolean tensors and other arguments pass through untouched.

    Returns:
        The same function, computed in full precision. At least one argument must be a tensor.
    """

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)

        def promote(value: object) -> object:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        with torch.autocast(tensors[0].device.type, enabled=False):
            return fn(*map(promote, args), **{name: promote(value) for name, value in kwargs.items()})

    return wrapper


def unit(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale vectors of the last dimension to length 1; a vector no longer than `eps` becomes 0 with zero gradient.

    `torch.nn.functional.normalize` would give such a vector a gradient of 1 / eps, which decides the whole step.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    zero = norm <= eps  # not `norm > eps`: a NaN must stay one
    return torch.where(zero, 0.0, x) / torch.where(zero, 1.0, norm)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - cos(a, b) along the last dimension, never negative and exactly 0 at equality.

    It is computed as half the squared chord, because 1 - a.b rounds to about -1e-7 where the two agree. The cosine
    with a zero vector counts as 0 (distance 1, no gradient), between two zero vectors as 1 (distance 0).
    """
    a, b = unit(a), unit(b)
    one_is_zero = a.any(dim=-1) ^ b.any(dim=-1)  # then half the squared chord is 0.5 and has to be doubled
    return 0.5 * (a - b).square().sum(dim=-1) * (1.0 + one_is_zero.to(a.dtype))


def mean(values: Tensor) -> Tensor:
    """Mean of all elements; of no elements, a 0 that still belongs to the graph (where `Tensor.mean` gives NaN)."""
    return values.sum() / max(values.numel(), 1)


def check_pair(student: Tensor, teacher: Tensor, name: str, same_width: bool = True) -> None:
    """Raise a readable error unless student and teacher agree in shape.

    Args:
        student: Tensor of shape (..., D_student).
        teacher: Tensor of shape (..., D_teacher).
        name: Name of the calling loss, for the message.
        same_width: Whether the last dimensions must agree, too.

    Raises:
        ValueError: If the leading shapes differ, or the widths do and `same_width` is set.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must agree in every dimension "
            "but the last: give the teacher's rows of the same texts, in the same order."
        )
    if same_width and student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"{name}: the student is {student.shape[-1]} wide, the teacher {teacher.shape[-1]}. Project the teacher "
            "(its cache, or with pca_projection) to the student's width, put a head of the teacher's width on the "
            "student, or use a relational loss (gram, rkd, spearman), which takes any two widths."
        )
