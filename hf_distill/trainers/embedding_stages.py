"""The stages of an embedding distillation run, as the recipe strings them together; each can be run again and goes on.

Folder of a run: `recipe.json` (what was asked), `teacher_cache/`, `alignment/` (stage 1), `checkpoint-*` (stage 2),
`control/` (the random-init control), `model/` (the result).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator, SequentialEvaluator
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.overlap import OverlapReport, remove_overlap
from hf_distill.data.sources import load_mix
from hf_distill.data.stsb import load_stsb
from hf_distill.data.token_ids import fit_lengths, text_columns, tokenize_columns
from hf_distill.evaluation.corpus import held_out_sentences
from hf_distill.evaluation.score_cache import write_atomically
from hf_distill.evaluation.suite import parse_tasks
from hf_distill.evaluation.training_summary import Stage
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.first_layer import MIXES, with_first_layer
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.projection import project_cache, rotate_towards
from hf_distill.teachers.writer import write_cache
from hf_distill.trainers.alignment import MixerAlignmentTrainer
from hf_distill.trainers.alignment_config import SHARED_WITH_STAGE_2, MixerAlignmentConfig
from hf_distill.trainers.distributed import wait_for_all
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.embedding_config import MATCHED_TERMS, EmbeddingDistillConfig
from hf_distill.trainers.outcome import best_step, finish, judge_gain
from hf_distill.trainers.run_checkpoints import last_complete
from hf_distill.trainers.run_folder import check_metric, check_space, open_run
from hf_distill.trainers.students import INITS, STUDENTS, build_student, is_deltanet
from hf_distill.trainers.training_summary import stage_of

logger = logging.get_logger(__name__)

_ROTATION_ROWS = 4096
_ALIGNED = Path("alignment") / "aligned.safetensors"
# Fields that not every student reads; for the others they would be ignored without a word.
_READ_BY = {
    "student_config": ("deltanet",),
    "num_layers": ("deltanet", "layers"),
    "static_dim": ("static",),
    **dict.fromkeys(("align_minutes", "align_learning_rate", "align_token_budget"), ("deltanet",)),
}


@dataclass
class EmbeddingRecipe:
    """Who teaches whom, on which text, and how long each stage lasts."""

    teacher: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2", metadata={"help": "Teacher: an id on the Hub, or a folder."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    first_layer_weight: float = field(
        default=0.0,
        metadata={
            "help": "Mix this much of the teacher's mean input vector into its embedding; see teachers/first_layer."
        },
    )
    first_layer_mix: str = field(
        default="add",
        metadata={"help": "add: to the embedding; concat: beside it, so that similarities add up (for gram and rkd)."},
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Model whose weights and tokenizer the student takes, or a finished DeltaNet student that goes on "
            "learning. Default: the teacher."
        },
    )
    student: str = field(default="deltanet", metadata={"help": "deltanet, layers or static."})
    student_config: dict | str | None = field(
        default=None, metadata={"help": 'Fields of HfdDeltaNetConfig, such as {"mixer": "delta_flip"}.'}
    )
    num_layers: int | None = field(default=None, metadata={"help": "Layers of the student. Default: all of them."})
    static_dim: int = field(default=256, metadata={"help": "Width of a static student."})
    init: str = field(default="teacher", metadata={"help": "teacher: copy its weights; random: the control."})
    sources: dict | str | None = field(
        default=None, metadata={"help": 'Text sources by weight, such as {"wordnet_topics": 3, "docstrings": 1}.'}
    )
    num_texts: int = field(default=60_000, metadata={"help": "Training texts at most."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Teacher caches. Default: OUTPUT_DIR/teacher_cache."}
    )
    align_minutes: float = field(default=4.0, metadata={"help": "Stage 1 (deltanet students only); 0 leaves it out."})
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of stage 1."})
    align_token_budget: int = field(default=4096, metadata={"help": "Padded tokens of a batch in stage 1."})
    control_minutes: float = field(default=1.0, metadata={"help": "Run from random weights; 0 leaves it out."})
    tasks: list[str] = field(
        default_factory=lambda: ["stsb", "int8", "fidelity", "stsbenchmark", "retrieval", "lexnames", "modules"],
        metadata={
            "help": "What the report measures besides stsb, int8 and fidelity, which are always in it; see "
            "evaluation/suite.py."
        },
    )
    fresh: bool = field(default=False, metadata={"help": "Start anew where OUTPUT_DIR holds another run."})

    def __post_init__(self) -> None:
        for name in ("student_config", "sources"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    setattr(self, name, json.loads(value))
                except json.JSONDecodeError as error:
                    raise ValueError(f'{name} must be JSON such as {{"a": 1}}, but is {value!r}.') from error
        self.sources = self.sources or {"wordnet_topics": 3.0, "docstrings": 1.0}
        self.tasks = parse_tasks(self.tasks)
        for name, choices in (("student", STUDENTS), ("init", INITS), ("first_layer_mix", MIXES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {getattr(self, name)!r}.")
        if self.first_layer_mix != "add" and not self.first_layer_weight:
            raise ValueError(f"first_layer_mix={self.first_layer_mix!r} has no effect without a first_layer_weight.")
        self._check_fields_are_read()
        for name in ("align_minutes", "control_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give minutes, or 0 to leave the stage out.")

    def _check_fields_are_read(self) -> None:
        """Refuses what was set and has no effect on this kind of student; 0 and nothing ask for nothing."""
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name, students in _READ_BY.items():
            value = getattr(self, name)
            if self.student not in students and value and value != defaults[name]:
                raise ValueError(
                    f"{name}={value!r} has no effect on a {self.student} student. Remove {name} (it may come from the "
                    f"config file: choose another --config), or set student to {' or '.join(students)}."
                )

    @property
    def wants_alignment(self) -> bool:
        """Whether there is a stage 1: only a DeltaNet with its teacher's weights has something to align."""
        return self.student == "deltanet" and self.init == "teacher" and self.align_minutes > 0


