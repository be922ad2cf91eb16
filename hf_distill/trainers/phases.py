"""A warm-up phase before the training proper, as one run: its batches, its learning rate, its place in the state.

Both phases are steps of one `Trainer.train()`: steps `0 … warmup_phase_steps - 1` are the warm-up phase, all later ones
the training proper, whose steps, epochs and schedule are what they would be alone. So one state, one log, one clock and
one choice of the best checkpoint cover both, and a run resumes anywhere, the boundary included.

There is ONE optimiser. Its moments after the warm-up are what the phase is for: a fresh one would begin the training
proper with the same uncertain first steps again. What does not train in the warm-up phase has no gradient there, so the
optimiser neither moves it nor keeps a state for it; its state begins with its first own step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.trainers.distill_args import DistillArguments

logger = logging.get_logger(__name__)

_WARMUP_PASS = 1_000_000
"""Number of the first pass over the data in the warm-up phase: its order must not be that of the first real epoch."""


class WarmupPhase(TrainerCallback, ExportableState):
    """Writes the phase into every checkpoint's `trainer_state.json`, logs the boundary, refuses another one on resume.

    Args:
        steps (`int`, *optional*, defaults to 0): Optimiser steps of the warm-up phase; 0 for none.

    Attributes:
        phase: Of the step that comes next, 1 or 2.
    """

    def __init__(self, steps: int = 0) -> None:
        self.steps = steps
        self.phase = 1 if steps else 2

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {"steps": self.steps}, "attributes": {"phase": self.phase}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds the phase that a run begins or goes on in.

        Raises:
            ValueError: If the checkpoint was written with another warm-up phase.
        """
        saved = state.stateful_callbacks.get(type(self).__name__, {"args": {"steps": 0}})
        if state.global_step and saved["args"]["steps"] != self.steps:
            raise ValueError(
                f"The checkpoint was written with warmup_phase_steps={saved['args']['steps']}, but now it is {self.steps}. "
                "Resume with the value of the checkpoint, or choose another output_dir."
            )
        self.phase = 1 if state.global_step < self.steps else 2
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves on at the boundary, and has it logged."""
        self.phase = 1 if state.global_step < self.steps else 2
        if state.global_step == self.steps:
            control.should_log = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says so when the budget ended before the training proper began."""
        if self.phase == 1:
            logger.warning(
                f"Training ended at step {state.global_step}, inside the warm-up phase of {self.steps} steps. Raise "
                "max_minutes, or lower warmup_phase_steps."
            )


class PhasedBatchSampler(BatchSampler):
    """The batches of a warm-up phase and then those of whole epochs, cut into pieces of the length of an epoch.

    A `Trainer` knows only epochs of equal length. Its pieces are therefore shifted against the epochs of the training
    proper, which are, batch for batch, those of a run without a warm-up phase: in each, every row comes once. The
    warm-up phase has an order of its own. Every piece is a pure function of seed and number, as resuming requires.

    Over several processes, each epoch is cut to whole batches, equally many for every process: a process with a batch
    more than another would wait for it for ever.

    Args:
        epochs: Batches of an epoch.
        steps (`int`, *optional*, defaults to 0): Optimiser steps of the warm-up phase.
        accumulation (`int`, *optional*, defaults to 1): Batches of a step in each process.
        processes (`int`, *optional*, defaults to 1): Training processes.

    Raises:
        ValueError: If there is not one whole batch for every process.
    """

    def __init__(
        self, epochs: LengthBucketBatchSampler, steps: int = 0, accumulation: int = 1, processes: int = 1
    ) -> None:
        self.epochs = epochs
        self.batch_size, self.drop_last = epochs.batch_size, epochs.drop_last
        count = len(epochs)
        if processes > 1:
            if self.batch_size is not None:
                count = len(epochs.lengths) // self.batch_size
            count = count // processes * processes
        if not count:
            raise ValueError(
                f"{len(epochs.lengths)} rows make fewer whole batches than the {processes} processes. Lower "
                "per_device_train_batch_size or the token_budget, or start fewer processes."
            )
        self.num_batches = count
        steps_an_epoch = -(-count // processes // accumulation)
        whole, rest = divmod(steps, steps_an_epoch)
        self.warmup_batches = whole * count + rest * accumulation * processes
        self.epoch = 0
        self._pass: tuple[int, list[list[int]]] = (-1, [])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the piece; called before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        start = self.epoch * self.num_batches
        for position in range(start, start + self.num_batches):
            if position < self.warmup_batches:
                number, place = divmod(position, self.num_batches)
                number += _WARMUP_PASS
            else:
                number, place = divmod(position - self.warmup_batches, self.num_batches)
            yield self._batches(number)[place]

    def _batches(self, number: int) -> list[list[int]]:
        """The batches of one pass over the data; the last one is kept."""
        if self._pass[0] != number:
            self.epochs.set_epoch(number)
            self._pass = (number, list(self.epochs))
        return self._pass[1]


def step_factor(args: TrainingArguments, num_steps: int) -> Callable[[int], float]:
    """The arguments' schedule as a factor on the learning rate.

    Args:
        args: Kind of schedule, with its parameters.
        num_steps: Optimiser steps of the training proper.

    Returns:
        Step (from 0) -> factor.

    Raises:
        ValueError: If the schedule is not a function of the step.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)  # some schedules read the rate from it
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(schedule, LambdaLR):
        raise ValueError(
            f"lr_scheduler_type={args.lr_scheduler_type.value!r} follows the metric, which a warm-up phase cannot come "
            "before. Choose another, such as 'linear', or set warmup_phase_steps=0."
        )
    return schedule.lr_lambdas[0]


def phased_factor(args: DistillArguments, proper: Callable[[int], float]) -> Callable[[int], float]:
    """The schedule of the warm-up phase, then another.

    Args:
        args: The phase's steps, learning rate and schedule.
        proper: Factor of the training proper, by its own steps.

    Returns:
        Step of the run (from 0) -> factor on `learning_rate`.
    """
    steps, peak = args.warmup_phase_steps, 1.0
    if args.warmup_phase_learning_rate is not None:
        peak = args.warmup_phase_learning_rate / args.learning_rate

    def factor(step: int) -> float:
        if step >= steps:
            return proper(step - steps)
        return peak * (step + 1) / steps if args.warmup_phase_scheduler == "linear" else peak

    return factor


def waiting_parameters(student: nn.Module, embeddings: nn.Module | None, args: DistillArguments) -> list[nn.Parameter]:
    """The student's parameters that do not train in the warm-up phase.

    Args:
        student: The student.
        embeddings: Its input embeddings; `None` where they never train.
        args: What the phase trains.

    Returns:
        The parameters; none if the phase trains all of them.

    Raises:
        ValueError: If nothing would train.
    """
    if not args.warmup_phase_steps or args.warmup_phase_trainable == "all":
        return []
    own = [] if embeddings is None else [p for p in embeddings.parameters() if p.requires_grad]
    if not own:
        raise ValueError(
            "warmup_phase_trainable='embeddings' would train nothing: the input embeddings are frozen, or not this "
            "trainer's to train. Set it to 'all', or take them out of `freeze`."
        )
    return [parameter for parameter in student.parameters() if all(parameter is not other for other in own)]


__all__ = ["PhasedBatchSampler", "WarmupPhase", "phased_factor", "step_factor", "waiting_parameters"]
