"""Configuration of `MixerAlignmentTrainer`, stage 1 of distilling a linear-attention encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_distill.trainers.distill_args import DistillArguments

SHARED_WITH_STAGE_2 = (
    *("max_length", "num_train_epochs", "max_grad_norm", "seed", "full_determinism"),
    *("bf16", "fp16", "tf32", "use_cpu", "ddp_timeout", "dataloader_num_workers"),
    *("report_to", "disable_tqdm"),
)
"""Fields that a run sets once, for both stages. Weight decay is not among them: stage 1 keeps a default of its own."""


@dataclass
class MixerAlignmentConfig(DistillArguments, TrainingArguments):
    """Arguments of [`MixerAlignmentTrainer`].

    Args:
        relative (`bool`, *optional*, defaults to `True`): Divide each layer's error by the energy of its target, so
            that all layers weigh alike and 1 is the error of predicting nothing.
        layer_reduction (`str`, *optional*, defaults to `"sum"`): `"sum"` or `"mean"` over the layers. They share no
            weights, so with Adam the choice only matters for gradient clipping.

    > `remove_unused_columns` is `False` and `eval` reports the loss only: the collator chooses its columns itself.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator reads the columns it needs."}
    )
    relative: bool = field(default=True, metadata={"help": "Divide each layer's error by the energy of its target."})
    layer_reduction: str = field(default="sum", metadata={"help": "sum or mean over the layers."})

    def __post_init__(self) -> None:
        if self.layer_reduction not in ("sum", "mean"):
            raise ValueError(f"layer_reduction must be 'sum' or 'mean', but is {self.layer_reduction!r}.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: the columns hold token ids, not model arguments.")
        super().__post_init__()
        self.prediction_loss_only = True


__all__ = ["SHARED_WITH_STAGE_2", "MixerAlignmentConfig"]