def load_texts(
    recipe: EmbeddingRecipe, seed: int, rows: dict[str, int] | None = None
) -> tuple[Dataset, OverlapReport]:
    """The mixed training texts without any that overlap with what the recipe evaluates on.

    Args:
        recipe: Sources and number of texts.
        seed: Of the mix.
        rows: Is filled with the rows that each source gave.

    Returns:
        The data set and what was removed from it.
    """
    dataset = load_mix(recipe.sources, recipe.num_texts, seed=seed, counts=rows)
    splits = [load_stsb(split) for split in ("validation", "test")]
    stsb = [text for split in splits for name in ("sentence1", "sentence2") for text in split[name]]
    return remove_overlap(dataset, dataset.column_names, stsb + held_out_sentences())


def tokenize(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: EmbeddingRecipe, args: EmbeddingDistillConfig
) -> Dataset:
    """Token ids of all texts, without those that `too_long` leaves out: the teacher need not read these.

    Args:
        dataset: Texts, or pairs of texts.
        tokenizer: The student's.
        recipe: Kind of student; a static table counts no special tokens.
        args: Length limit, by default 256 tokens, and the rule for longer texts.

    Returns:
        The rows that are short enough, with `<column>_input_ids`.

    Raises:
        ValueError: If the rule is `"error"` and a text is too long, or no text would be left.
    """
    columns, length = dataset.column_names, args.max_length or 256
    limit = length if args.too_long == "truncate" else None
    dataset = tokenize_columns(dataset, columns, tokenizer, limit, add_special_tokens=recipe.student != "static")
    return fit_lengths(dataset, columns, length, args.too_long)


def new_student(
    recipe: EmbeddingRecipe, source: SentenceTransformer, seed: int, init: str | None = None
) -> SentenceTransformer:
    """The recipe's student before any step.

    Args:
        recipe: Kind, size and start of the student.
        source: Whose weights and tokenizer it takes.
        seed: Of random weights.
        init: Another start than the recipe's: `"random"` for the control.

    Returns:
        The student.

    Raises:
        ValueError: If stage 1 is wanted of a source that has no attention.
    """
    if recipe.wants_alignment and is_deltanet(source):
        raise ValueError(
            f"align_minutes={recipe.align_minutes:g}: {recipe.init_from or recipe.teacher} is a DeltaNet and has no "
            "attention to imitate in stage 1. Set align_minutes to 0: the student starts as its copy."
        )
    return build_student(
        recipe.student,
        source,
        init=init or recipe.init,
        num_layers=recipe.num_layers,
        static_dim=recipe.static_dim,
        seed=seed,
        **(recipe.student_config or {}),
    )


