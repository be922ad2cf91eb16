r"""Compare tokenizers: students that differ in tokenizer and start alone learn one teacher's vectors of Turkish text.

```bash
accelerate launch recipes/tokenizer_distill.py --stsb_tr_folder FOLDER      # recipes/configs/tokenizer/table.yaml
accelerate launch recipes/tokenizer_distill.py --config recipes/configs/tokenizer/mft_embeddinggemma.yaml
accelerate launch recipes/tokenizer_distill.py --only mft-random-init tabi-random-init --seeds 42 1 2
```

The default is a reduced stand-in that needs no Hub; the configs named after a student have the experiment's own models
and data. A tokenizer is made if need be, the corpus is encoded once, and the students ({tokenizers} x {backbones}, null
for random weights) are trained one after the other: a warm-up phase, then the epochs, loss 1 - cos. STSb-TR's validation
chooses the checkpoint, its test split is read once. Its files are figenfikri/stsb_tr on the Hub, or in a folder. Run the
same line again after a kill or Ctrl-C: finished students are skipped, the interrupted one goes on from its last
checkpoint. Further --seeds and students can be added. The folder then holds tokenizers.md with its figures, and a run of
each student with `model/`, README.md and results.json. Several teachers, each with its own prompt:
--teachers '{"query": {"model": ID, "prompt": "query: "}, "passage": {"model": ID, "prompt": "passage: "}}'
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.results import ModelRow
    from hf_distill.trainers.embedding import EmbeddingDistillTrainer
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.tokenizer_jobs import Job
    from hf_distill.trainers.tokenizer_materials import Materials
    from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tokenizer" / "table.yaml"


def main(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> dict[str, Path]:
    """Trains the students that are missing; returns the files of the table."""
    from hf_distill.trainers import tokenizer_stages as stages
    from hf_distill.trainers.tokenizer_materials import prepare

    jobs = stages.open_experiment(recipe, args)
    todo = [job for job in jobs if not job.is_finished]
    is_main = args.process_index == 0
    if is_main:
        print(*filter(None, [recipe.note, f"{len(jobs)} runs; {len(jobs) - len(todo)} are done already."]), sep="\n")

    # ---- tokenizers, then the corpus in all of them, then the students one after the other ----
    materials = prepare(recipe, args) if todo else None
    try:
        for number, job in enumerate(todo, 1):
            if is_main:
                print(f"[{number}/{len(todo)}] {job.folder.name}, {len(materials.dataset):,} texts", flush=True)
            trainer = run_student(job, recipe, args, materials)
            if number == len(todo):
                trainer.end()
    except BaseException:  # Ctrl-C, too: the students that are finished get their table, and the error goes on
        try:
            show_table(recipe, args)
        except (ValueError, OSError) as problem:
            print(f"There is no table: {problem}", file=sys.stderr)
        raise
    return show_table(recipe, args)


def show_table(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> dict[str, Path]:
    """Writes and prints the table of all students that are finished, also in other calls."""
    from hf_distill.trainers.tokenizer_stages import compare_finished

    files = compare_finished(recipe, args)
    print(files["table"].read_text(encoding="utf-8") if files else "", end="", flush=True)
    return files


def run_student(
    job: Job, recipe: TokenizerRecipe, args: EmbeddingDistillConfig, materials: Materials
) -> EmbeddingDistillTrainer:
    """Trains, scores and saves one student."""
    from hf_distill.evaluation.results import Results, command_line
    from hf_distill.evaluation.turkish import turkish_evaluators
    from hf_distill.trainers import tokenizer_stages as stages
    from hf_distill.trainers.embedding_stages import best_step, distil

    started = time.monotonic()
    student, surgery = stages.new_student(job, recipe, materials)
    models = {"teacher": materials.teacher, "student": student, "untrained": copy.deepcopy(student)}
    named = {role: (recipe.teacher if role == "teacher" else job.name, model) for role, model in models.items()}

    # ---- both phases; the best checkpoint by validation becomes the student ----
    evaluators = turkish_evaluators(["stsb_tr"], "validation", folder=recipe.stsb_tr_folder).values()
    own = stages.as_many_tokens(stages.job_arguments(job, recipe, args), job, materials)
    trainer = distil(student, own, materials.dataset, None, [*evaluators])
    trainer.save_state()  # the log, which outlives the checkpoints

    # ---- the test split, once; report ----
    results = Results(
        run=job.folder.name,
        rows=stages.without_unknown(score(named, job, recipe), materials.teacher),
        selected_step=best_step(trainer),
        selected_by=args.metric_for_best_model or "",
        command=command_line("recipes/tokenizer_distill.py", sys.argv[1:]),
        seed=job.seed,
        minutes=(time.monotonic() - started) / 60,
        notes=[*stages.notes(recipe, materials), str(surgery)],
        training=stages.summarise(job, recipe, materials, trainer),
    )
    stages.finish(job, recipe, trainer, results, named)
    return trainer


def score(models: dict[str, tuple[str, SentenceTransformer]], job: Job, recipe: TokenizerRecipe) -> list[ModelRow]:
    """The table's rows: teacher, student and itself before training, with size, speed and what their tokenizers do."""
    from hf_distill.evaluation.score_cache import shared_scores
    from hf_distill.evaluation.suite import add_speed, add_tokenizers, score_models
    from hf_distill.trainers.tokenizer_materials import measured_texts, speed_texts

    tasks = {"validation": ["stsb_tr"], "test": recipe.tasks}
    kept = {"cache": shared_scores(job.folder), "mteb_folder": job.folder.parent / "mteb"}
    rows = score_models(models, tasks, stsb_tr_folder=recipe.stsb_tr_folder, **kept)
    texts = measured_texts(recipe)
    if recipe.speed_rounds:
        add_speed(rows, models, recipe.speed_rounds, speed_texts(texts))
    names = {"teacher": recipe.teacher.rpartition("/")[2], "student": job.tokenizer, "untrained": job.tokenizer}
    add_tokenizers(rows, models, texts, names)
    return list(rows.values())


def parse(arguments: list[str]) -> tuple[TokenizerRecipe, EmbeddingDistillConfig]:
    """Reads YAML and command line; without `--config` the default recipe."""
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.recipe_arguments import parse_arguments
    from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe

    return parse_arguments((TokenizerRecipe, EmbeddingDistillConfig), arguments, __doc__, DEFAULT_CONFIG)


if __name__ == "__main__":
    from hf_distill.hardware import use_all_cores

    use_all_cores()
    try:
        main(*parse(sys.argv[1:]))
    except KeyboardInterrupt:
        print("Stopped. The same command skips what is finished and goes on from there.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
