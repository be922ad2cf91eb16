"""Adding up named loss terms with weights that may change over training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add up scalar loss terms, each times its weight.

    Args:
        terms: Name -> scalar tensor. A term of weight 0 stays in the graph with a zero gradient, so that a schedule
            that reaches 0 does not change which parameters take part in distributed training.
        weights: Name -> weight. Names of weight 0 may lack a term.

    Returns:
        Scalar tensor.

    Raises:
        KeyError: If a term has no weight, or a non-zero weight no term.
        ValueError: If there are no terms, or one is not a scalar.

    Example:
        >>> weighted_sum({"cosine": torch.tensor(0.5), "gram": torch.tensor(2.0)}, {"cosine": 1.0, "gram": 0.1})
        tensor(0.7000)
    """
    if not terms:
        raise ValueError("weighted_sum: there are no loss terms; give at least one term a weight above 0.")
    unweighted = [name for name in terms if name not in weights]
    if unweighted:
        raise KeyError(f"weighted_sum: no weight for the loss terms {unweighted}; weights exist for {list(weights)}.")
    missing = [name for name, weight in weights.items() if weight and name not in terms]
    if missing:
        raise KeyError(f"weighted_sum: {missing} have a weight but were not computed; computed: {list(terms)}.")
    for name, term in terms.items():
        if term.ndim:
            raise ValueError(f"weighted_sum: the term {name!r} must be a scalar, but has shape {tuple(term.shape)}.")
    return sum(weights[name] * term for name, term in terms.items())


def weight_at(spec: float | Mapping[str | int, float], step: int, name: str = "weight") -> float:
    """Evaluate a loss weight, constant or scheduled, at a training step.

    Args:
        spec: A number >= 0, or a mapping step -> weight such as ``{"0": 1.0, "500": 0.1}`` (the keys may be strings,
            as in YAML or JSON): linear between the steps, constant before the first and after the last.
        step: Global (optimiser) step, >= 0.
        name: Name of the config field, for messages.

    Returns:
        The weight at that step.

    Raises:
        ValueError: If the specification or the step is not as above. The whole specification is checked at every
            step, so ``weight_at(spec, 0)`` validates a config.

    Example:
        >>> weight_at({"0": 1.0, "500": 0.0}, step=250)
        0.5
    """
    if step < 0:
        raise ValueError(f"{name}: a training step is never negative, but is {step}.")
    if not isinstance(spec, Mapping):
        return _checked_weight(spec, name)
    if not spec:
        raise ValueError(f"{name}: an empty schedule; write a number, or steps and weights such as {{'0': 1.0}}.")
    points = sorted((_checked_step(key, name), _checked_weight(weight, name)) for key, weight in spec.items())
    if len({at for at, _ in points}) < len(points):
        raise ValueError(f"{name}: a step stands twice in the schedule {dict(spec)}.")
    left = max((point for point in points if point[0] <= step), default=points[0])
    right = min((point for point in points if point[0] > step), default=points[-1])
    if right[0] <= left[0]:  # before the first step or after the last one
        return left[1]
    share = (step - left[0]) / (right[0] - left[0])
    return left[1] + share * (right[1] - left[1])


def _checked_step(key: str | int, name: str) -> int:
    if isinstance(key, bool) or not str(key).strip().isdecimal():
        raise ValueError(f"{name}: the schedule's steps must be whole numbers >= 0, but one is {key!r}.")
    return int(key)


def _checked_weight(weight: float, name: str) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{name}: a weight must be a finite number >= 0, but is {weight!r}.")
    return float(weight)
