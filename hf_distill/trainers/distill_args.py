"""Fields and checks that all training configs share: precision, batches by length, time budget, model selection."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from hf_distill.hub.push import check_repo_id

TRAINING_ARGS_FILE = "training_args.json"
_SECRET_FIELDS = ("hub_token", "push_to_hub_token")


def default_bf16() -> bool:
    """Whether bf16 autocast is worth it here: a GPU of compute capability 8, or a CPU with bf16 instructions.

    Returns:
        `True` where matrix products have bf16 units.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@dataclass
class DistillArguments:
    """Mixin for a subclass of [`~transformers.TrainingArguments`]: put it first among the bases.

    Args:
        bf16 (`bool`, *optional*): bf16 autocast over float32 parameters; `None` turns it on where the hardware has it.
        max_length (`int`, *optional*): Longest training sequence in tokens; `None` is the student's own limit, or, where
            it has no table of positions, what its teacher reads (512 without a teacher); never more than the positions
            of a live teacher that reads its ids.
        bucket_by_length (`bool`, *optional*, defaults to `True`): Batch texts of similar length.
        token_budget (`int`, *optional*): Padded tokens of a batch, instead of `per_device_train_batch_size` rows.
        max_minutes (`float`, *optional*): Time budget of training, evaluations included, summed over resumed runs. The
            learning rate reaches 0 at the end of the steps or of the budget, whichever comes first.
        early_stopping_patience (`int`, *optional*): Evaluations without a new best before training stops.
        early_stopping_threshold (`float`, *optional*, defaults to 0.0): What a new best must gain.
        freeze (`list[str]`, *optional*): Parts of parameter names that do not train, such as `word_embeddings`.
        require_gain (`bool`, *optional*, defaults to `False`): Fail unless the best validation score beats the start
            of the training, the untrained student and the random-init control, as far as they were measured. The recipes
            save model and report first.

    > A warm-up phase before the training that the other fields describe (see `trainers/phases.py`)

    Args:
        warmup_phase_steps (`int`, *optional*, defaults to 0): Its optimiser steps, *before* those of `max_steps` or
            `num_train_epochs`; 0 is off. `max_minutes` covers both phases; `eval_steps` and the like count through.
        warmup_phase_learning_rate (`float`, *optional*): Its highest learning rate; `None` is `learning_rate`.
        warmup_phase_scheduler (`str`, *optional*, defaults to `"linear"`): `"linear"` raises the rate over the whole
            phase and reaches it at the last step; `"constant"` keeps it.
        warmup_phase_trainable (`str`, *optional*, defaults to `"all"`): `"embeddings"` trains only the input embeddings,
            and heads that are thrown away after training; everything else stays as it is until the phase ends.

    > These defaults differ from `TrainingArguments`: `bf16` (automatic), `tf32` (on where it exists), `warmup_steps`
    > 0.05 of the run, `logging_steps` 50, `hub_strategy` `"end"` (see [`HubMixin`]), `trackio_static_space_id` `False`
    > (logs are not published by the way); where there is no GPU `use_cpu` is on and `dataloader_pin_memory` off.
    """

    _VALID_DICT_FIELDS = list(TrainingArguments._VALID_DICT_FIELDS)

    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 autocast over float32 parameters. Default: on where the hardware has bf16 units."},
    )
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Linear warm-up: a number of steps, or, below 1, a share of the run."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps; below 1 a share of the run."})
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "When to push: end, every_save (the model), checkpoint or all_checkpoints (also what resumes it)."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest training sequence in tokens. Default: the student's own limit, or, without a table of "
            "positions, its teacher's."
        },
    )
    bucket_by_length: bool = field(default=True, metadata={"help": "Batch texts of similar length together."})
    token_budget: int | None = field(
        default=None, metadata={"help": "Padded tokens of a batch, instead of per_device_train_batch_size rows."}
    )
    max_minutes: float | None = field(
        default=None,
        metadata={"help": "Stop cleanly after so many minutes; the learning rate decays to 0 by then."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a new best after which training stops."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "How much better a new best must be, for early stopping."}
    )
    freeze: list[str] | None = field(
        default=None, metadata={"help": "Parts of parameter names that do not train, such as word_embeddings."}
    )
    require_gain: bool = field(
        default=False,
        metadata={
            "help": "Fail, after saving, unless training beats its start, the untrained student and the control."
        },
    )
    warmup_phase_steps: int = field(
        default=0, metadata={"help": "Optimiser steps of a phase before the training proper; 0 is off."}
    )
    warmup_phase_learning_rate: float | None = field(
        default=None, metadata={"help": "Highest learning rate of the warm-up phase. Default: learning_rate."}
    )
    warmup_phase_scheduler: str = field(
        default="linear", metadata={"help": "linear (the rate rises over the whole warm-up phase) or constant."}
    )
    warmup_phase_trainable: str = field(
        default="all", metadata={"help": "What the warm-up phase trains: all, or only the input embeddings."}
    )

    def __post_init__(self) -> None:
        self._check_fields()
        if self.require_gain:
            self.eval_on_start = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and default_bf16()
        if not torch.cuda.is_available() and not torch.backends.mps.is_available() and not torch.xpu.is_available():
            self.use_cpu = True
        if self.use_cpu:
            self.dataloader_pin_memory = False
        if self.trackio_static_space_id is None:
            self.trackio_static_space_id = False
        if self.tf32 is None and not self.use_cpu and torch.cuda.is_available():
            self.tf32 = True if torch.cuda.get_device_capability()[0] >= 8 else None
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "accelerator_config.dispatch_batches=True would join the batches of the processes, but their widths "
                "differ. Leave it out: every process reads its own rows."
            )
        self.accelerator_config.dispatch_batches = False  # accelerate's own default is True for streams
        if self.max_minutes is not None and self.lr_scheduler_type != "linear":
            raise ValueError(
                f"max_minutes={self.max_minutes} needs lr_scheduler_type='linear' (got {self.lr_scheduler_type.value!r}): "
                "only the linear decay follows the clock. Drop one of the two."
            )

    def _check_fields(self) -> None:
        """Refuses contradictory or dangerous fields; every message names the fix."""
        if any(getattr(self, name, None) for name in _SECRET_FIELDS):
            raise ValueError(
                "hub_token would be written into the run folder. Remove it and log in instead: `hf auth login`, or set "
                "the environment variable HF_TOKEN."
            )
        if self.hub_model_id is not None:
            check_repo_id(self.hub_model_id)
        if self.push_to_hub and _value(self.hub_strategy) != "end" and _value(self.save_strategy) == "no":
            raise ValueError(
                f"hub_strategy={self.hub_strategy!r} pushes what is saved, but save_strategy is 'no'. Set "
                "save_strategy='steps' and save_steps, or hub_strategy='end'."
            )
        if "test" in (self.metric_for_best_model or "").split("_"):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r} would choose the checkpoint on the test split. Set "
                "it to a validation metric, such as stsb_spearman. The test score is read once, at the end."
            )
        for name in ("max_minutes", "token_budget", "max_length", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, but is {value}; leave it out to switch it off.")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "early_stopping_patience needs load_best_model_at_end=True (and metric_for_best_model), or training "
                "would stop and keep the worse, last weights."
            )
        no_evaluation = _value(self.eval_strategy) == "no"
        if self.require_gain and (no_evaluation or self.metric_for_best_model is None):
            raise ValueError(
                "require_gain compares validation scores: set eval_strategy='steps', eval_steps and metric_for_best_model."
            )
        self._check_warmup_phase()
        if self.bf16 and self.fp16:
            raise ValueError("bf16=True and fp16=True contradict each other; drop fp16.")

    def _check_warmup_phase(self) -> None:
        """Refuses a warm-up phase that cannot be."""
        if self.warmup_phase_steps < 0:
            raise ValueError(
                f"warmup_phase_steps is {self.warmup_phase_steps}; give a number of steps, or 0 for none."
            )
        if (
            self.warmup_phase_learning_rate is not None
            and min(self.warmup_phase_learning_rate, self.learning_rate) <= 0
        ):
            raise ValueError(
                f"warmup_phase_learning_rate={self.warmup_phase_learning_rate} is a multiple of "
                f"learning_rate={self.learning_rate}: both must be above 0."
            )
        for name, choices in (("scheduler", ("linear", "constant")), ("trainable", ("all", "embeddings"))):
            value = getattr(self, f"warmup_phase_{name}")
            if value not in choices:
                raise ValueError(f"warmup_phase_{name} must be one of {choices}, but is {value!r}.")

    def save_json(self, folder: str | Path) -> None:
        """Writes the arguments as `training_args.json`: readable, no pickle, no secrets, no local paths.

        Args:
            folder: Existing folder.
        """
        local = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", *_SECRET_FIELDS}
        values = {key: value for key, value in self.to_dict().items() if key not in local}
        for key, value in values.items():  # the file of a DeepSpeed configuration, for instance
            if isinstance(value, str) and Path(value).is_absolute():
                values[key] = Path(value).name
        text = json.dumps(values, indent=2, sort_keys=True, default=str)
        (Path(folder) / TRAINING_ARGS_FILE).write_text(text + "\n", encoding="utf-8")


def _value(option: Any) -> str:
    """An option that is an enumeration's member, or still the text that was given for it."""
    return str(getattr(option, "value", option))


__all__ = ["TRAINING_ARGS_FILE", "DistillArguments", "default_bf16"]