def teacher_signal(
    teacher: LiveTeacher,
    recipe: EmbeddingRecipe,
    args: EmbeddingDistillConfig,
    dataset: Dataset,
    student: SentenceTransformer,
    source: LiveTeacher,
) -> TeacherCache | LiveTeacher:
    """What stage 2 learns from: the teacher itself for layer-wise terms, else a cache of its embeddings.

    Args:
        teacher: Who embeds.
        recipe: How much of the first layer is mixed in, and where the caches are.
        args: Terms and folder.
        dataset: Texts, or pairs of texts; those that are in the cache already are not embedded again.
        student: Where it is narrower than the teacher, the cache is projected by PCA, unless no term compares the two
            themselves: similarities have no width.
        source: Whose weights the student starts from; if it is another model, the projection is turned into its space.
            A static table starts in a space of its own, and the projection is turned into that.

    Returns:
        The live teacher or the cache.
    """
    target = LiveTeacher(with_first_layer(teacher.model, recipe.first_layer_weight, recipe.first_layer_mix))
    if "hidden" in args.active_terms():
        return target
    folder = recipe.cache_dir or Path(args.output_dir) / "teacher_cache"
    texts = list(dict.fromkeys(text for column in text_columns(dataset.column_names) for text in dataset[column]))
    cache = write_cache(texts, target, folder, overwrite=True)
    width = student.get_embedding_dimension()
    if cache.dim <= width or not MATCHED_TERMS & set(args.active_terms()):
        return cache
    projected = project_cache(cache, width)
    own_space = recipe.student == "static"
    if source is teacher and not own_space:
        return projected
    some = np.linspace(0, len(texts) - 1, min(len(texts), _ROTATION_ROWS), dtype=np.int64)
    sample = [texts[row] for row in some]
    start = student.encode(sample, show_progress_bar=False) if own_space else source.embed(sample)
    return rotate_towards(projected, start, some)


def align(
    student: SentenceTransformer,
    recipe: EmbeddingRecipe,
    args: EmbeddingDistillConfig,
    teacher: LiveTeacher,
    dataset: Dataset,
) -> Stage:
    """Stage 1, in place: every mixer imitates the attention it stands for, all layers at once.

    Args:
        student: A DeltaNet student.
        recipe: Minutes, learning rate and batch size of the stage.
        args: Folder, seed, length limit, precision, device and the like.
        teacher: Who is imitated: the model the student's weights come from.
        dataset: Texts.

    Returns:
        What it cost, also where it was done before.

    Raises:
        ValueError: If what it left before is damaged.
    """
    done = Path(args.output_dir) / _ALIGNED
    encoder = student[0].auto_model
    if done.is_file():
        try:
            load_model(encoder, done)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{done} cannot be loaded: {error}. Delete it to repeat stage 1.") from error
        logger.warning(f"Stage 1 is done already: {done} is taken.")
        return Stage(**json.loads(done.with_name("stage.json").read_text(encoding="utf-8")))
    folder = done.parent / "run"
    config = MixerAlignmentConfig(
        output_dir=str(folder),
        max_minutes=recipe.align_minutes,
        learning_rate=recipe.align_learning_rate,
        token_budget=recipe.align_token_budget,
        adam_beta2=0.98,
        save_steps=200,
        save_total_limit=1,
        logging_steps=20,
        **{name: getattr(args, name) for name in SHARED_WITH_STAGE_2},
    )
    trainer = MixerAlignmentTrainer(encoder, config, dataset, teacher=teacher)
    trainer.train(resume_from_checkpoint=last_complete(folder))
    stage = stage_of("alignment", trainer)
    wait_for_all()  # every process has written its random state into the checkpoint, which goes now
    if trainer.is_world_process_zero():
        write_atomically(done.with_name("stage.json"), json.dumps(asdict(stage)) + "\n")
        save_model(encoder, str(folder / done.name))
        os.replace(folder / done.name, done)
        shutil.rmtree(folder)
    wait_for_all()
    return stage


def distil(
    student: SentenceTransformer,
    args: EmbeddingDistillConfig,
    dataset: Dataset,
    teacher: TeacherCache | LiveTeacher,
    evaluators: list[SentenceEvaluator],
) -> EmbeddingDistillTrainer:
    """Stage 2: end to end; afterwards the student is the best checkpoint.

    It goes on from the checkpoint that the arguments name, else from the last complete one in its folder.

    Args:
        student: Trained in place.
        args: Terms and schedule.
        dataset: Texts.
        teacher: A cache, or live for layer-wise terms.
        evaluators: Validation metrics.

    Returns:
        The trainer, with the history of the run.
    """
    trainer = EmbeddingDistillTrainer(
        student, args, dataset, evaluator=SequentialEvaluator(evaluators), teacher=teacher
    )
    last = args.resume_from_checkpoint or last_complete(args.output_dir)
    if last is not None:
        logger.warning(f"Going on from {last}.")
    trainer.train(resume_from_checkpoint=last)
    return trainer


def control_args(args: EmbeddingDistillConfig, recipe: EmbeddingRecipe) -> EmbeddingDistillConfig:
    """Arguments of the random-init control: the same as the student's, shorter, in a folder of its own."""
    control = copy.copy(args)
    control.output_dir = str(Path(args.output_dir) / "control")
    control.max_minutes = recipe.control_minutes
    control.require_gain = control.push_to_hub = False
    control.resume_from_checkpoint = None
    return control


__all__ = [
    "EmbeddingRecipe",
    "align",
    "best_step",
    "check_metric",
    "check_space",
    "control_args",
    "distil",
    "finish",
    "judge_gain",
    "load_texts",
    "new_student",
    "open_run",
    "teacher_signal",
    "tokenize",
]
