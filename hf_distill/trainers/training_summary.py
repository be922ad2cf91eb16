"""Gathers, at the end of a run, what its model card must say about teacher, weights, data, loss terms and cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from huggingface_hub import ModelCard, try_to_load_from_cache

from hf_distill.data.collators import column_lengths, text_columns
from hf_distill.data.sources import HUB_SOURCES, source_names
from hf_distill.data.stsb import HUB_ID as STSB_HUB_ID
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.speed import hardware_name
from hf_distill.evaluation.training_summary import Origin, Stage, TextSource, TrainingSummary, public_name, run_of
from hf_distill.hub.lineage import UNDECIDED, inherit_licence
from hf_distill.teachers.offline import PACKAGED
from hf_distill.trainers.objective import student_encoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.overlap import OverlapReport
    from hf_distill.trainers.alignment import MixerAlignmentTrainer
    from hf_distill.trainers.embedding import EmbeddingDistillTrainer
    from hf_distill.trainers.embedding_stages import EmbeddingRecipe


def summarise_training(
    recipe: EmbeddingRecipe,
    trainer: EmbeddingDistillTrainer,
    teacher: SentenceTransformer,
    source: SentenceTransformer,
    overlap: OverlapReport,
    stages: Sequence[Stage],
    rows: Mapping[str, int] | None = None,
) -> TrainingSummary:
    """Writes down how a student came about; call it before `trainer.end()`.

    Args:
        recipe: Who taught whom on what.
        trainer: Trainer of the last stage, after `train()`.
        teacher: The teacher as it was loaded.
        source: The model whose weights the student started with, as it was loaded; the teacher, or `init_from`.
        overlap: What was removed from the training text.
        stages: What each stage took, see `stage_of`.
        rows: Rows that each source gave to the mix.

    Returns:
        The summary, for `Results.training`.
    """
    args = trainer.args
    note = ""
    if recipe.first_layer_weight:
        how = "beside" if recipe.first_layer_mix == "concat" else "mixed into"
        note = f"with {recipe.first_layer_weight:g} of its mean input vector {how} the embedding"
    start = None
    if recipe.init == "teacher":
        own = recipe.init_from is not None
        start = describe_origin(recipe.init_from or recipe.teacher, source, None if own else recipe.teacher_revision)
    return TrainingSummary(
        teacher=describe_origin(recipe.teacher, teacher, recipe.teacher_revision, note),
        init_from=start,
        student=recipe.student,
        settings=_settings(recipe, trainer.model, source),
        losses={term: getattr(args, f"{term}_weight") for term in args.active_terms()},
        sources=[_text_source(name, entry, rows or {}) for name, entry in recipe.sources.items()],
        texts=overlap.kept,
        overlap_removed=overlap.removed,
        stages=list(stages),
        hardware=_hardware(trainer),
        learning_rate=args.learning_rate,
        batch=_batch(trainer),
        max_length=trainer.max_length,
        languages=["en"] if set(recipe.sources) <= set(source_names()) else [],
        not_measured=_not_measured(trainer),
    )


def summarise_tokenizer_student(
    trainer: EmbeddingDistillTrainer,
    teacher: Origin,
    start: Origin | None,
    settings: Mapping[str, Any],
    sources: Sequence[TextSource],
    overlap: OverlapReport,
    stages: Sequence[Stage],
    languages: Sequence[str] = (),
) -> TrainingSummary:
    """Writes down how a student with another tokenizer came about; call it before `trainer.end()`.

    Args:
        trainer: The trainer, after `train()`.
        teacher: Who taught.
        start: Whose weights the student started with; `None` for random ones.
        settings: `tokenizer`, its name; `backbone`, the model whose encoder or shape it has; `cut`, which part of that.
        sources: Where the text came from.
        overlap: What was removed from the training text.
        stages: What each stage took, see `stage_of`.
        languages: ISO 639 codes of the text.

    Returns:
        The summary, for `Results.training`.
    """
    args, model = trainer.args, trainer.model
    config = student_encoder(model).config
    settings = {
        "num_layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": len(model.tokenizer),
        **settings,
    }
    if args.warmup_phase_steps:
        settings["warm-up phase"] = f"{args.warmup_phase_steps} steps"
    return TrainingSummary(
        teacher=teacher,
        init_from=start,
        student="tokenizer",
        settings=settings,
        losses={term: getattr(args, f"{term}_weight") for term in args.active_terms()},
        sources=list(sources),
        texts=overlap.kept,
        overlap_removed=overlap.removed,
        stages=list(stages),
        hardware=_hardware(trainer),
        learning_rate=args.learning_rate,
        batch=_batch(trainer),
        max_length=trainer.max_length,
        languages=list(languages),
        not_measured=_not_measured(trainer),
    )


def describe_origin(name: str, model: SentenceTransformer, revision: str | None = None, note: str = "") -> Origin:
    """Finds out which weights these are and what licence they carry.

    Args:
        name: Id on the Hub, or a folder.
        model: The model, as `load_teacher` gave it: with the README it came with.
        revision: What was asked for, where the files do not say which commit they are.
        note: What a reader must know besides.

    Returns:
        Its commit on the Hub; where it was not loaded from there, the hash of its weights file.
    """
    card = model._model_card_text
    license_ = ModelCard(card, ignore_metadata_errors=True).data.license if card else None
    license_ = license_.lower() if isinstance(license_, str) else None
    folder = Path(name)
    if folder.is_dir():
        weights = folder / "model.safetensors"
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        return Origin(public_name(folder), None, license_ or _licence_of_run(folder), sha256, on_hub=False, note=note)
    commit = _cached_commit(name, revision)
    packaged = PACKAGED.get(name) if commit is None else None
    sha256 = None if packaged is None else packaged.sha256
    note = "; ".join(part for part in ("" if packaged is None else packaged.note, note) if part)
    return Origin(name, commit or revision, license_, sha256, on_hub=True, note=note)


def _licence_of_run(folder: Path) -> str | None:
    """What the model in a run's folder inherits from its own origins; None for other folders, or where it is not known."""
    run = run_of(folder)
    if run is None:
        return None
    inherited = inherit_licence(Results.read(run).training).id
    return None if inherited in UNDECIDED else inherited


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a model that was loaded from the Hub, or from its cache; None if it came from elsewhere."""
    for file in ("modules.json", "config.json"):
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def stage_of(name: str, trainer: EmbeddingDistillTrainer | MixerAlignmentTrainer) -> Stage:
    """What a trainer's run took, resumed runs included.

    Args:
        name: What to call the stage.
        trainer: The trainer, after `train()`.

    Returns:
        Steps, minutes, texts and tokens.
    """
    texts, tokens = _seen(trainer)
    return Stage(name, trainer.state.global_step, trainer.clock.seconds() / 60, texts, tokens)


def _seen(trainer: EmbeddingDistillTrainer | MixerAlignmentTrainer) -> tuple[int | None, int | None]:
    """Texts and tokens of all steps: the batches are a function of seed and epoch, so they can be drawn once more."""
    args, dataset = trainer.args, trainer.train_dataset
    if not isinstance(dataset, Dataset):
        return None, None
    columns = text_columns(dataset.column_names)
    lengths = sum(np.minimum(column_lengths(dataset, [column]), trainer.max_length) for column in columns)
    sampler = trainer.length_sampler(
        dataset, args.train_batch_size, trainer.max_length, drop_last=args.dataloader_drop_last
    )
    batches_a_step = args.gradient_accumulation_steps * args.world_size
    steps_an_epoch = -(-len(sampler) // batches_a_step)
    rows = tokens = 0
    for epoch in range(-(-trainer.state.global_step // steps_an_epoch)):
        steps = min(steps_an_epoch, trainer.state.global_step - epoch * steps_an_epoch)
        sampler.set_epoch(epoch)
        for batch in islice(sampler, steps * batches_a_step):
            rows += len(batch)
            tokens += int(lengths[batch].sum())
    return rows * len(columns), tokens


def _settings(recipe: EmbeddingRecipe, student: SentenceTransformer, source: SentenceTransformer) -> dict[str, Any]:
    """What the student's configuration sets."""
    encoder = student_encoder(student)
    if encoder is None:
        return {"width": student.get_embedding_dimension()}
    settings = {"num_layers": encoder.config.num_hidden_layers, "width": encoder.config.hidden_size}
    if recipe.student == "layers":
        return {**settings, "source_layers": source.transformers_model.config.num_hidden_layers}
    return {
        **settings,
        "mixer": encoder.config.mixer,
        "memory": encoder.config.memory,
        **(recipe.student_config or {}),
    }


