"""Distil a sentence encoder: teacher cache, mixer alignment, training, selection on validation, one test score, report.

```bash
accelerate launch recipes/embedding_distill.py       # the default: recipes/configs/embedding/deltanet_minilm.yaml
accelerate launch recipes/embedding_distill.py --config recipes/configs/embedding/layers3_minilm.yaml --seed 1
```

Run the same line again after a kill or Ctrl-C and it goes on from the last checkpoint. The run folder then holds `model/`,
`README.md`, `report.html` and `results.json`, and without layer-wise terms (which ask the live teacher) the teacher cache.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.fidelity import FidelityEvaluator
    from hf_distill.evaluation.results import ModelRow, Results
    from hf_distill.evaluation.sts import STSEvaluator
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.embedding_stages import EmbeddingRecipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "embedding" / "deltanet_minilm.yaml"


def main(recipe: EmbeddingRecipe, args: EmbeddingDistillConfig) -> Results:
    """Runs all stages and returns what was measured (rows: by the first process)."""
    from hf_distill.evaluation.results import Results, command_line
    from hf_distill.evaluation.suite import check_data
    from hf_distill.teachers.live import LiveTeacher, load_teacher
    from hf_distill.trainers import embedding_stages as stages
    from hf_distill.trainers.training_summary import stage_of, summarise_training

    started, folder = time.monotonic(), stages.open_run(recipe, args)
    check_data(recipe.tasks, "test")

    # ---- teacher and student ----
    teacher = LiveTeacher(load_teacher(recipe.teacher, revision=recipe.teacher_revision))
    source = teacher if recipe.init_from is None else LiveTeacher(load_teacher(recipe.init_from))
    student = stages.new_student(recipe, source.model, args.seed)
    untrained = stages.new_student(recipe, source.model, args.seed)
    models = {"teacher": teacher.model, "student": student, "untrained": untrained}
    stages.check_space(recipe, args, student, teacher.model.get_embedding_dimension())

    # ---- texts, without any of the evaluation's, and what the teacher says about them ----
    dataset, overlap = stages.load_texts(recipe, args.seed, rows := {})
    if args.process_index == 0:
        print(overlap)
    dataset = stages.tokenize(dataset, source.model.tokenizer, recipe, args)
    signal = stages.teacher_signal(teacher, recipe, args, dataset, student, source)
    evaluators = validation(teacher.model)
    stages.check_metric(args, evaluators, student.get_embedding_dimension())

    # ---- stage 1: every mixer imitates the attention it stands for ----
    spent = [stages.align(student, recipe, args, source, dataset)] if recipe.wants_alignment else []

    # ---- stage 2: end to end; the best checkpoint by validation becomes the student ----
    trainer = stages.distil(student, args, dataset, signal, evaluators)
    spent.append(stage_of("end to end", trainer))

    # ---- the control: the same from random weights, shorter ----
    best_control, control_note = None, ""
    if recipe.control_minutes:
        models["control"] = stages.new_student(recipe, source.model, args.seed, init="random")
        shorter = stages.control_args(args, recipe)
        control = stages.distil(models["control"], shorter, dataset, signal, evaluators)
        spent.append(stage_of("control", control))
        best_control, control_note = control.state.best_metric, f"random init, {control.state.global_step} steps"

    # ---- the test split, once; report ----
    scored = score(models, recipe, control_note, folder) if args.process_index == 0 else []
    gain = stages.judge_gain(trainer, scored, best_control)
    results = Results(
        run=folder.name,
        rows=scored,
        selected_step=stages.best_step(trainer),
        selected_by=args.metric_for_best_model or "",
        command=command_line("recipes/embedding_distill.py", sys.argv[1:]),
        seed=args.seed,
        minutes=(time.monotonic() - started) / 60,
        notes=[str(overlap), str(gain)],
        training=summarise_training(recipe, trainer, teacher.model, source.model, overlap, spent, rows),
    )
    stages.finish(trainer, results, gain, folder)
    return results


def validation(teacher: SentenceTransformer) -> list[STSEvaluator | FidelityEvaluator]:
    """STS-B validation, which chooses the checkpoint, and the closeness to the teacher by length."""
    from hf_distill.data.stsb import load_stsb
    from hf_distill.evaluation.sts import STSEvaluator
    from hf_distill.evaluation.suite import make_fidelity

    return [STSEvaluator.from_dataset(load_stsb("validation")), make_fidelity(teacher, "validation", per_bucket=100)]


def score(
    models: dict[str, SentenceTransformer], recipe: EmbeddingRecipe, control_note: str, folder: Path
) -> list[ModelRow]:
    """The table's rows: every model on STS-B and by length, teacher and student on all tasks; size and speed."""
    from hf_distill.evaluation.score_cache import shared_scores
    from hf_distill.evaluation.suite import add_speed, score_models

    named = {role: (recipe.teacher if role == "teacher" else recipe.student, model) for role, model in models.items()}
    kept = {"cache": shared_scores(folder), "mteb_folder": folder / "mteb"}
    rows = score_models(named, {"validation": ["stsb", "fidelity"], "test": ["stsb", "int8", "fidelity"]}, **kept)
    compared = {role: named[role] for role in ("teacher", "student")}
    more = [task for task in recipe.tasks if task not in ("stsb", "int8", "fidelity")]
    for role, row in score_models(compared, {"test": more}, **kept).items() if more else ():
        rows[role].metrics["test"] |= row.metrics["test"]
    if "control" in rows:
        rows["control"].note = control_note
    add_speed(rows, named, rounds=3)
    return list(rows.values())


def parse(arguments: list[str]) -> tuple[EmbeddingRecipe, EmbeddingDistillConfig]:
    """Reads YAML and command line; without `--config` the default recipe."""
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.embedding_stages import EmbeddingRecipe
    from hf_distill.trainers.recipe_arguments import parse_arguments

    return parse_arguments((EmbeddingRecipe, EmbeddingDistillConfig), arguments, __doc__, DEFAULT_CONFIG)


if __name__ == "__main__":
    from safetensors import SafetensorError

    from hf_distill.hardware import use_all_cores

    use_all_cores()
    try:
        main(*parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ArithmeticError, SafetensorError) as error:
        sys.exit(f"error: {error}")
