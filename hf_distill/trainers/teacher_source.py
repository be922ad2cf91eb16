"""How a teacher, cached or live, answers a given student: checked before training, asked once a batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_distill.data.teacher_column import TeacherColumn
from hf_distill.losses.hidden import layer_map
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.fingerprint import sha256_of_tokenizer
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.embedding_config import MATCHED_TERMS, TEACHER_TERMS, EmbeddingDistillConfig
from hf_distill.trainers.objective import student_encoder

_UNLIMITED = 1_000_000


def student_tokenizer(model: SentenceTransformer) -> PreTrainedTokenizerBase:
    """The student's tokenizer; that of a static table is wrapped to have the usual interface.

    Raises:
        ValueError: If the student has none: nobody could pad ids, or encode a text with the result.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "The student has no tokenizer. Ids alone are not enough: its padding id is needed to train, and the tokenizer "
            "to use the student. Set `model[0].processor` to the tokenizer that made the ids."
        )
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def training_length(model: SentenceTransformer, args: EmbeddingDistillConfig) -> int:
    """Longest training sequence in tokens: the argument's, within what the student can take.

    Raises:
        ValueError: If `max_length` exceeds the student's own limit.
    """
    own = model.max_seq_length
    own = _UNLIMITED if own is None or math.isinf(own) else int(own)
    if args.max_length is not None and args.max_length > own:
        raise ValueError(
            f"max_length={args.max_length} exceeds the student's max_seq_length={own}. Lower it, or raise "
            "`model.max_seq_length` first if the student has the positions."
        )
    return own if args.max_length is None else args.max_length


