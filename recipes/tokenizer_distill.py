r"""Compare tokenizers: students that differ in tokenizer and start alone learn one teacher's vectors of Turkish text.

```bash
accelerate launch recipes/tokenizer_distill.py --stsb_tr_folder FOLDER      # recipes/configs/tokenizer/table.yaml
accelerate launch recipes/tokenizer_distill.py --config recipes/configs/tokenizer/mft_embeddinggemma.yaml
accelerate launch recipes/tokenizer_distill.py --only mft-random-init tabi-random-init --seeds 42 1 2
```

The default is a reduced stand-in that needs no Hub; the configs named after a student have the experiment's own models
and data. A tokenizer is made if need be, the corpus is encoded once, and the students ({tokenizers} x {backbones}, null
for random weights) are trained one after the other: a warm-up phase, then the epochs, loss 1 - cos. STSb-TR's validation
chooses the checkpoint, its test split is read once. Its files are figenfikri/stsb_tr on the Hub, or in a folder.

Run the same line again after a kill or Ctrl-C: finished students are skipped, the interrupted one goes on from its last
checkpoint. Further --seeds and students can be added. The folder then holds tokenizers.md with its figures, and a run of
each student with `model/`, README.md and results.json. Several teachers, each with its own prompt:
--teachers '{"query": {"model": ID, "prompt": "query: "}, "passage": {"model": ID, "prompt": "passage: "}}'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.results import ModelRow
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.tokenizer_recipe import Job, TokenizerRecipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tokenizer" / "table.yaml"


def main(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> dict[str, Path]:
    """Trains the students that are missing; returns the files of the table."""
    from hf_distill.evaluation.tokenizer_comparison import compare_tokenizers
    from hf_distill.teachers.live import load_teacher
    from hf_distill.trainers import tokenizer_stages as stages
    from hf_distill.trainers.tokenizer_recipe import is_finished

    say = print if args.process_index == 0 else lambda *parts: None
    say(recipe.note)
    jobs = stages.open_experiment(recipe, args)
    todo = [job for job in jobs if not job.is_finished]
    say(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them are done already.")
    if todo:
        # ---- tokenizers, then the corpus in all of them, then the students ----
        held_out = stages.held_out_texts(recipe)
        tokenizers = stages.prepare_tokenizers(recipe, args, held_out)
        corpus = stages.prepare_corpus(recipe, args, tokenizers, held_out)
        say(f"{len(corpus[0]):,} texts; {corpus[1]}")
        sources = {recipe.teacher: load_teacher(recipe.teacher, trust_remote_code=recipe.trust_remote_code)}
    for number, job in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {job.name}, seed {job.seed}")
        if job.model not in sources:
            sources[job.model] = load_teacher(job.model, trust_remote_code=recipe.trust_remote_code)
        run_student(job, recipe, args, tokenizers[job.tokenizer], corpus, sources)

    # ---- the table of all that are finished, also those of other calls ----
    done = [path for name in recipe.names() for path in sorted(Path(args.output_dir).glob(f"{name}-seed*"))]
    files = compare_tokenizers([path for path in done if is_finished(path)], args.output_dir)
    say(files["table"].read_text(encoding="utf-8"))
    return files


def run_student(job: Job, recipe: TokenizerRecipe, args: EmbeddingDistillConfig, tokenizer, corpus, sources) -> None:  # noqa: ANN001
    """Trains, scores and saves one student."""
    import copy

    from hf_distill.evaluation.paired import write_pair_scores
    from hf_distill.evaluation.report import write_report
    from hf_distill.evaluation.results import Results, command_line
    from hf_distill.evaluation.score_cache import shared_scores
    from hf_distill.evaluation.turkish import turkish_evaluators
    from hf_distill.trainers import tokenizer_stages as stages
    from hf_distill.trainers.embedding_stages import best_step, distil
    from hf_distill.trainers.tokenizer_recipe import RECIPE_FILE, describe_job
    from hf_distill.trainers.training_summary import describe_origin, stage_of, summarise_tokenizer_student

    started, (dataset, overlap, texts), folder = time.monotonic(), corpus, job.folder
    folder.mkdir(parents=True, exist_ok=True)
    request = json.dumps(describe_job(job, recipe, args), indent=2) + "\n"
    (folder / RECIPE_FILE).write_text(request, encoding="utf-8")
    student, surgery = stages.new_student(job, recipe, sources[job.model], tokenizer)
    models = {"teacher": sources[recipe.teacher], "student": student, "untrained": copy.deepcopy(student)}
    named = {role: (recipe.teacher if role == "teacher" else job.name, model) for role, model in models.items()}

    # ---- both phases; the best checkpoint by validation becomes the student ----
    validation = turkish_evaluators(["stsb_tr"], "validation", folder=recipe.stsb_tr_folder)
    trainer = distil(student, stages.job_arguments(job, args), dataset, None, [*validation.values()])
    trainer.save_state()  # the log, which outlives the checkpoints
    origins = describe_origin(recipe.teacher, models["teacher"]), stages.origin_of(job, sources[job.model])
    spent = [stage_of("distillation", trainer)]
    training = summarise_tokenizer_student(
        trainer, *origins, job.tokenizer, texts, overlap, spent, recipe.languages or ()
    )

    # ---- the test split, once ----
    rows = score(named, recipe, job.tokenizer, folder)
    results = Results(
        run=folder.name,
        rows=list(rows.values()),
        selected_step=best_step(trainer),
        selected_by=trainer.args.metric_for_best_model or "",
        command=command_line("recipes/tokenizer_distill.py", sys.argv[1:]),
        seed=job.seed,
        minutes=(time.monotonic() - started) / 60,
        notes=[note for note in (recipe.note, str(surgery), str(overlap), str(trainer.check_gain())) if note],
        training=training,
    )
    if trainer.is_world_process_zero():
        student.save(str(folder / "model"))
        write_report(results, folder, trainer.state.log_history)
        pairs = turkish_evaluators(["stsb_tr"], "test", "float32", recipe.stsb_tr_folder)["stsb_tr"]
        write_pair_scores(folder, named, pairs, shared_scores(folder))  # last: it marks the run as finished
        stages.drop_checkpoints([] if recipe.keep_checkpoints else [folder])
