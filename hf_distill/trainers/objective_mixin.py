"""What every trainer with an objective module shares: wrapping, logging, scheduling, saving and resuming it.

The objective (student + heads) is what is wrapped for distributed training, clipped and optimised; `trainer.model`
stays the bare student, which is what is saved and evaluated.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import BatchSampler, DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from hf_distill.data.collators import column_lengths, text_columns
from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.trainers.callbacks import GainSummary, NoGainError, SamplerEpoch, TimeBudget, gain_summary
from hf_distill.trainers.distill_args import DistillArguments
from hf_distill.trainers.distributed import world_size
from hf_distill.trainers.hub_mixin import HubMixin
from hf_distill.trainers.objective import Objective
from hf_distill.trainers.phases import PhasedBatchSampler, WarmupPhase, phased_factor, step_factor, waiting_parameters
from hf_distill.trainers.precision import LostUpdates
from hf_distill.trainers.state_files import restore_state

HEADS_FILE = "distill_heads.safetensors"
STATE_FILE = "distill_state.json"


def distill_callbacks(args: DistillArguments, callbacks: list[TrainerCallback] | None) -> list[TrainerCallback]:
    """The user's callbacks, with early stopping where the arguments ask for it."""
    callbacks = list(callbacks or [])
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
    return callbacks


