"""The stages of the tokenizer experiment, as its recipe strings them together; each can be run again and goes on.

Folder of an experiment: `recipe.json` (what all students share), `<tokenizer>/` for one that was made here, `corpus/`,
`teacher_cache/` with several teachers, `scores/` (what was scored once), `<student>-seed<seed>/` for every run, and the
table with its figures.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from hf_distill.data.encoded_corpus import TEACHER_EMBEDDING
from hf_distill.data.token_ids import IDS_SUFFIX, column_lengths
from hf_distill.data.tokenizers import SurgeryReport, swap_tokenizer
from hf_distill.evaluation.checkpoints import MODEL_FOLDER, RECIPE_FILE
from hf_distill.evaluation.paired import write_pair_scores
from hf_distill.evaluation.report import write_report
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.score_cache import shared_scores, write_atomically
from hf_distill.evaluation.suite import check_data, parse_tasks
from hf_distill.evaluation.tokenizer_comparison import compare_tokenizers
from hf_distill.evaluation.training_summary import TrainingSummary
from hf_distill.evaluation.turkish import turkish_evaluators
from hf_distill.teachers.function_model import FunctionModule
from hf_distill.teachers.live import load_teacher
from hf_distill.teachers.writer import process_state
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.outcome import judge_gain, require_gain
from hf_distill.trainers.students import without_dropout, wrap_encoder
from hf_distill.trainers.tokenizer_jobs import Job, describe_job, differing_field, is_finished
from hf_distill.trainers.tokenizer_materials import Materials
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.tokenizer_shapes import cut_encoder, cut_head, describe_cut
from hf_distill.trainers.training_summary import describe_origin, stage_of, summarise_tokenizer_student


def open_experiment(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> list[Job]:
    """Checks the request against what is in the folder and against the data, before any work.

    Args:
        recipe: What is asked now.
        args: Training arguments; `output_dir` is the folder.

    Returns:
        The runs that are asked for, finished ones included.

    Raises:
        ValueError: If the folder holds another experiment or another run of a student, naming the first field that
            differs; or an argument makes no sense for several students.
        FileNotFoundError: If STSb-TR or a package is missing.
        ConnectionError: If STSb-TR is to come from the Hub, and that cannot be reached.
    """
    if args.push_to_hub:
        raise ValueError(
            "--push_to_hub names one model, and these are several: push each with recipes/push_student.py."
        )
    if args.resume_from_checkpoint is not None:
        raise ValueError(
            "--resume_from_checkpoint names one run, and these are several: leave it out, each goes on from its own."
        )
    folder, jobs = Path(args.output_dir), recipe.jobs(args)
    asked = {folder: recipe.shared(args.seed)}
    asked |= {job.folder: describe_job(job, recipe.strategy, args) for job in jobs}
    for place, request in asked.items():
        if not (place / RECIPE_FILE).is_file() or (recipe.fresh and place != folder):
            continue
        found = json.loads((place / RECIPE_FILE).read_text(encoding="utf-8"))
        if changed := differing_field(found, request):
            name, old, new = changed
            remedy = "" if place == folder else ", or give --fresh to train this student anew"
            raise ValueError(
                f"{place} was made with {name}={old!r}, but now {name}={new!r}. Choose another --output_dir{remedy}."
            )
    check_evaluation(recipe)
    if args.process_index == 0:
        for job in jobs if recipe.fresh else ():
            shutil.rmtree(job.folder, ignore_errors=True)
        write_atomically(folder / RECIPE_FILE, json.dumps(asked[folder], indent=2) + "\n")
    process_state().wait_for_everyone()  # only now can the others tell which students are finished
    return jobs


def check_evaluation(recipe: TokenizerRecipe) -> None:
    """Loads what the evaluation needs.

    Args:
        recipe: Tasks, and the folder of STSb-TR.

    Raises:
        FileNotFoundError: If a file or package is missing; the message says where it comes from.
        ConnectionError: If the Hub does not give STSb-TR.
    """
    for split in ("validation", "test"):
        tasks = parse_tasks(recipe.tasks) if split == "test" else ["stsb_tr"]
        try:
            check_data(tasks, split, recipe.stsb_tr_folder)
        except (FileNotFoundError, ConnectionError) as error:
            if "stsb" not in str(error).lower():
                raise
            raise type(error)(f"{error} The option is --stsb_tr_folder FOLDER.") from error


def new_student(job: Job, recipe: TokenizerRecipe, materials: Materials) -> tuple[SentenceTransformer, SurgeryReport]:
    """A student before any step: a model with another tokenizer, or its shape with random weights.

    What comes after the encoder (pooling, dense layers, normalisation) is the model's; dense layers of a random student
    are random, too. Parameters are float32.

    Args:
        job: Which one.
        recipe: How its token vectors are composed.
        materials: Tokenizers, and models that are loaded already; one that is not is added.

    Returns:
        The student, and how its token vectors were made.
    """
    if job.model not in materials.models:
        materials.models[job.model] = load_teacher(job.model, trust_remote_code=recipe.trust_remote_code)
    source, tokenizer = materials.models[job.model], materials.tokenizers[job.tokenizer]
    encoder = cut_encoder(job, source)
    options = {"strategy": recipe.strategy, "init": "random" if job.random else "source", "seed": job.seed}
    encoder, report = swap_tokenizer(encoder, source.tokenizer, tokenizer, **options)
    head = cut_head(job, source)
    if job.random:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(job.seed)
            for module in nn.ModuleList(head).cpu().modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
    without_dropout(encoder.config)
    return wrap_encoder(encoder.float().cpu(), tokenizer, source.get_max_seq_length(), head), report


def job_arguments(job: Job, recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> EmbeddingDistillConfig:
    """The arguments of one run, its folder, seed and columns; `recipe.json` in the folder says what it is.

    Args:
        job: The run.
        recipe: What it belongs to.
        args: The arguments that all runs share.

    Returns:
        A copy.
    """
    if args.process_index == 0:
        request = json.dumps(describe_job(job, recipe.strategy, args), indent=2) + "\n"
        write_atomically(job.folder / RECIPE_FILE, request)
    process_state().wait_for_everyone()
    mine = copy.copy(args)
    mine.output_dir, mine.seed = str(job.folder), job.seed
    mine.learning_rate = job.learning_rate or args.learning_rate
    mine.include_num_input_tokens_seen = "non_padding"  # no command line can say it: the field is a truth value there
    mine.ids_column, mine.teacher_column = job.tokenizer + IDS_SUFFIX, TEACHER_EMBEDDING
    return mine


def as_many_tokens(args: EmbeddingDistillConfig, job: Job, materials: Materials) -> EmbeddingDistillConfig:
    """Prolongs a run so that its student sees as many tokens as one of the tokenizer with the longest sequences.

    Args:
        args: Arguments of the run, changed in place: its epochs, or its steps where they are given.
        job: The run, whether it wants that, and its tokenizer.
        materials: The corpus in all tokenizers.

    Returns:
        The arguments.
    """
    if job.equal_tokens:
        tokens = {name: int(column_lengths(materials.dataset, [name]).sum()) for name in materials.tokenizers}
        longer, texts = max(tokens.values()) / tokens[job.tokenizer], len(materials.dataset)
        # the warm-up phase keeps its steps; what it has fewer tokens for comes later
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        missing = (longer - 1) * args.warmup_phase_steps
        if args.max_steps > 0:
            args.max_steps = round(longer * args.max_steps + missing)
        else:
            args.num_train_epochs = longer * args.num_train_epochs + missing * step / texts
    return args


def notes(recipe: TokenizerRecipe, materials: Materials) -> list[str]:
    """What a reader of a run must know about the experiment."""
    found = [recipe.note] if recipe.note else []
    if recipe.teachers:
        names = ", ".join(recipe.teachers)
        found.append(f"Taught by several: {recipe.ensemble} of {names}. The teacher's row is {recipe.teacher} alone.")
    return [*found, *filter(None, [materials.projection]), str(materials.overlap)]


def summarise(
    job: Job, recipe: TokenizerRecipe, materials: Materials, trainer: EmbeddingDistillTrainer
) -> TrainingSummary:
    """How a student came about.

    Args:
        job: The run.
        recipe: Who taught.
        materials: On what.
        trainer: Its trainer, after `train()`.

    Returns:
        The summary. Where weights are a part of a model's, the note of their origin says so.
    """
    source = materials.models[job.model]
    revision = recipe.teacher_revision if job.model == recipe.teacher else None
    start, cut = describe_origin(job.model, source, revision), describe_cut(job, source)
    start = replace(start, note="; ".join(filter(None, [start.note, cut])))
    return summarise_tokenizer_student(
        trainer,
        materials.origin,
        None if job.random else start,
        {"tokenizer": job.tokenizer, "backbone": start.name} | ({"cut": cut} if cut else {}),
        materials.sources,
        materials.overlap,
        [stage_of("distillation", trainer)],
        recipe.languages or (),
    )


def without_unknown(rows: list[ModelRow], teacher: SentenceTransformer) -> list[ModelRow]:
    """Takes out of the row of a teacher that is a plain function what nobody knows: its size, and the memory it needs.

    Args:
        rows: What was measured.
        teacher: The teacher.

    Returns:
        The same rows.
    """
    for row in rows if isinstance(teacher[0], FunctionModule) else ():
        if row.role == "teacher":
            row.size = None
            row.speed = row.speed and replace(row.speed, dtype="float32", peak_memory_mb=None)
    return rows


def compare_finished(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> dict[str, Path]:
    """Writes the table of all students that are finished, also in other calls; the first process does.

    Args:
        recipe: Their names.
        args: The folder.

    Returns:
        The files; none where no student is finished, and for other processes.
    """
    if args.process_index != 0:
        return {}
    folders = [path for name in recipe.names() for path in sorted(Path(args.output_dir).glob(f"{name}-seed*"))]
    finished = [path for path in folders if is_finished(path)]
    return compare_tokenizers(finished, args.output_dir) if finished else {}


def finish(
    job: Job,
    recipe: TokenizerRecipe,
    trainer: EmbeddingDistillTrainer,
    results: Results,
    models: Mapping[str, tuple[str, SentenceTransformer]],
) -> None:
    """Judges the gain, saves model, report and, last, the similarities of the test pairs, which mark the run as finished.

    Every process has to call it.

    Args:
        job: The run.
        recipe: Whether its checkpoints stay.
        trainer: Its trainer.
        results: What was measured; the verdict on the gain is added to its notes.
        models: Role to (name, model), as they were scored.

    Raises:
        NoGainError: If `require_gain` is set and training was not worth it: after saving, the run is finished.
    """
    trainer.accelerator.wait_for_everyone()
    gain = judge_gain(trainer, results.rows)
    results.notes.append(str(gain))
    if trainer.is_world_process_zero():
        _save(job, recipe, trainer, results, models)
    require_gain(trainer, gain, job.folder)


def _save(
    job: Job,
    recipe: TokenizerRecipe,
    trainer: EmbeddingDistillTrainer,
    results: Results,
    models: Mapping[str, tuple[str, SentenceTransformer]],
) -> None:
    """Writes all files of a finished run; the similarities come last."""
    trainer.model.save(str(job.folder / MODEL_FOLDER))
    write_report(results, job.folder, trainer.state.log_history)
    pairs = turkish_evaluators(["stsb_tr"], "test", "float32", recipe.stsb_tr_folder)["stsb_tr"]
    known = {row.role: row.fingerprint for row in results.rows}
    write_pair_scores(job.folder, models, pairs, shared_scores(job.folder), known)
    for checkpoint in () if recipe.keep_checkpoints else job.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


__all__ = [
    "as_many_tokens",
    "check_evaluation",
    "compare_finished",
    "finish",
    "job_arguments",
    "new_student",
    "notes",
    "open_experiment",
    "summarise",
    "without_unknown",
]
