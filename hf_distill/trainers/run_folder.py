"""The folder of an embedding distillation run, and what is checked before its first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from hf_distill.evaluation.checkpoints import RECIPE_FILE
from hf_distill.evaluation.score_cache import write_atomically
from hf_distill.hub.push import check_access
from hf_distill.teachers.files import require_space
from hf_distill.trainers.distributed import wait_for_all
from hf_distill.trainers.embedding_config import TERMS, EmbeddingDistillConfig
from hf_distill.trainers.run_checkpoints import damage_of

if TYPE_CHECKING:
    from hf_distill.evaluation.fidelity import FidelityEvaluator
    from hf_distill.evaluation.sts import STSEvaluator
    from hf_distill.trainers.embedding_stages import EmbeddingRecipe

# What training must not change when it goes on; its length may: more steps or minutes make a longer run of the same kind.
_TRAINING = (
    *("seed", "learning_rate", "weight_decay", "freeze", "max_length", "too_long"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "warmup_phase_steps", "warmup_phase_learning_rate", "warmup_phase_scheduler"),
    "warmup_phase_trainable",
    *("per_device_train_batch_size", "gradient_accumulation_steps", "token_budget", "bucket_by_length"),
    *("matryoshka_dims", "hidden_layer_map", "hidden_relative", "hidden_projection", "embedding_projection"),
    *("contrastive_scale", "contrastive_label_smoothing", "spearman_temperature", "ranking_margin", "ranking_min_gap"),
)
_BYTES_PER_PARAMETER = 12  # of a checkpoint: the weight and both moments of Adam, in float32
_CHECKPOINTS = 2  # where the arguments set no limit


def open_run(recipe: EmbeddingRecipe, args: EmbeddingDistillConfig) -> Path:
    """Creates the run's folder, or checks that the one that is there belongs to the same recipe.

    Args:
        recipe: What is asked now.
        args: Training arguments; `output_dir` is the folder.

    Returns:
        The folder.

    Raises:
        ValueError: If it holds a run of another recipe; the message names the first field that differs. Or if
            `resume_from_checkpoint` is no complete checkpoint, or contradicts `fresh`.
        PermissionError: If the run is to be pushed, and nobody is logged in who may.
    """
    folder, is_main = Path(args.output_dir), args.process_index == 0
    if args.push_to_hub and is_main:  # before hours of work, not after them
        check_access(args.hub_model_id or folder.absolute().name)
    if args.resume_from_checkpoint is not None:
        _check_resume(args.resume_from_checkpoint, recipe.fresh)
    asked = describe_run(recipe, args)
    if not recipe.fresh:
        _require_same(folder, asked)
    wait_for_all()  # every process has read what was there
    if is_main:
        for old in [*folder.glob("checkpoint-*"), folder / "alignment", folder / "control"] if recipe.fresh else ():
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE_FILE, json.dumps(asked, indent=2) + "\n")
    wait_for_all()
    return folder


def _check_resume(checkpoint: str, fresh: bool) -> None:
    """Refuses a checkpoint that training cannot go on from, before the first stage."""
    if fresh:
        raise ValueError("--fresh starts anew and --resume_from_checkpoint goes on: drop one of the two.")
    if damage := damage_of(checkpoint):
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {damage}. Give a complete checkpoint-<step> folder of a run, or leave "
            "it out to go on from the last one in --output_dir."
        )


def describe_run(recipe: EmbeddingRecipe, args: EmbeddingDistillConfig) -> dict[str, Any]:
    """What a run is, for its `recipe.json`: all that decides the student, but for how long it trains.

    Args:
        recipe: Who teaches whom, on what.
        args: How.

    Returns:
        JSON values; those of the training proper under `training`.
    """
    asked = {key: value for key, value in asdict(recipe).items() if key not in ("fresh", "cache_dir", "tasks")}
    weights = {term: getattr(args, f"{term}_weight") for term in args.active_terms()}
    schedules = {term: weight for term, weight in weights.items() if isinstance(weight, dict)}
    training = args.weights_at(0) | {name: getattr(args, name) for name in _TRAINING} | {"schedules": schedules}
    return json.loads(json.dumps(asked | {"training": training}))


def _require_same(folder: Path, asked: dict[str, Any]) -> None:
    """Refuses to go on with another run; what the recipe of an older version lacks is not compared."""
    file = folder / RECIPE_FILE
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it to go on, or give --fresh to start anew.") from error
    off = dict.fromkeys(TERMS, 0.0)  # a term that is not named has no weight, in all versions
    now, before = (off | values | values.get("training", {}) for values in (asked, found))
    for key in now:
        if key != "training" and key in before and before[key] != now[key]:
            name = f"{key}_weight" if key in TERMS else key
            raise ValueError(
                f"{folder} holds a run with {name}={before[key]!r}, but now {name}={now[key]!r}. Choose another "
                "--output_dir, or give --fresh to start anew there."
            )


def check_space(
    recipe: EmbeddingRecipe, args: EmbeddingDistillConfig, student: SentenceTransformer, teacher_width: int
) -> None:
    """Estimates, before the first step, what the run will write, and compares it with what is free.

    Args:
        recipe: Whether there is a control run, and how many texts a teacher cache holds.
        args: Folder, and how many checkpoints are kept.
        student: Counts the parameters.
        teacher_width: Of the teacher's embeddings, which a cache holds.

    Raises:
        OSError: If the disk has too little room; names need, free space and folder.
    """
    folder, copies = Path(args.output_dir), 1  # the model; before it, in its place, what stage 1 keeps
    if args.save_strategy != "no":  # the newest checkpoint is there before the oldest one goes
        copies += ((args.save_total_limit or _CHECKPOINTS) + 1) * (2 if recipe.control_minutes else 1)
    needed = copies * _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in student.parameters())
    if "hidden" not in args.active_terms() and recipe.cache_dir is None:
        width = teacher_width * (2 if recipe.first_layer_mix == "concat" else 1)
        needed += recipe.num_texts * (2 * width + 8)
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    remedy = "Free some space, choose another --output_dir, or keep fewer checkpoints with --save_total_limit."
    require_space(folder, needed - there, "The run", remedy)


def check_metric(
    args: EmbeddingDistillConfig, evaluators: Sequence[STSEvaluator | FidelityEvaluator], width: int
) -> None:
    """Refuses a `metric_for_best_model` that no evaluator gives, which the first evaluation would only find out.

    Args:
        args: The metric, and whether there are evaluations at all.
        evaluators: What they run.
        width: Of the student's embeddings.

    Raises:
        ValueError: If there is no such metric; names those that there are.
    """
    if args.eval_strategy == "no" or args.metric_for_best_model is None:
        return
    names = [name for evaluator in evaluators for name in evaluator.metric_names(width)]
    if args.metric_for_best_model.removeprefix("eval_") not in names:
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is none of the validation's metrics. Choose one of "
            f"{', '.join(names)}."
        )


__all__ = ["check_metric", "check_space", "describe_run", "open_run"]
