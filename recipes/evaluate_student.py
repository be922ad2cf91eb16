"""Score the checkpoints of a run on validation, make the best one its model, and write the report.

```bash
accelerate launch recipes/evaluate_student.py --run runs/deltanet_minilm                        # all checkpoints
accelerate launch recipes/evaluate_student.py --run runs/deltanet_minilm --checkpoints best --tasks all --test
accelerate launch recipes/evaluate_student.py --run runs/seed1 --tasks stsb,Banking77Classification --test
```

Tasks are those of hf_distill, and any of mteb's by its name (from the Hub). The choice is made on validation. The test
split is read only with `--test`, once, for the chosen checkpoint (and the teacher), in float32. What has been computed is
not computed again. The run then holds `model/`, `results.json`, `curves.png`, `README.md`, `report.html` and `mteb/`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.results import CheckpointScore, Results
    from hf_distill.evaluation.score_cache import ScoreCache


@dataclass
class EvaluateConfig:
    """What to score, on which tasks, against which teacher."""

    run: str = field(metadata={"help": "Folder of a training run, with its checkpoint-<step> folders."})
    checkpoints: str = field(
        default="all", metadata={"help": "all, best (as the trainer logged it), final, or steps such as 100,200."}
    )
    tasks: str = field(
        default="stsb,int8,fidelity,stsbenchmark,retrieval,lexnames,modules",
        metadata={
            "help": "Tasks of the report: stsb,int8,embedding_int8,embedding_binary,fidelity,stsbenchmark,retrieval,"
            "lexnames,modules, all of these; stsb_tr,bitext (Turkish); or names of mteb's tasks such as Banking77Classification."
        },
    )
    metric: str = field(default="stsb_spearman", metadata={"help": "Validation metric that chooses the checkpoint."})
    teacher: str | None = field(
        default=None, metadata={"help": "Teacher: id or folder. Default: the run's recipe.json."}
    )
    test: bool = field(default=False, metadata={"help": "Read the test split, once, for the chosen checkpoint."})
    speed: bool = field(default=True, metadata={"help": "Measure size and speed."})
    dtype: str = field(default="auto", metadata={"help": "Precision on validation: auto, float32 or bfloat16."})
    stsb_tr_folder: str | None = field(
        default=None,
        metadata={"help": "Folder with the files of STSb-TR, for the task stsb_tr. Default: from the Hub."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow a teacher with its own code on the Hub."})

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if "test" in self.metric.split("_"):
            raise ValueError(
                "The checkpoint must not be chosen on the test split: --metric names a validation metric."
            )


def select(
    config: EvaluateConfig, teacher: tuple[str, SentenceTransformer] | None, cache: ScoreCache
) -> list[CheckpointScore]:
    """Score the checkpoints on validation and make the best one the run's model; the best comes first."""
    from hf_distill.evaluation import suite
    from hf_distill.evaluation.checkpoints import MODEL_FOLDER, choose_checkpoints, load_checkpoint, publish_checkpoint
    from hf_distill.evaluation.results import CheckpointScore
    from hf_distill.evaluation.turkish import TURKISH_TASKS, turkish_evaluators

    task, checkpoints, scores = suite.task_of(config.metric), choose_checkpoints(config.run, config.checkpoints), []
    fidelity = suite.make_fidelity(teacher[1], "validation", config.dtype) if teacher and task == "fidelity" else None
    turkish = turkish_evaluators(
        [task] if task in TURKISH_TASKS else [],
        "validation",
        config.dtype,
        config.stsb_tr_folder,
        teacher and teacher[1],
    )
    for checkpoint in checkpoints:
        model = load_checkpoint(checkpoint.path)
        metrics = suite.evaluate_model(model, [task], "validation", config.dtype, fidelity, cache, turkish=turkish)
        if config.metric not in metrics:
            raise ValueError(f"There is no metric {config.metric!r}; the task {task} has {', '.join(metrics)}.")
        scores.append(CheckpointScore(checkpoint.step, metrics))
        print(f"step {checkpoint.step}: validation {config.metric} {metrics[config.metric]:.4f}")
    scores.sort(key=lambda score: -score.metrics[config.metric])
    best = next(checkpoint for checkpoint in checkpoints if checkpoint.step == scores[0].step)
    publish_checkpoint(best, Path(config.run) / MODEL_FOLDER)
    return scores


def score(config: EvaluateConfig) -> Results:
    """Choose the model on validation, then score it and the teacher in full."""
    from hf_distill.evaluation import suite
    from hf_distill.evaluation.checkpoints import MODEL_FOLDER, choose_checkpoints, load_checkpoint, load_run_teacher
    from hf_distill.evaluation.results import RESULTS_FILE, Results, command_line
    from hf_distill.evaluation.score_cache import shared_scores

    tasks, run = suite.parse_tasks(config.tasks), Path(config.run)
    choose_checkpoints(run, config.checkpoints)  # what is wrong with the run is said before a teacher is loaded
    results = Results.read(run) if (run / RESULTS_FILE).is_file() else Results(run.resolve().name)
    splits = {"validation": [suite.task_of(config.metric)], "test": tasks} if config.test else {"validation": tasks}
    for split, names in splits.items():
        suite.check_data(names, split, config.stsb_tr_folder)
    teacher = load_run_teacher(run, config.teacher, config.trust_remote_code)
    if teacher is None and "fidelity" in (*tasks, suite.task_of(config.metric)):
        raise ValueError("The task fidelity needs --teacher: the run's recipe.json names none. Or leave fidelity out.")
    cache = shared_scores(run)  # other seeds of this run have the same teacher
    scores = select(config, teacher, cache)
    student = load_checkpoint(run / MODEL_FOLDER)
    models = ({"teacher": teacher} if teacher else {}) | {"student": (run.resolve().name, student)}
    rows = suite.score_models(models, splits, config.dtype, cache, run / "mteb", config.stsb_tr_folder)
    if config.speed:
        suite.add_speed(rows, models)
    results.put_session(rows.values())
    results.checkpoints = sorted(scores, key=lambda score: score.step)
    results.selected_step, results.selected_by = scores[0].step, f"validation {config.metric}"
    results.command = results.command or command_line("recipes/evaluate_student.py", sys.argv[1:])
    return results


def main(config: EvaluateConfig) -> Results | None:
    """Score the run on the main process, write its report and print it."""
    from accelerate import PartialState

    from hf_distill.evaluation.report import print_report, write_report
    from hf_distill.hardware import use_all_cores

    use_all_cores()
    if not PartialState().is_main_process:
        return None
    results = score(config)
    write_report(results, config.run)
    print_report(results)
    return results


if __name__ == "__main__":
    from hf_distill.trainers.recipe_arguments import parse_arguments

    try:
        main(*parse_arguments((EvaluateConfig,), sys.argv[1:], __doc__))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on: what has been scored is kept.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