class ObjectiveTrainerMixin(HubMixin):
    """Put before a `transformers.Trainer` class; call `_attach_objective` at the end of `__init__`.

    Pushes as [`HubMixin`] says.

    Attributes:
        objective: The module whose forward gives the loss and its terms.
        clock: Training time so far.
    """

    args: DistillArguments
    objective: Objective
    clock: TimeBudget

    def _attach_objective(self, objective: Objective, embeddings: nn.Module | None = None) -> None:
        """Takes over the objective, and states how its loss is scaled.

        Args:
            objective: What is wrapped and optimised.
            embeddings: The student's input embeddings, where they may train alone in a warm-up phase.

        Raises:
            ValueError: If the launcher would shard the student, or one process drives several GPUs; names the launch.
        """
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs. Start one process a GPU: `accelerate launch recipes/….py` (or "
                "`torchrun --nproc_per_node`), or show it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if self.is_fsdp_enabled:
            raise ValueError(
                "FSDP would shard the student, and sentence-transformers cannot save a sharded one. Encoders of this size "
                "fit on every GPU: launch with plain data parallelism (`accelerate launch --multi_gpu`)."
            )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 would partition the student, and every saved model would hold a part of it. Encoders of "
                "this size fit on every GPU: launch with ZeRO-2 (recipes/accelerate_configs/zero2.yaml) or plain data "
                "parallelism (`accelerate launch --multi_gpu`)."
            )
        self.objective = objective
        for pattern in self.args.freeze or ():
            chosen = [parameter for name, parameter in self.model.named_parameters() if pattern in name]
            if not chosen:
                raise ValueError(f"freeze={pattern!r} is part of no parameter's name; see model.named_parameters().")
            for parameter in chosen:
                parameter.requires_grad_(False)
        self._waiting = waiting_parameters(objective.model, embeddings, self.args)
        if self.args.warmup_phase_steps and self.lr_scheduler is not None:
            raise ValueError(
                "warmup_phase_steps makes the learning rate's schedule, but one was given in `optimizers`. Drop one of the "
                "two."
            )
        # The loss is divided by the rows of the whole accumulated batch in `scale_loss`, not by the number of batches.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = False
        self._term_sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self.clock = TimeBudget(self.args.max_minutes, warmup_phase_steps=self.args.warmup_phase_steps)
        for callback in (self.clock, WarmupPhase(self.args.warmup_phase_steps), LostUpdates()):
            self.add_callback(callback)

    # ---- wrapping and optimising the objective ----
    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader]:
        """Wraps the whole objective, so that heads are synchronised and clipped as the student is."""
        student = self.model
        if self.model_wrapped is student:
            self.model_wrapped = self.objective
        self.model = self.objective
        try:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        finally:
            self.model = self.callback_handler.model = student

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay for matrices only: no biases, norms, gates or other vectors and scalars."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def set_initial_training_values(self, args: DistillArguments, dataloader: DataLoader) -> tuple[Any, ...]:
        """The numbers of the training loop; `max_steps` and epochs come on top of the warm-up phase."""
        values = super().set_initial_training_values(args, dataloader)
        epochs, steps_an_epoch, examples, samples, rows_a_step, batches, steps = values
        if not args.warmup_phase_steps:
            return values
        steps += args.warmup_phase_steps
        samples += args.warmup_phase_steps * rows_a_step
        if has_length(dataloader):
            epochs = math.ceil(steps / steps_an_epoch)
        else:  # a stream is one endless epoch
            steps_an_epoch, examples, batches = steps, samples, steps * args.gradient_accumulation_steps
        return epochs, steps_an_epoch, examples, samples, rows_a_step, batches, steps

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The arguments' schedule, that of the warm-up phase before it.

        With a time budget: linear warm-up and decay over steps or time, whichever leads.
        """
        args = self.args
        if self.lr_scheduler is not None or (args.max_minutes is None and not args.warmup_phase_steps):
            return super().create_scheduler(num_training_steps, optimizer)
        steps = num_training_steps - args.warmup_phase_steps
        factor = step_factor(args, steps) if args.max_minutes is None else self._clock_factor(steps)
        factor = phased_factor(args, factor)
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clock_factor(self, num_steps: int) -> Callable[[int], float]:
        """Linear warm-up and decay over steps or time, whichever leads."""
        warmup = self.args.warmup_steps

        def factor(step: int) -> float:
            progress = min(1.0, max(step / num_steps, self.clock.phase_share()))
            begun = step / warmup if warmup >= 1 else (progress / warmup if warmup > 0 else 1.0)
            warm_share = min(0.99, warmup / num_steps if warmup >= 1 else warmup)
            return min(1.0, begun, (1.0 - progress) / (1.0 - warm_share))

        return factor

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A step's forward and backward; what waits for the warm-up phase to end loses its gradient.

        Taking gradients away, instead of `requires_grad`, leaves the optimiser's groups and a distributed wrapper, which
        counts on the gradients of all parameters, as they are in the training proper.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step < self.args.warmup_phase_steps:
            for parameter in self._waiting:
                parameter.grad = None
        return loss

    # ---- batches ----
    def length_sampler(self, dataset: Dataset, batch_size: int, max_length: int, drop_last: bool) -> BatchSampler:
        """The training batches of a tokenised data set, by the arguments' batch size or token budget.

        Over several processes every epoch has equally many whole batches for each of them.

        Args:
            dataset: Rows with `<column>_input_ids`.
            batch_size: Rows of a batch, unless there is a `token_budget`.
            max_length: Where the collator cuts.
            drop_last: Leave out a last batch that is not full.

        Returns:
            The sampler; a callback tells it its epoch.
        """
        columns = text_columns(dataset.column_names)
        budget = self.args.token_budget
        sampler = LengthBucketBatchSampler(
            np.minimum(column_lengths(dataset, columns), max_length),
            None if budget else batch_size,
            token_budget=budget // len(columns) if budget else None,
            bucket=self.args.bucket_by_length,
            drop_last=drop_last,
            seed=self.args.seed,
        )
        args = self.args
        if args.warmup_phase_steps or args.world_size > 1:
            sampler = PhasedBatchSampler(
                sampler, args.warmup_phase_steps, args.gradient_accumulation_steps, args.world_size
            )
        self.remove_callback(SamplerEpoch)
        self.add_callback(SamplerEpoch(sampler))
        return sampler

    # ---- the loss: scale and terms ----
    @staticmethod
    def rows_of(inputs: dict[str, Any]) -> int:
        """Texts in a batch."""
        return len(inputs["offsets"] if "offsets" in inputs else inputs["input_ids"])

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Tensor:
        """Texts in all batches that one optimiser step accumulates, over all processes."""
        rows = torch.tensor(float(sum(self.rows_of(batch) for batch in batch_samples)), device=device)
        return self.accelerator.reduce(rows, "sum") if world_size() > 1 else rows

    def scale_loss(self, loss: Tensor, rows: int, num_items_in_batch: Tensor | None) -> Tensor:
        """Turns a mean over this batch into its share of the mean over the whole accumulated, distributed batch.

        Args:
            loss: Mean over `rows` texts.
            rows: Texts of this batch.
            num_items_in_batch: Texts of the whole step; `None` in evaluation.

        Returns:
            The loss to back-propagate: distributed training averages over processes, hence their number as a factor.
        """
        return loss if num_items_in_batch is None else loss * (rows * world_size() / num_items_in_batch)

    def record_terms(self, terms: dict[str, Tensor], rows: int) -> None:
        """Adds the terms of a batch to the means of the logging window, without waiting for the device."""
        store = self._term_sums["train" if self.model.training else "eval"]
        for name, value in terms.items():
            pair = torch.stack([value.detach().float() * rows, value.new_tensor(rows, dtype=torch.float32)])
            store[name] = store[name] + pair if name in store else pair

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `loss/<term>`, the mean over the window and all processes, and the phase, to a log.

        Raises:
            FloatingPointError: If a term is NaN or infinite: training on would only destroy the weights.
        """
        kind = "train" if "loss" in logs else "eval" if "eval_loss" in logs else None
        if kind is not None:
            store, self._term_sums[kind] = self._term_sums[kind], {}
            logs = dict(logs)
            for name in sorted(store):
                total, rows = self.accelerator.reduce(store[name], "sum").tolist() if world_size() > 1 else store[name]
                value = float(total) / float(rows)
                if not math.isfinite(value) and kind == "train" and not self.args.fp16:
                    raise FloatingPointError(
                        f"loss/{name} is {value} at step {self.state.global_step}. Lower the learning rate or the "
                        f"weight of {name!r}, then resume from the last checkpoint in {self.args.output_dir}."
                    )
                logs[f"{'eval_' if kind == 'eval' else ''}loss/{name}"] = value
        if self.args.warmup_phase_steps:
            logs = {**logs, "phase": 1 if self.state.global_step <= self.args.warmup_phase_steps else 2}
        super().log(logs, start_time)

    # ---- saving and resuming ----
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the bare student; into a checkpoint also the heads and the clock."""
        super().save_model(output_dir, _internal_call)
        if output_dir is None or not Path(output_dir).name.startswith(PREFIX_CHECKPOINT_DIR):
            return
        if self.args.should_save:
            heads = self.objective.head_state()
            if heads:
                tensors = {name: tensor.contiguous().cpu() for name, tensor in heads.items()}
                save_file(tensors, Path(output_dir) / HEADS_FILE, metadata={"format": "pt"})
            state = {"elapsed_seconds": self.clock.seconds(), "phase_began_seconds": self.clock.phase_began}
            state["heads"] = sorted(heads)
            (Path(output_dir) / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def _load_objective_state(self, checkpoint: str, *, clock: bool) -> None:
        """Restores heads (and the clock) from a checkpoint.

        Raises:
            FileNotFoundError: If the checkpoint is not one of ours.
            ValueError: If its heads are not this run's.
        """
        file = Path(checkpoint) / STATE_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{checkpoint} holds no {STATE_FILE}: it was not written by {type(self).__name__}. Resume from a "
                f"'{PREFIX_CHECKPOINT_DIR}-<step>' folder of an earlier run with the same config."
            )
        state = json.loads(file.read_text(encoding="utf-8"))
        heads = Path(checkpoint) / HEADS_FILE
        self.objective.load_head_state(load_file(heads) if heads.is_file() else {})
        if clock:
            self.clock.elapsed_before = self.clock.elapsed = state["elapsed_seconds"]
            self.clock.phase_began = state.get("phase_began_seconds", self.clock.phase_began)

    def _load_best_model(self) -> None:
        """Loads the weights (and heads) of the best checkpoint; a failure is an error, not a log line."""
        self._load_weights(self.state.best_model_checkpoint)
        self._load_objective_state(self.state.best_model_checkpoint, clock=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Restores student, heads and clock to resume training; a checkpoint from the Hub is unpacked first."""
        if self.is_local_process_zero():
            restore_state(resume_from_checkpoint)
        if world_size() > 1:
            dist.barrier()
        self._load_weights(resume_from_checkpoint)
        self._load_objective_state(resume_from_checkpoint, clock=True)
        self.args.eval_on_start = False  # the score of the untrained start is in the checkpoint's history

    def end(self) -> None:
        """Ends a script: call it last, in every process.

        The distributed wrapper is let go before the processes part: destroyed after them, it hangs or aborts on CPU.
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        if world_size() > 1:
            dist.barrier()
        super().end()

    def check_gain(self, control: float | None = None) -> GainSummary:
        """Compares the run with its own start and a random-init control, by the validation metric.

        Args:
            control: Best validation score of a run from random weights.

        Returns:
            The summary; print it.

        Raises:
            NoGainError: If `require_gain` is set and training was not worth it.
        """
        args = self.args
        summary = gain_summary(self.state, args.metric_for_best_model or "loss", bool(args.greater_is_better), control)
        if args.require_gain and not summary.passed:
            raise NoGainError(str(summary))
        return summary


__all__ = ["HEADS_FILE", "STATE_FILE", "ObjectiveTrainerMixin", "distill_callbacks"]