def _text_source(name: str, entry: float | Mapping[str, Any], rows: Mapping[str, int]) -> TextSource:
    """A source of the mix, named without local folders."""
    weight = entry.get("weight", 1.0) if isinstance(entry, Mapping) else entry
    hub_id = STSB_HUB_ID if name == "stsb_train" else HUB_SOURCES[name].hub_id if name in HUB_SOURCES else None
    return TextSource(public_name(name), rows.get(name), float(weight), hub_id)


def _hardware(trainer: EmbeddingDistillTrainer) -> str:
    """What it ran on, and in which precision."""
    args = trainer.args
    count = f"{args.world_size} × " if args.world_size > 1 else ""
    precision = "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "float32"
    return f"{count}{hardware_name(args.device)}, {precision}"


def _batch(trainer: EmbeddingDistillTrainer) -> str:
    """What one optimiser step averages over."""
    args = trainer.args
    per_device = f"{args.per_device_train_batch_size:,} rows"
    if args.token_budget:
        per_device = f"{args.token_budget:,} padded tokens"
    times = args.world_size * args.gradient_accumulation_steps
    return per_device if times == 1 else f"{times} × {per_device}"


def _not_measured(trainer: EmbeddingDistillTrainer) -> list[str]:
    """What no run of this recipe measures, whatever its tasks."""
    where = "a GPU" if trainer.args.device.type == "cpu" else "a CPU"
    return [
        f"The spread over seeds: this is one run, seed {trainer.args.seed}.",
        "Public benchmarks other than those in the table, MTEB as a whole among them.",
        f"Texts of more than {trainer.max_length} tokens, and text unlike the training text.",
        f"Speed on {where}.",
        "Social bias: the student inherits its teacher's, which nobody measured here.",
    ]


__all__ = ["describe_origin", "stage_of", "summarise_tokenizer_student", "summarise_training"]
