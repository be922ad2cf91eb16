"""What the tokenizer experiment is asked for: {tokenizers} × {backbones}, one teacher, one corpus.

Each student is named by its tokenizer and its backbone, `mft-embeddinggemma`; the backbone is whose weights it starts
from, and none for random weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_distill.data.stsb_tr import HUB_ID
from hf_distill.data.tokenizers import STRATEGIES
from hf_distill.teachers.ensemble import MODES
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_jobs import CUTS, Job

TRAIN = "train"
OR_TRAIN = " or train"
CORPUS, SCORES = "corpus", "scores"
# What all students of an output folder share.
_SHARED = ("teacher", "teacher_revision", "teachers", "ensemble", "teacher_dim", "prompt", "tokenizers", "corpus")
_SHARED += ("sources", "num_texts", "tokenizer_texts", "vocab_size", "max_tokens")


@dataclass
class TokenizerRecipe:
    """Which tokenizers, which backbones, who teaches, on which text."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: an id on the Hub, a folder, or use-multilingual-v3. Default: the first of teachers."
        },
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of the teacher on the Hub."})
    prompt: str | None = field(
        default=None, metadata={"help": "Text that the teacher gets before every input. Default: its own."}
    )
    teachers: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Several teachers: name -> {"model", "prompt", "weight", "min_words"}. The first stands in the table.'
        },
    )
    ensemble: str = field(
        default="mean",
        metadata={"help": "Several teachers as one: mean, concat, or route (by min_words: from so many words on)."},
    )
    teacher_dim: int | None = field(
        default=None,
        metadata={
            "help": "Width that the teacher's vectors are brought to, that of the students. By PCA of the corpus."
        },
    )
    tokenizers: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Name -> "mft", a folder, an id on the Hub, "train": a byte-level BPE, made once, or "ID or train": the '
            "Hub's where it can be had."
        },
    )
    backbones: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Name -> model, or {"model", "num_layers", "hidden_size", "intermediate_size"}, or null for random '
            "weights."
        },
    )
    random_shape: str | None = field(
        default=None, metadata={"help": "Backbone whose shape the random students have. Default: the last one."}
    )
    random_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the random students, where that of the others is too high for random weights."
        },
    )
    equal_tokens: bool = field(
        default=False,
        metadata={
            "help": "As many tokens for the students of all tokenizers: more epochs for those with shorter sequences. "
            "Default: as many texts."
        },
    )
    strategy: str = field(
        default="mean", metadata={"help": f"How token vectors are composed: {', '.join(STRATEGIES)}."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Names of students to train. Default: all."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Seeds of every student. Default: --seed."})
    corpus: str | None = field(
        default=None,
        metadata={"help": "Encoded corpus: a folder or an id on the Hub. Default: encode OUTPUT_DIR/corpus."},
    )
    sources: dict | str | None = field(
        default=None, metadata={"help": 'Text of the corpus and of "train": sources by weight, such as {"kenet": 3}.'}
    )
    num_texts: int | None = field(
        default=None, metadata={"help": "Texts at most; needed to encode a corpus. Default: all of --corpus."}
    )
    tokenizer_texts: int = field(default=125_000, metadata={"help": 'Texts at most that "train" learns from.'})
    vocab_size: int = field(default=32_768, metadata={"help": 'Tokens of "train".'})
    max_tokens: int = field(default=256, metadata={"help": "Texts that are longer for any tokenizer are left out."})
    num_proc: int = field(default=1, metadata={"help": "Processes that tokenise the corpus."})
    stsb_tr_folder: str | None = field(
        default=None, metadata={"help": f"Folder of STSb-TR's dev.tsv and test.tsv. Default: {HUB_ID} on the Hub."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["stsb_tr", "bitext"],
        metadata={"help": "What the test split measures: stsb_tr always; bitext, mteb_tur or tasks of mteb besides."},
    )
    speed_rounds: int = field(default=3, metadata={"help": "Rounds of the measurement of speed; 0 leaves it out."})
    languages: list[str] | None = field(default=None, metadata={"help": "ISO 639 codes of the text, for the cards."})
    note: str = field(default="", metadata={"help": "A sentence for the reader: printed, and kept with every run."})
    keep_checkpoints: bool = field(default=False, metadata={"help": "Keep the checkpoints of finished students."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow models and tokenizers with own code."})
    fresh: bool = field(default=False, metadata={"help": "Train the students anew where the folder holds others."})

    def __post_init__(self) -> None:
        for name in ("teachers", "tokenizers", "backbones", "sources"):
            value = getattr(self, name)
            try:
                setattr(self, name, json.loads(value) if isinstance(value, str) else value or {})
            except json.JSONDecodeError as error:
                raise ValueError(f'{name} must be JSON such as {{"a": "b"}}, but is {value!r}.') from error
        self._check_teachers()
        self._check_students()
        if self.corpus is None and not (self.sources and self.num_texts):
            raise ValueError("Give --corpus, or --sources and --num_texts to encode one in OUTPUT_DIR/corpus.")
        if any(is_made(entry) for entry in self.tokenizers.values()) and not self.sources:
            raise ValueError(f'A tokenizer is to be made ("{TRAIN}"): give --sources, the text that it learns from.')
        if "stsb_tr" not in self.tasks:
            self.tasks = ["stsb_tr", *self.tasks]

    def _check_teachers(self) -> None:
        """Refuses teachers that contradict each other."""
        if self.ensemble not in MODES:
            raise ValueError(f"ensemble must be one of {', '.join(MODES)}, but is {self.ensemble!r}.")
        for name, entry in self.teachers.items():
            unknown = sorted(set(entry) - {"model", "prompt", "weight", "min_words"})
            if unknown or "model" not in entry:
                raise ValueError(
                    f"teachers: {name!r} needs a model, and may have prompt, weight and min_words; it has {sorted(entry)}."
                )
        own = [name for name in ("prompt", "corpus", "teacher_revision") if getattr(self, name) is not None]
        if self.teachers and own:
            raise ValueError(
                f"teachers have prompts of their own, no revision, and write the corpus: drop --{' and --'.join(own)}."
            )
        if self.teacher_dim is not None and self.teacher_dim < 1:
            raise ValueError(f"teacher_dim is {self.teacher_dim}: give the width of the students, or leave it out.")
        if self.teacher is None and not self.teachers:
            raise ValueError("Give --teacher, or a --config that has one: recipes/configs/tokenizer/table.yaml.")
        self.teacher = self.teacher or next(iter(self.teachers.values()))["model"]

    def _check_students(self) -> None:
        """Refuses students that cannot be, and brings the backbones into one form."""
        for name in ("tokenizers", "backbones"):
            if not getattr(self, name):
                raise ValueError(f"Give --{name}, or a --config that has them: recipes/configs/tokenizer/table.yaml.")
        if taken := sorted({CORPUS, SCORES} & set(self.tokenizers)):
            raise ValueError(f"A tokenizer cannot be called {taken[0]!r}: that is another folder of the experiment.")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, but is {self.strategy!r}.")
        self.backbones = {
            name: {"model": entry} if isinstance(entry, str) else entry for name, entry in self.backbones.items()
        }
        real = [name for name, entry in self.backbones.items() if entry is not None]
        for name in real:
            if "model" not in self.backbones[name] or set(self.backbones[name]) - {"model", *CUTS}:
                raise ValueError(
                    f"backbones: {name!r} needs a model and may have {', '.join(CUTS)}: {self.backbones[name]}."
                )
        self.random_shape = self.random_shape or (real[-1] if real else None)
        if self.random_shape not in real:
            raise ValueError(f"random_shape must be one of the backbones {real}, but is {self.random_shape!r}.")
        if self.random_learning_rate is not None and self.random_learning_rate <= 0:
            raise ValueError(
                f"random_learning_rate is {self.random_learning_rate}: give a rate above 0, or leave it out."
            )
        unknown = [name for name in self.only or () if name not in self.names()]
        if unknown:
            raise ValueError(f"--only {unknown[0]}: there is no such student; there are {', '.join(self.names())}.")

    def names(self) -> list[str]:
        """Names of all students, tokenizer by tokenizer."""
        return [f"{tokenizer}-{backbone}" for tokenizer in self.tokenizers for backbone in self.backbones]

    def jobs(self, args: EmbeddingDistillConfig) -> list[Job]:
        """The students that are asked for, seed after seed.

        Args:
            args: `output_dir` is the folder of the experiment, `seed` the default seed.

        Returns:
            Those of `only`, or all of them.
        """
        found = []
        for seed in self.seeds or [args.seed]:
            for tokenizer in self.tokenizers:
                for backbone, entry in self.backbones.items():
                    name = f"{tokenizer}-{backbone}"
                    shape = self.backbones[self.random_shape] if entry is None else entry
                    place = Path(args.output_dir) / f"{name}-seed{seed}"
                    facts = {"model": shape["model"], **{cut: shape.get(cut) for cut in CUTS}}
                    facts |= {"learning_rate": None if entry else self.random_learning_rate}
                    facts |= {"equal_tokens": self.equal_tokens}
                    if self.only is None or name in self.only:
                        found.append(Job(name, tokenizer, random=entry is None, seed=seed, folder=place, **facts))
        return found

    def shared(self, seed: int) -> dict[str, Any]:
        """What must be the same for all students of a folder, as JSON values."""
        values = asdict(self)
        return json.loads(json.dumps({name: values[name] for name in _SHARED} | {"seed": seed}))


def is_made(entry: str) -> bool:
    """Whether a tokenizer of this entry is made here, always (`"train"`) or where the Hub has none (`"ID or train"`)."""
    return entry == TRAIN or entry.endswith(OR_TRAIN)


__all__ = ["CORPUS", "OR_TRAIN", "TRAIN", "TokenizerRecipe", "is_made"]
