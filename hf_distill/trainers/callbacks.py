"""Callbacks of the trainers: the clock of a time budget, the epoch of the sampler, and the verdict on a run's gain."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.trainers.distributed import world_size
from hf_distill.trainers.phases import PhasedBatchSampler


class TimeBudget(TrainerCallback):
    """Measures training time over all resumed runs, and stops training when the budget is spent.

    The end of a run, by steps or by time, is always evaluated and saved, so that the last weights can be chosen too.

    All processes follow the clock of the first, so that they take the same learning rate and stop at the same step.

    Args:
        max_minutes (`float`, *optional*): The budget; `None` only measures.
        elapsed_seconds (`float`, *optional*, defaults to 0.0): Time spent before, from a checkpoint.
        warmup_phase_steps (`int`, *optional*, defaults to 0): Steps of a first phase with a schedule of its own.

    Attributes:
        phase_began: When the training proper began, in seconds of training; `None` during the first phase.
    """

    def __init__(
        self, max_minutes: float | None = None, elapsed_seconds: float = 0.0, warmup_phase_steps: int = 0
    ) -> None:
        self.max_seconds = None if max_minutes is None else 60.0 * max_minutes
        self.elapsed_before = elapsed_seconds
        self.elapsed = elapsed_seconds
        self.started: float | None = None
        self.warmup_phase_steps = warmup_phase_steps
        self.phase_began: float | None = None if warmup_phase_steps else 0.0

    def seconds(self) -> float:
        """Seconds of training so far, evaluations included, of this process."""
        return self.elapsed_before + (0.0 if self.started is None else time.monotonic() - self.started)

    def share(self) -> float:
        """Share of the budget that is spent, 0 without a budget; the same in every process."""
        return 0.0 if self.max_seconds is None else self.elapsed / self.max_seconds

    def phase_share(self) -> float:
        """Share that is spent of the time from the first phase's end to the end of the budget; 0 before."""
        if self.max_seconds is None or self.phase_began is None:
            return 0.0
        left = self.max_seconds - self.phase_began
        return (self.elapsed - self.phase_began) / left if left > 0 else 1.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self.started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the clock; at the end asks for a last evaluation and checkpoint, and stops."""
        self.elapsed = self.seconds()
        if self.max_seconds is not None and world_size() > 1:
            clock = torch.tensor([self.elapsed], dtype=torch.float64, device=args.device)
            dist.broadcast(clock, src=0)
            self.elapsed = clock.item()
        if state.global_step == self.warmup_phase_steps:
            self.phase_began = self.elapsed
        if self.share() >= 1.0 or state.global_step >= state.max_steps:
            control.should_training_stop = True
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops the clock."""
        self.elapsed_before, self.started = self.seconds(), None


class SamplerEpoch(TrainerCallback):
    """Tells the training sampler its epoch, which accelerate forgets when a distributed run resumes inside an epoch.

    Args:
        sampler: The sampler of the training set.
    """

    def __init__(self, sampler: LengthBucketBatchSampler | PhasedBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch that begins, or goes on."""
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class NoGainError(RuntimeError):
    """A run that was asked to gain (`require_gain`) and did not."""


@dataclass(frozen=True)
class GainSummary:
    """Whether training was worth it, by the validation metric that chooses the checkpoint.

    Args:
        metric: Its name.
        best: Best value during training.
        start: Value before the first step of this stage, if it was evaluated; an earlier stage may have raised it.
        control: Best value of the same run from random weights, if there was one.
        greater_is_better: Direction of the metric.
        untrained: Value of the student before any stage, if it was measured.
    """

    metric: str
    best: float | None
    start: float | None
    control: float | None
    greater_is_better: bool
    untrained: float | None = None

    def _beats(self, other: float) -> bool:
        return self.best > other if self.greater_is_better else self.best < other

    @property
    def passed(self) -> bool:
        """Whether the best value beats everything it is compared with; `False` when there is nothing to compare."""
        others = [value for value in (self.start, self.untrained, self.control) if value is not None]
        return self.best is not None and bool(others) and all(self._beats(value) for value in others)

    def __str__(self) -> str:
        def show(value: float | None) -> str:
            return "not measured" if value is None else f"{value:.4f}"

        parts = [f"best {show(self.best)}", f"start of this stage {show(self.start)}"]
        if self.untrained is not None:
            parts.append(f"untrained {show(self.untrained)}")
        parts.append(f"random-init control {show(self.control)}")
        return f"{'gain' if self.passed else 'NO GAIN'}: {self.metric} {', '.join(parts)}"


def gain_summary(
    state: TrainerState,
    metric: str,
    greater_is_better: bool,
    control: float | None = None,
    untrained: float | None = None,
) -> GainSummary:
    """Compares the best validation score with the start of the stage, the untrained student and the random-init control.

    Args:
        state: State of a finished run; the start is its evaluation at step 0 (`eval_on_start`).
        metric: `metric_for_best_model`, with or without `eval_`.
        greater_is_better: Direction of the metric.
        control: Best score of a run from random weights.
        untrained: Score of the student before any stage, where that is not the start of this one.

    Returns:
        The summary.
    """
    key = metric if metric.startswith("eval_") else f"eval_{metric}"
    values = [(entry["step"], entry[key]) for entry in state.log_history if key in entry]
    start = next((value for step, value in values if step == 0), None)
    trained = [value for step, value in values if step > 0]
    best = (max if greater_is_better else min)(trained) if trained else None
    return GainSummary(key, best, start, control, greater_is_better, untrained)


__all__ = ["GainSummary", "NoGainError", "SamplerEpoch", "TimeBudget", "gain_summary"]