class TeacherSource:
    """What the terms of a run need of the teacher, and where it comes from.

    Args:
        teacher: A cache, a live teacher, or `None`.
        model: The student.
        args: Terms and layer map.

    Attributes:
        cache: The cache, or the teacher column, that the collator reads, or `None`.
        column: The teacher column of the data, or `None`.
        hidden_layers: Teacher layer (from 0) of each student layer; empty without the hidden term.
        hidden_width: Width of its hidden states, or `None`.
        needs_texts: Whether a live teacher needs the strings, because its tokenizer differs or it puts a prompt before them.

    Raises:
        ValueError: If the terms ask for what this teacher or student cannot give; the message names the fix.
    """

    def __init__(
        self, teacher: TeacherCache | LiveTeacher | None, model: SentenceTransformer, args: EmbeddingDistillConfig
    ) -> None:
        terms = set(args.active_terms())
        wanted = sorted(terms & TEACHER_TERMS)
        _check_student(model, terms)
        if args.teacher_column is not None and teacher is not None:
            raise ValueError(
                f"There are two teachers: teacher={type(teacher).__name__} and teacher_column={args.teacher_column!r}. Drop "
                "one of them."
            )
        if args.teacher_column is not None:
            teacher = TeacherColumn(args.teacher_column)
        if wanted and teacher is None:
            raise ValueError(
                f"The terms {wanted} compare with a teacher, but teacher=None. Pass a TeacherCache or a LiveTeacher, name "
                "the teacher_column of the data, or set their weights to 0."
            )
        self.live = teacher if wanted and isinstance(teacher, LiveTeacher) else None
        self.cache = teacher if wanted and self.live is None else None
        self.column = self.cache if isinstance(self.cache, TeacherColumn) else None
        self.hidden_layers: list[int] = []
        self.hidden_width: int | None = None
        self._student_width: int | None = None
        self._checked = False
        if terms & MATCHED_TERMS and args.embedding_projection == "none":
            self._student_width = model.get_embedding_dimension()
        self._same_tokenizer = (self.live is not None or "hidden" in terms) and self._share_tokenizer(model)
        self.needs_texts = self.live is not None and bool(not self._same_tokenizer or self.live.prompt)
        if "hidden" in terms:
            self._plan_hidden(model, args)

    @property
    def embedding_width(self) -> int | None:
        """Width of the teacher's embeddings, or `None` when no term needs them."""
        if self.live is not None:
            return self.live.model.get_embedding_dimension()
        return None if self.cache is None else self.cache.dim

    def add_column(self, dataset: Dataset) -> np.ndarray:
        """Takes in the teacher column of a data set.

        Args:
            dataset: Training or evaluation data.

        Returns:
            The rows under which its vectors are read, `(N,)`.

        Raises:
            ValueError: If the column is bad, or its width is not the student's and nothing projects; names it.
        """
        rows = self.column.add(dataset)
        self._check_width()
        return rows

    def add_stream(self, dataset: IterableDataset) -> None:
        """Learns the width of the teacher column of a stream.

        Args:
            dataset: The stream.

        Raises:
            ValueError: If the column is bad, or its width is not the student's and nothing projects; names it.
        """
        self.column.add_stream(dataset)
        self._check_width()

    def _check_width(self) -> None:
        """Compares the teacher column's width with the student's, where the terms need them equal."""
        if self._student_width not in (None, self.column.dim):
            raise ValueError(
                f"Row 0 of column {self.column.name!r} holds {self.column.dim} numbers, but the student's embeddings have "
                f"{self._student_width}. Set embedding_projection='pca' or 'learned' for a head that is thrown away after "
                "training, or take a column of the student's width."
            )

    def _share_tokenizer(self, model: SentenceTransformer) -> bool:
        """Whether ids mean the same to student and teacher."""
        if student_encoder(model) is None or self.column is not None:
            return False
        own = sha256_of_tokenizer(model.tokenizer)
        if self.cache is not None:
            return own == self.cache.spec.tokenizer_sha256
        return self.live.is_transformer and own == sha256_of_tokenizer(self.live.model.tokenizer)

    def _plan_hidden(self, model: SentenceTransformer, args: EmbeddingDistillConfig) -> None:
        """Maps layers, and checks that the teacher serves the ones that are asked for."""
        if self.column is not None:
            raise ValueError(
                f"hidden_weight > 0 needs the teacher's hidden states, but the column {self.column.name!r} holds only "
                "embeddings. Pass teacher=LiveTeacher(...), or set hidden_weight=0."
            )
        if not self._same_tokenizer:
            raise ValueError(
                "hidden_weight > 0 compares token by token, but student and teacher have different tokenizers. Give the "
                "student the teacher's tokenizer, or set hidden_weight=0."
            )
        if self.live is not None and self.live.prompt:
            raise ValueError(
                f"hidden_weight > 0 compares token by token, but the teacher puts {self.live.prompt!r} before every "
                "text. Pass LiveTeacher(..., prompt=''), or set hidden_weight=0."
            )
        stored = self.cache.spec.hidden_layers if self.cache is not None else ()
        if self.cache is not None and not stored:
            raise ValueError(
                "hidden_weight > 0 needs the teacher's hidden states, but this cache holds only embeddings. Pass "
                "teacher=LiveTeacher(...), write a cache with the signals hidden_<i>, or set hidden_weight=0."
            )
        config = student_encoder(model).config
        depth = self.live.encoder.config.num_hidden_layers if self.live is not None else max(stored)
        strategy = args.layer_map_strategy()
        if strategy == "auto":
            strategy = config.to_dict().get("teacher_layers") or "uniform"
        self.hidden_layers = layer_map(config.num_hidden_layers, depth, strategy)
        missing = [f"hidden_{i + 1}" for i in sorted(set(self.hidden_layers)) if stored and i + 1 not in stored]
        if missing:
            raise ValueError(
                f"hidden_layer_map needs the teacher layers {self.hidden_layers}, but the cache lacks {missing}. Choose "
                "layers it holds, write a cache with them, or pass teacher=LiveTeacher(...)."
            )
        if self.live is not None:
            self.hidden_width = self.live.encoder.config.hidden_size
        else:
            self.hidden_width = self.cache.hidden(stored[0], [0]).values.shape[1]

    def answer(self, inputs: dict[str, Any], hidden: bool, device: torch.device) -> dict[str, Any]:
        """Adds a live teacher's answer to a batch; a cache's is there already.

        Args:
            inputs: The batch on its device.
            hidden: Whether hidden states are needed at this step.
            device: Where the student is.

        Returns:
            The batch with `teacher_embedding` and, if asked for, `teacher_hidden_states`.

        Raises:
            ValueError: If the teacher's first answer, hidden states included, holds NaN or infinity. On the CPU every
                embedding is looked at.
        """
        if self.live is None:
            return inputs
        if self.needs_texts:
            embedding = torch.from_numpy(self.live.embed(inputs["texts"]))
            self._check(embedding)
            return {**inputs, "teacher_embedding": embedding.to(device)}
        wanted = hidden or bool(self.hidden_layers and not self._checked)
        signal = self.live.forward(inputs["input_ids"], inputs["attention_mask"], hidden_states=wanted)
        needed = sorted({layer + 1 for layer in self.hidden_layers}) if wanted else []
        states = {i: signal.hidden_states[i] for i in needed}
        self._check(signal.embedding, states, inputs["attention_mask"])
        answer = {"teacher_embedding": signal.embedding.to(device)}
        if hidden:
            answer["teacher_hidden_states"] = {i: state.to(device) for i, state in states.items()}
        return {**inputs, **answer}

    def _check(self, embedding: Tensor, states: dict[int, Tensor] | None = None, mask: Tensor | None = None) -> None:
        """Refuses NaN before the student learns from it; of hidden states the real tokens of the first answer count."""
        parts = {"embedding": embedding}
        if not self._checked:
            parts |= {f"hidden_{i}": state[mask.bool().to(state.device)] for i, state in (states or {}).items()}
        if not self._checked or embedding.device.type == "cpu":  # a GPU would have to be waited for at every batch
            self.live.check_finite(parts)
        self._checked = True


def _check_student(model: SentenceTransformer, terms: set[str]) -> None:
    """Refuses terms that this student has nothing for."""
    encoder = student_encoder(model)
    if encoder is None and terms & {"hidden", "orthogonality", "state_decorrelation"}:
        raise ValueError(
            "hidden, orthogonality and state_decorrelation need a transformer-like student, but this one is a static "
            "table. Set their weights to 0."
        )
    if terms & {"orthogonality", "state_decorrelation"} and encoder.config.model_type != "hfd_deltanet":
        raise ValueError(
            "orthogonality and state_decorrelation need an hfd_deltanet student, but this is a "
            f"{encoder.config.model_type!r}. Set both weights to 0."
        )
    if "state_decorrelation" in terms and encoder.config.memory == "single":
        raise ValueError(
            "state_decorrelation needs a student with a fast and a slow memory (memory='two_decay' or "
            "'joint_residual'), but this one has memory='single'. Set state_decorrelation_weight=0."
        )


__all__ = ["TeacherSource", "student_tokenizer", "training_length"]
