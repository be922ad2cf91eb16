"""The runs of the tokenizer experiment: one student with one seed each, and what makes two of them the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.evaluation.paired import SIMILARITIES_FILE
from hf_distill.evaluation.results import RESULTS_FILE

if TYPE_CHECKING:
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig

CUTS = ("num_layers", "hidden_size", "intermediate_size")  # what can be cut out of a backbone
_FACTS = ("name", "tokenizer", "model", *CUTS, "random")
_FIRST_FIELDS = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "token_budget", "max_length"),
    *("num_train_epochs", "max_steps", "max_minutes", "weight_decay", "warmup_steps", "freeze"),
    *("warmup_phase_steps", "warmup_phase_learning_rate", "warmup_phase_scheduler", "warmup_phase_trainable"),
)
# Runs that were finished before these were written down say nothing of them: they are compared where both sides know.
_LATER_FIELDS = (
    *("lr_scheduler_type", "lr_scheduler_kwargs", "bf16", "fp16", "optim", "optim_args", "world_size"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "too_long", "bucket_by_length"),
    *("embedding_projection", "matryoshka_dims"),
)
_LATER_OF_JOBS = ("equal_tokens",)


@dataclass(frozen=True)
class Job:
    """One student with one seed.

    Args:
        name: Of the student, `"mft-embeddinggemma"`.
        tokenizer: Name of its tokenizer.
        model: Whose encoder it is, and whose shape a random one has.
        num_layers: How many of its layers; `None` for all.
        random: Whether it starts from random weights.
        seed: Of batches and random weights.
        folder: Where the run is.
        hidden_size: How many of its channels; `None` for all.
        intermediate_size: How many neurons of each feed-forward layer; `None` for all.
        learning_rate: Its highest one; `None` for that of the arguments.
        equal_tokens: Whether it sees as many tokens, not texts, as the students of the other tokenizers.
    """

    name: str
    tokenizer: str
    model: str
    num_layers: int | None
    random: bool
    seed: int
    folder: Path
    hidden_size: int | None = None
    intermediate_size: int | None = None
    learning_rate: float | None = None
    equal_tokens: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it is trained and scored: its last file is there."""
        return is_finished(self.folder)


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds results and, written after them, the similarities of the test pairs."""
    return (folder / RESULTS_FILE).is_file() and (folder / SIMILARITIES_FILE).is_file()


def describe_job(job: Job, strategy: str, args: EmbeddingDistillConfig) -> dict[str, Any]:
    """What one run is, for its `recipe.json`: the seeds of one student differ in `training.seed` only.

    Args:
        job: The run.
        strategy: How its token vectors are composed.
        args: How it is trained.

    Returns:
        JSON values.
    """
    training = {name: getattr(args, name) for name in (*_FIRST_FIELDS, *_LATER_FIELDS)}
    training |= {term: getattr(args, f"{term}_weight") for term in args.active_terms()} | {"seed": job.seed}
    training |= {name: getattr(job, name) for name in _LATER_OF_JOBS}
    training["learning_rate"] = job.learning_rate or args.learning_rate
    facts = {name: getattr(job, name) for name in _FACTS}
    return json.loads(json.dumps(facts | {"strategy": strategy, "training": training}))


def differing_field(found: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field in which two `recipe.json` differ.

    Args:
        found: The one that is there; a field it lacks counts as `None`.
        asked: What is asked for now.

    Returns:
        Its name, `"training.learning_rate"` for one of the training, and both values; `None` where they agree.
    """
    for name, value in asked.items():
        known = found.get(name)
        if name == "training" and known is not None:
            for part in {**value, **known}:
                unsaid = part in (*_LATER_FIELDS, *_LATER_OF_JOBS) and part not in known
                if not unsaid and known.get(part) != value.get(part):
                    return f"training.{part}", known.get(part), value.get(part)
        elif known != value:
            return name, known, value
    return None


__all__ = ["CUTS", "Job", "describe_job", "differing_field", "is_finished"]
