"""The stages of the tokenizer experiment, as its recipe strings them together; each can be run again and goes on.

Folder of an experiment: `recipe.json` (what all students share), `<tokenizer>/` for one that was made here, `corpus/`,
`teacher_cache/` with several teachers, `scores/` (what was scored once), `<student>-seed<seed>/` for every run, and the
table with its figures.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.bpe import NOTE_NAME, describe_texts, save_tokenizer, train_bpe
from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest
from hf_distill.data.encoded_corpus import (
    TEACHER_EMBEDDING,
    corpus_texts,
    encode_corpus,
    load_encoded_corpus,
    load_tokenizer,
)
from hf_distill.data.model_pruning import prune_model
from hf_distill.data.overlap import OverlapReport, remove_overlap
from hf_distill.data.stsb_tr import load_stsb_tr
from hf_distill.data.tokenizers import SurgeryReport, swap_tokenizer
from hf_distill.evaluation.suite import check_data, parse_tasks
from hf_distill.evaluation.training_summary import Origin, TextSource, public_name
from hf_distill.evaluation.turkish import held_out_turkish, tokenizer_texts
from hf_distill.teachers.encoders import EmbedFunction
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.named import named_teacher
from hf_distill.teachers.writer import process_state, write_cache
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.students import wrap_encoder
from hf_distill.trainers.tokenizer_recipe import CORPUS, RECIPE_FILE, TRAIN, Job, TokenizerRecipe, describe_job
from hf_distill.trainers.training_summary import describe_origin

logger = logging.get_logger(__name__)

_SPEED_TEXTS = 120


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
        raise ValueError("--push_to_hub names one model, and these are several: push each with recipes/push_student.py.")
    folder, jobs = Path(args.output_dir), recipe.jobs(args)
    asked = {folder: recipe.shared(args.seed)} | {job.folder: describe_job(job, recipe, args) for job in jobs}
    for place, request in asked.items():
        if not (place / RECIPE_FILE).is_file() or (recipe.fresh and place != folder):
            continue
        found = json.loads((place / RECIPE_FILE).read_text(encoding="utf-8"))
        changed = [name for name in request if request[name] != found.get(name)]
        if changed:
            name, remedy = changed[0], "" if place == folder else ", or give --fresh to train this student anew"
            raise ValueError(
                f"{place} was made with {name}={found.get(name)!r}, but now {name}={request[name]!r}. Choose another "
                f"--output_dir{remedy}."
            )
    check_evaluation(recipe)
    for job in jobs if recipe.fresh and args.process_index == 0 else ():
        shutil.rmtree(job.folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(json.dumps(asked[folder], indent=2) + "\n", encoding="utf-8")
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


def held_out_texts(recipe: TokenizerRecipe) -> list[str]:
    """What neither tokenizers nor students may see: STSb-TR, and the held-out glosses where they are a task."""
    if "bitext" in recipe.tasks:
        return held_out_turkish(recipe.stsb_tr_folder)
    return [text for split in ("validation", "test") for text in _stsb_texts(recipe, split)]


def measured_texts(recipe: TokenizerRecipe) -> list[str]:
    """What tokenizers are measured on: held-out Turkish of all kinds, or without the glosses STSb-TR's validation."""
    if "bitext" in recipe.tasks:
        return tokenizer_texts(recipe.stsb_tr_folder)
    return list(dict.fromkeys(_stsb_texts(recipe, "validation")))


