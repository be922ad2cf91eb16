"""What all students of the tokenizer experiment share: tokenizers, the encoded corpus, the teacher, texts to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.bpe import NOTE_NAME, describe_texts, save_tokenizer, take_from_hub, train_bpe
from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest
from hf_distill.data.encoded_corpus import (
    corpus_texts,
    encode_corpus,
    find_manifest,
    load_encoded_corpus,
    load_tokenizer,
)
from hf_distill.data.overlap import OverlapReport, remove_overlap
from hf_distill.data.stsb_tr import load_stsb_tr
from hf_distill.evaluation.training_summary import Origin, TextSource, public_name
from hf_distill.evaluation.turkish import held_out_turkish, tokenizer_texts
from hf_distill.teachers.live import load_teacher
from hf_distill.teachers.writer import process_state
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_recipe import CORPUS, OR_TRAIN, TRAIN, TokenizerRecipe, is_made
from hf_distill.trainers.tokenizer_shapes import check_shapes
from hf_distill.trainers.tokenizer_teacher import (
    RecipeTeacher,
    check_corpus,
    open_ensemble,
    open_teacher,
    project_teacher,
    teacher_origin,
)

logger = logging.get_logger(__name__)

_SPEED_TEXTS = 120


@dataclass
class Materials:
    """What all students of an experiment share.

    Args:
        tokenizers: By name.
        dataset: The corpus with the ids of all tokenizers and the teacher's vectors.
        overlap: What was left out of it.
        sources: Where its text comes from.
        models: The loaded models by name: the teacher, and those whose weights or shape students take.
        teacher: Who stands in the table; where its vectors are projected, with the projection.
        origin: Who that is.
        projection: What a reader must know of the projection, if there is one.
    """

    tokenizers: dict[str, PreTrainedTokenizerBase]
    dataset: Dataset
    overlap: OverlapReport
    sources: list[TextSource]
    models: dict[str, SentenceTransformer]
    teacher: SentenceTransformer
    origin: Origin
    projection: str = ""


def prepare(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> Materials:
    """Tokenizers, corpus and teacher, made where they are not there yet.

    Args:
        recipe: What is asked.
        args: Folder and seed.

    Returns:
        What the students need.

    Raises:
        FileNotFoundError: If a model, a source or a tokenizer is missing.
        ValueError: If a student could not be made or does not fit the teacher, or the corpus is another teacher's.
    """
    teacher = open_teacher(recipe)
    models, jobs = {recipe.teacher: teacher.model}, [job for job in recipe.jobs(args) if not job.is_finished]
    for name in sorted({job.model for job in jobs} - models.keys()):
        models[name] = load_teacher(name, trust_remote_code=recipe.trust_remote_code)
    check_shapes(jobs, models, recipe, args)
    held_out = held_out_texts(recipe)
    tokenizers = prepare_tokenizers(recipe, args, held_out)
    dataset, overlap, sources = prepare_corpus(recipe, args, tokenizers, held_out, teacher)
    model, projection = teacher.model, ""
    if not recipe.teachers and recipe.teacher_dim not in (None, model.get_embedding_dimension()):
        dataset, model, projection = project_teacher(dataset, model, recipe.teacher_dim)
    origin = teacher_origin(recipe, teacher)
    return Materials(tokenizers, dataset, overlap, sources, models, model, origin, projection)


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
        ConnectionError: If one that is not to be made is neither a folder nor to be had from the Hub.
        ImportError: If the package of the MFT tokenizer is missing.
    """
    found = {}
    for name, entry in recipe.tokenizers.items():
        folder = Path(args.output_dir) / name
        if is_made(entry):
            with process_state().main_process_first():
                if not (folder / NOTE_NAME).is_file():  # which is written last
                    _make_tokenizer(entry, folder, recipe, args, held_out)
            entry = str(folder)
        found[name] = load_tokenizer(entry, trust_remote_code=recipe.trust_remote_code)
    return found


def _make_tokenizer(
    entry: str, folder: Path, recipe: TokenizerRecipe, args: EmbeddingDistillConfig, held_out: Sequence[str]
) -> None:
    """Saves the Hub's tokenizer, if one is named and can be had, or one that is trained here."""
    hub_id = entry.removesuffix(OR_TRAIN) if entry != TRAIN else None
    tokenizer, made = None, {}
    if hub_id is not None:
        tokenizer, made = take_from_hub(hub_id, trust_remote_code=recipe.trust_remote_code)
    if tokenizer is None:
        texts, rows, _ = corpus_texts(recipe.sources, recipe.tokenizer_texts, args.seed, held_out)
        tokenizer = train_bpe(texts, recipe.vocab_size, progress=not args.disable_tqdm)
        made |= {"sources": rows, "seed": args.seed, **describe_texts(texts)}
    save_tokenizer(tokenizer, folder, made, overwrite=True)


def prepare_corpus(
    recipe: TokenizerRecipe,
    args: EmbeddingDistillConfig,
    tokenizers: dict[str, PreTrainedTokenizerBase],
    held_out: Sequence[str],
    teacher: RecipeTeacher,
) -> tuple[Dataset, OverlapReport, list[TextSource]]:
    """The encoded corpus: the given one, or `OUTPUT_DIR/corpus`, which is written if it is not there.

    Args:
        recipe: Corpus, or its text and teachers.
        args: Folder and seed.
        tokenizers: Whose ids it holds.
        held_out: Evaluation text; rows that overlap with it are left out.
        teacher: Who embeds it, or must have.

    Returns:
        The data set, what was left out, and where the text comes from.

    Raises:
        ValueError: If a column is missing or is not what it should be, or another teacher embedded the corpus; names it.
        FileNotFoundError: If a source or one of several teachers is missing.
    """
    place = recipe.corpus or str(Path(args.output_dir) / CORPUS)
    if recipe.corpus is None and not (Path(place) / CORPUS_NAME).is_file():
        texts, rows, overlap = corpus_texts(recipe.sources, recipe.num_texts, args.seed, held_out)
        encoder, spec = teacher.encoder, teacher.spec
        if recipe.teachers:
            caches = Path(args.output_dir) / "teacher_cache"
            encoder, spec = open_ensemble(recipe, texts, caches, not args.disable_tqdm), None
        origin = {"sources": rows, "seed": args.seed, "overlap_removed": overlap.removed}
        options = {"max_tokens": recipe.max_tokens, "num_proc": recipe.num_proc, "progress": not args.disable_tqdm}
        logger.warning(str(encode_corpus(texts, tokenizers, encoder, place, spec=spec, origin=origin, **options)))
    dataset = load_encoded_corpus(place, tokenizers)
    if not recipe.teachers:
        check_corpus(public_name(place), find_manifest(place), dataset, teacher)
    if recipe.corpus is not None and recipe.num_texts is not None:
        dataset = dataset.select(range(min(recipe.num_texts, len(dataset))))
    dataset, overlap = remove_overlap(dataset, "text", held_out)
    if recipe.corpus is not None:
        hub_id = None if Path(place).is_dir() else place
        return dataset, overlap, [TextSource(public_name(place), len(dataset), hub_id=hub_id)]
    origin = CorpusManifest.load(place).origin
    overlap.removed += origin["overlap_removed"]
    return dataset, overlap, [TextSource(name, count) for name, count in origin["sources"].items()]


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


__all__ = [
    "Materials",
    "held_out_texts",
    "measured_texts",
    "prepare",
    "prepare_corpus",
    "prepare_tokenizers",
    "speed_texts",
]
