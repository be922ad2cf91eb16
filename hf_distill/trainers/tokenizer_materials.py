"""What all students of the tokenizer experiment share: tokenizers, the encoded corpus, the teacher, texts to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.bpe import NOTE_NAME, describe_texts, save_tokenizer, train_bpe
from hf_distill.data.corpus_manifest import CORPUS_NAME, CorpusManifest
from hf_distill.data.encoded_corpus import corpus_texts, encode_corpus, load_encoded_corpus, load_tokenizer
from hf_distill.data.overlap import OverlapReport, remove_overlap
from hf_distill.data.stsb_tr import load_stsb_tr
from hf_distill.evaluation.training_summary import TextSource, public_name
from hf_distill.evaluation.turkish import held_out_turkish, tokenizer_texts
from hf_distill.teachers.encoders import EmbedFunction
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.live import LiveTeacher, load_teacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.named import named_teacher
from hf_distill.teachers.writer import process_state, write_cache
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_recipe import CORPUS, TRAIN, TokenizerRecipe

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
        teacher: The one of them that stands in the table.
    """

    tokenizers: dict[str, PreTrainedTokenizerBase]
    dataset: Dataset
    overlap: OverlapReport
    sources: list[TextSource]
    models: dict[str, SentenceTransformer]
    teacher: SentenceTransformer


def prepare(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> Materials:
    """Tokenizers, corpus and teacher, made where they are not there yet.

    Args:
        recipe: What is asked.
        args: Folder and seed.

    Returns:
        What the students need.
    """
    held_out = held_out_texts(recipe)
    tokenizers = prepare_tokenizers(recipe, args, held_out)
    dataset, overlap, sources = prepare_corpus(recipe, args, tokenizers, held_out)
    teacher = load_teacher(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
    return Materials(tokenizers, dataset, overlap, sources, {recipe.teacher: teacher}, teacher)


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
