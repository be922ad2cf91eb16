"""Warns when parameters are stored so coarsely that most of the optimiser's updates are rounded away: `LostUpdates`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

_COARSE = (torch.bfloat16, torch.float16)
_SAMPLED = 4096
"""Coordinates of a parameter that are looked at."""
_WORTH_A_WARNING = 0.1
"""Share of lost updates from which a run is warned."""
_LATEST = 50
"""Step at which a long learning rate warm-up is not waited for any longer."""


class LostUpdates(TrainerCallback):
    """Measures once, early in a run, which share of the coordinates an optimiser step leaves exactly as they were.

    A bf16 number has 8 significant bits, so a weight of 0.05 cannot change by less than 1e-4: with a learning rate of
    5e-5 Adam's step is rounded away, again and again. Parameters in float32 under bf16 autocast do not have the problem,
    and are neither measured nor warned about.

    The step that is measured is the first whose learning rate reaches half its peak, at the latest step 50: during the
    first steps of a learning rate warm-up any update is small.

    Attributes:
        share: What was found; `None` while nothing was measured.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._rate = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remembers some coordinates that have a gradient, if this is the step to measure."""
        self._rate = max(group["lr"] for group in kwargs["optimizer"].param_groups)
        waiting = self._rate < 0.5 * args.learning_rate and state.global_step + 1 < _LATEST
        if self.share is not None or waiting or self._rate == 0:
            return
        for parameter in kwargs["model"].parameters():
            if parameter.dtype not in _COARSE or parameter.grad is None:
                continue
            moved = _sample(parameter.grad) != 0
            self._before.append((parameter, _sample(parameter)[moved].clone(), moved))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts which of them are what they were."""
        if not self._before:
            return
        before, self._before = self._before, []
        total = sum(len(old) for _, old, _ in before)
        if not total:
            return
        lost = sum(int((_sample(parameter)[moved] == old).sum()) for parameter, old, moved in before)
        self.share = lost / total
        if self.share > _WORTH_A_WARNING and state.is_world_process_zero:
            dtypes = " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter, *_ in before}))
            logger.warning(
                f"{self.share:.0%} of the coordinates did not move in step {state.global_step + 1}: the parameters are "
                f"{dtypes}, and at the learning rate {self._rate:.2g} their updates are rounded away. Train float32 "
                "parameters under bf16 autocast: `model.float()` before training, with bf16=True."
            )


def _sample(values: Tensor) -> Tensor:
    """Evenly spaced entries of a tensor."""
    flat = values.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLED)]


__all__ = ["LostUpdates"]
