"""How an embedding distillation run ends: its best checkpoint, the verdict on its gain, what is saved and published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import broadcast_object_list

from hf_distill.evaluation.checkpoints import MODEL_FOLDER
from hf_distill.evaluation.report import print_report, write_report
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.trainers.callbacks import GainSummary, NoGainError, gain_summary
from hf_distill.trainers.distributed import world_size

if TYPE_CHECKING:
    from hf_distill.trainers.embedding import EmbeddingDistillTrainer


def best_step(trainer: EmbeddingDistillTrainer) -> int:
    """Step of the checkpoint that the trainer loaded at the end: the best one, or the last if it chose none."""
    best = trainer.state.best_model_checkpoint
    return trainer.state.global_step if best is None else int(best.rsplit("-", 1)[1])


def judge_gain(
    trainer: EmbeddingDistillTrainer, rows: Sequence[ModelRow], control: float | None = None
) -> GainSummary:
    """Compares a finished run with the start of its last stage, the untrained student and the control.

    Every process has to call it; all get the verdict of the first one.

    Args:
        trainer: Its trainer, after `train()`.
        rows: What was scored; without an untrained student only the others are compared.
        control: Best validation score of a run from random weights.

    Returns:
        The summary.
    """
    args = trainer.args
    metric = args.metric_for_best_model or "loss"
    scores = next((row.metrics.get("validation", {}) for row in rows if row.role == "untrained"), {})
    untrained = scores.get(metric.removeprefix("eval_"))
    summary = gain_summary(trainer.state, metric, bool(args.greater_is_better), control, untrained)
    return broadcast_object_list([summary])[0] if world_size() > 1 else summary


def finish(trainer: EmbeddingDistillTrainer, results: Results, gain: GainSummary, folder: Path) -> None:
    """Saves the model and the report, and publishes them with `push_to_hub`; every process has to call it, last.

    Args:
        trainer: The trainer, with the student that was chosen.
        results: What was measured.
        gain: The verdict on the run.
        folder: Of the run.

    Raises:
        NoGainError: If `require_gain` is set and training was not worth it: after saving, and nothing is published.
    """
    if trainer.is_world_process_zero():
        trainer.model.save(str(folder / MODEL_FOLDER))
        write_report(results, folder, trainer.state.log_history)
        print_report(results)
    if trainer.args.push_to_hub and (gain.passed or not trainer.args.require_gain):
        trainer.push_to_hub()
    trainer.end()
    require_gain(trainer, gain, folder)


def require_gain(trainer: EmbeddingDistillTrainer, gain: GainSummary, folder: Path) -> None:
    """Fails a run that was asked for a gain and has none; call it after saving.

    Args:
        trainer: Its trainer.
        gain: The verdict on the run.
        folder: Of the run.

    Raises:
        NoGainError: If `require_gain` is set and training was not worth it.
    """
    if trainer.args.require_gain and not gain.passed:
        raise NoGainError(f"{gain}. --require_gain asked for one; the model and its report are in {folder}.")


__all__ = ["best_step", "finish", "judge_gain", "require_gain"]