def speed_texts(texts: Sequence[str]) -> list[str]:
    """Some texts of all lengths, for the measurement of speed."""
    return sorted(texts, key=len)[:: -(-len(texts) // _SPEED_TEXTS)]


def _stsb_texts(recipe: TokenizerRecipe, split: str) -> list[str]:
    """The sentences of a split of STSb-TR."""
    pairs = load_stsb_tr(split, recipe.stsb_tr_folder)
    return [*pairs["sentence1"], *pairs["sentence2"]]


def prepare_tokenizers(
    recipe: TokenizerRecipe, args: EmbeddingDistillConfig, held_out: Sequence[str]
) -> dict[str, PreTrainedTokenizerBase]:
    """Loads the tokenizers; one that is to be made is made once, in a folder of its name.

    Args:
        recipe: The tokenizers, and the text of one that is made.
        args: Folder and seed.
        held_out: Evaluation text, which it does not see.

    Returns:
        The tokenizers by name.

    Raises:
        FileNotFoundError: If one is missing.
        ConnectionError: If one is neither a folder nor to be had from the Hub.
        ImportError: If the package of the MFT tokenizer is missing.
    """
    code = recipe.trust_remote_code
    found = {name: load_tokenizer(p, trust_remote_code=code) for name, p in recipe.tokenizers.items() if p != TRAIN}
    for name in recipe.tokenizers.keys() - found.keys():
        folder = Path(args.output_dir) / name
        with process_state().main_process_first():
            if not (folder / NOTE_NAME).is_file():  # which is written last
                texts, rows, _ = corpus_texts(recipe.sources, recipe.tokenizer_texts, args.seed, held_out)
                tokenizer = train_bpe(texts, recipe.vocab_size, progress=not args.disable_tqdm)
                made = {"sources": rows, "seed": args.seed, **describe_texts(texts)}
                save_tokenizer(tokenizer, folder, made, overwrite=True)
        found[name] = load_tokenizer(str(folder))
    return {name: found[name] for name in recipe.tokenizers}


def prepare_corpus(
    recipe: TokenizerRecipe,
    args: EmbeddingDistillConfig,
    tokenizers: dict[str, PreTrainedTokenizerBase],
    held_out: Sequence[str],
) -> tuple[Dataset, OverlapReport, list[TextSource]]:
    """The encoded corpus: the given one, or `OUTPUT_DIR/corpus`, which is written if it is not there.

    Args:
        recipe: Corpus, or its text and teachers.
        args: Folder and seed.
        tokenizers: Whose ids it holds.
        held_out: Evaluation text; rows that overlap with it are left out.

    Returns:
        The data set, what was left out, and where the text comes from.

    Raises:
        ValueError: If a column is missing or is not what it should be; names it.
        FileNotFoundError: If a source or the teacher is missing.
    """
    place = recipe.corpus or str(Path(args.output_dir) / CORPUS)
    if recipe.corpus is None and not (Path(place) / CORPUS_NAME).is_file():
        texts, rows, overlap = corpus_texts(recipe.sources, recipe.num_texts, args.seed, held_out)
        teacher, spec = _teacher_of(recipe, texts, Path(args.output_dir) / "teacher_cache", not args.disable_tqdm)
        origin = {"sources": rows, "seed": args.seed, "overlap_removed": overlap.removed}
        options = {"max_tokens": recipe.max_tokens, "num_proc": recipe.num_proc, "progress": not args.disable_tqdm}
        logger.warning(str(encode_corpus(texts, tokenizers, teacher, place, spec=spec, origin=origin, **options)))
    dataset = load_encoded_corpus(place, tokenizers)
    if recipe.corpus is not None and recipe.num_texts is not None:
        dataset = dataset.select(range(min(recipe.num_texts, len(dataset))))
    dataset, overlap = remove_overlap(dataset, "text", held_out)
    if recipe.corpus is not None:
        hub_id = None if Path(place).is_dir() else place
        return dataset, overlap, [TextSource(public_name(place), len(dataset), hub_id=hub_id)]
    origin = CorpusManifest.load(place).origin
    overlap.removed += origin["overlap_removed"]
    return dataset, overlap, [TextSource(name, count) for name, count in origin["sources"].items()]


def _teacher_of(
    recipe: TokenizerRecipe, texts: Sequence[str], caches: Path, progress: bool
) -> tuple[LiveTeacher | EmbedFunction | TeacherEnsemble, TeacherSpec | None]:
    """Who embeds the corpus: one teacher, or the ensemble of several, whose caches are written first."""
    if not recipe.teachers:
        return named_teacher(recipe.teacher, prompt=recipe.prompt, trust_remote_code=recipe.trust_remote_code)
    members = []
    for name, entry in recipe.teachers.items():
        prompt, code = entry.get("prompt"), recipe.trust_remote_code
        teacher, spec = named_teacher(entry["model"], label=name, prompt=prompt, trust_remote_code=code)
        members.append(write_cache(texts, teacher, caches, spec=spec, progress=progress, overwrite=True))
    entries, routes, weights = list(recipe.teachers.values()), None, None
    if recipe.ensemble == "route":
        routes = [_route(len(text.split()), [entry.get("min_words", 0) for entry in entries]) for text in texts]
    elif any("weight" in entry for entry in entries):
        weights = [entry.get("weight", 1.0) for entry in entries]
    options = {"weights": weights, "routes": routes, "dim": recipe.teacher_dim, "fit_rows": range(len(texts))}
    return TeacherEnsemble(members, recipe.ensemble, **options), None


def _route(words: int, from_words: Sequence[int]) -> int:
    """The teacher with the highest bound that a text of so many words reaches; the first where it reaches none."""
    reached = [member for member, bound in enumerate(from_words) if words >= bound]
    return max(reached, key=lambda member: from_words[member], default=0)


def job_arguments(job: Job, args: EmbeddingDistillConfig) -> EmbeddingDistillConfig:
    """The arguments of one run: its folder, its seed and its columns."""
    mine = copy.copy(args)
    mine.output_dir, mine.seed = str(job.folder), job.seed
    mine.ids_column, mine.teacher_column = f"{job.tokenizer}_input_ids", TEACHER_EMBEDDING
    return mine


def new_student(
    job: Job, recipe: TokenizerRecipe, source: SentenceTransformer, tokenizer: PreTrainedTokenizerBase
) -> tuple[SentenceTransformer, SurgeryReport]:
    """A student before any step: the source with another tokenizer, or its shape with random weights.

    What comes after the encoder (pooling, dense layers, normalisation) is the source's; dense layers of a random student
    are random, too. Parameters are float32.

    Args:
        job: Which one.
        recipe: How token vectors are composed.
        source: Whose weights or shape it takes.
        tokenizer: Its tokenizer.

    Returns:
        The student, and how its token vectors were made.
    """
    encoder = prune_model(source[0].auto_model, num_layers=job.num_layers)
    options = {"strategy": recipe.strategy, "init": "random" if job.random else "source", "seed": job.seed}
    encoder, report = swap_tokenizer(encoder, source.tokenizer, tokenizer, **options)
    head = [copy.deepcopy(module) for module in list(source)[1:]]
    if job.random:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(job.seed)
            for module in nn.ModuleList(head).modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
    return wrap_encoder(encoder.float().cpu(), tokenizer, source.get_max_seq_length(), head), report


def origin_of(job: Job, source: SentenceTransformer) -> Origin | None:
    """Whose weights a student started with: some layers of a model are another source than all of them."""
    if job.random:
        return None
    origin = describe_origin(job.model, source)
    if job.num_layers is None:
        return origin
    layers = source[0].auto_model.config.num_hidden_layers
    note = f"{job.num_layers} of the {layers} layers of {origin.name}"
    return replace(origin, name=f"{origin.name}-{job.num_layers}layers", on_hub=False, note=note)


def drop_checkpoints(folders: Iterable[Path]) -> None:
    """Removes the checkpoints of runs that need them no more."""
    for folder in folders:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


__all__ = [
    "check_evaluation",
    "drop_checkpoints",
    "held_out_texts",
    "job_arguments",
    "measured_texts",
    "new_student",
    "open_experiment",
    "origin_of",
    "prepare_corpus",
    "prepare_tokenizers",
    "speed_texts",
]
