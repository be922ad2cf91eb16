"""From data set rows to one padded batch: pre-computed token ids in, tensors and the teacher's vectors out.

Texts are tokenised once (`tokenize_columns`), never per batch. All text columns of a row (`text`, or `anchor` and
`positive`) go into ONE padded batch, row by row, so that the student needs one forward pass; the teacher's vectors are
gathered by row number from its memory-mapped cache, or from a column of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_distill.data.teacher_column import TEACHER_COLUMN, TeacherColumn
from hf_distill.data.token_ids import (
    IDS_SUFFIX,
    ROW_SUFFIX,
    TOO_LONG,
    check_token_ids,
    column_lengths,
    text_columns,
    tokenize_columns,
)


class TeacherRows(Protocol):
    """What a collator asks of a teacher's cache (`hf_distill.teachers.cached.TeacherCache`)."""

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        """Vectors `(N, D)` of rows `(N,)`."""

    def hidden(self, layer: int, rows: np.ndarray) -> Any:
        """Hidden states of rows, with `offsets` `(N + 1,)` and `padded(width)`."""

    def rows_for(self, texts: Sequence[str]) -> np.ndarray:
        """Rows `(N,)` of texts."""


class DistillCollator:
    """Pads the ids of all text columns into one batch and gathers the teacher's vectors.

    Args:
        tokenizer: The student's tokenizer; its padding id is used.
        max_length: Longest sequence in tokens.
        too_long (`str`, *optional*, defaults to `"truncate"`): What becomes of longer ones: they are cut, a closing
            special token is kept (`"truncate"`), their rows are left out of the batch (`"drop"`), or refused (`"error"`).
        vocab_size (`int`, *optional*): Rows of the student's embedding table, to check the ids.
        teacher (`TeacherCache` or `TeacherColumn`, *optional*): Where the vectors of `<column>_row` (or of the text)
            are read from. The examples of a stream may carry them, as `teacher_embedding`.
        hidden_layers (`Sequence[int]`, *optional*): Hidden states to read too; 0 is the embedding layer's output.
        flat (`bool`, *optional*, defaults to `False`): Make `input_ids` (all tokens) and `offsets` for a static
            embedding table instead of a padded batch.
        keep_texts (`bool`, *optional*, defaults to `False`): Also hand on the strings, for a live teacher with another
            tokenizer.
        pad_to_multiple_of (`int`, *optional*, defaults to 8): Round the padded length up.

    Returns:
        A dictionary: `input_ids` and `attention_mask` `(R, T)` with `R` = rows x columns, row by row (anchor 0,
        positive 0, anchor 1, …), or `input_ids` `(tokens,)` and `offsets` `(R,)`; `teacher_embedding` `(R, D)`;
        `teacher_hidden_states`, index -> `(R, T, D)`; `positive_ids` `(rows,)`, equal where two positives are the same
        text; `num_columns`; `texts`.

    Raises:
        ValueError: If an example lacks a column, is empty or holds an id outside the vocabulary, or is too long under
            `"error"`, or the tokenizer has no padding token that the student knows.

    Example:
        >>> collate = DistillCollator(tokenizer, max_length=128)
        >>> collate([{"text_input_ids": [101, 7592, 102]}, {"text_input_ids": [101, 102]}])["input_ids"].shape
        torch.Size([2, 8])
    """

    valid_label_columns: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        too_long: str = "truncate",
        vocab_size: int | None = None,
        teacher: TeacherRows | None = None,
        hidden_layers: Sequence[int] = (),
        flat: bool = False,
        keep_texts: bool = False,
        pad_to_multiple_of: int = 8,
    ) -> None:
        if tokenizer.pad_token_id is None and not flat:
            raise ValueError(
                f"The student's tokenizer ({type(tokenizer).__name__}) has no padding token; set one: "
                "`tokenizer.pad_token = tokenizer.eos_token`."
            )
        if too_long not in TOO_LONG:
            raise ValueError(f"too_long must be one of {TOO_LONG}, but is {too_long!r}.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.too_long = too_long
        self.vocab_size = len(tokenizer) if vocab_size is None else vocab_size
        if not flat and tokenizer.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"The tokenizer pads with id {tokenizer.pad_token_id}, outside the student's vocabulary of "
                f"{self.vocab_size}. Take a padding token that the student has, or give it a row: "
                "`model[0].auto_model.resize_token_embeddings(len(tokenizer))`."
            )
        self.teacher = teacher
        self.hidden_layers = sorted(set(hidden_layers))
        self.flat = flat
        self.keep_texts = keep_texts
        self.pad_to_multiple_of = pad_to_multiple_of
        self._closing = {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collates the rows of one batch; see the class."""
        columns = text_columns(features[0])
        sequences = self._sequences(features, columns)
        if self.too_long != "truncate":
            features, sequences = self._within(features, sequences, columns)
        ids, lengths = self._checked([self._cut(sequence) for sequence in sequences], columns)
        batch = self._flat(ids, lengths) if self.flat else self._pad(ids, lengths)
        batch["num_columns"] = len(columns)
        if isinstance(self.teacher, TeacherColumn) and TEACHER_COLUMN in features[0]:
            vectors = self.teacher.stacked([example[TEACHER_COLUMN] for example in features])
            batch["teacher_embedding"] = torch.from_numpy(vectors)
        elif self.teacher is not None:
            rows = self._rows(features, columns)
            batch["teacher_embedding"] = torch.from_numpy(np.ascontiguousarray(self.teacher.embeddings(rows)))
            if self.hidden_layers:
                batch["teacher_hidden_states"] = self._hidden(rows, lengths, batch["input_ids"].shape[1])
        if len(columns) > 1:
            ends = np.cumsum(lengths)
            keys = [_key(ids[end - n : end]) for end, n in zip(ends[1::2], lengths[1::2], strict=True)]
            batch["positive_ids"] = torch.tensor(keys)
        if self.keep_texts:
            batch["texts"] = [example[column] for example in features for column in columns]
        return batch

    def _sequences(self, features: list[dict[str, Any]], columns: list[str]) -> list[list[int]]:
        """The ids of all texts, row by row."""
        names = [column + IDS_SUFFIX for column in columns]
        if names[0] not in features[0]:  # a streamed data set that was not tokenised before
            texts = [example[column] for example in features for column in columns]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                bad = next(text for text in texts if not isinstance(text, str) or not text.strip())
                raise ValueError(f"A row has no text in one of the columns {columns} (it holds {bad!r}); remove it.")
            cut = self.too_long == "truncate"
            return self.tokenizer(
                texts,
                truncation=cut,
                max_length=self.max_length if cut else None,
                add_special_tokens=not self.flat,
            )["input_ids"]
        return [[] if example[name] is None else example[name] for example in features for name in names]

    def _within(
        self, features: list[dict[str, Any]], sequences: list[list[int]], columns: list[str]
    ) -> tuple[list[dict[str, Any]], list[list[int]]]:
        """The examples that are short enough, and their ids."""
        width = len(columns)
        rows = [sequences[i : i + width] for i in range(0, len(sequences), width)]
        fits = [all(len(ids) <= self.max_length for ids in row) for row in rows]
        if self.too_long == "error" and not all(fits):
            example = fits.index(False)
            raise ValueError(
                f"Example {example} of the batch has {max(map(len, rows[example]))} tokens in {columns}, more than "
                f"max_length={self.max_length}. Raise it, or set too_long='truncate' or 'drop'."
            )
        if not any(fits):
            raise ValueError(
                f"All {len(features)} examples of a batch have more than max_length={self.max_length} tokens, so "
                "too_long='drop' leaves nothing. Raise max_length, or set too_long='truncate'."
            )
        kept = [example for example, fit in zip(features, fits, strict=True) if fit]
        return kept, [ids for row, fit in zip(rows, fits, strict=True) if fit for ids in row]

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `max_length` ids, the closing special token kept."""
        if len(ids) <= self.max_length:
            return ids
        tail = [ids[-1]] if ids[-1] in self._closing else []
        return list(ids[: self.max_length - len(tail)]) + tail

    def _checked(self, sequences: list[list[int]], columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids one after the other `(tokens,)` and the lengths `(R,)`, checked against the vocabulary."""
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        ids = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
        if not lengths.all():
            example, column = divmod(int(np.argmin(lengths)), len(columns))
            raise ValueError(f"Example {example} of the batch holds no token ids in column {columns[column]!r}.")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
            example, column = divmod(int(np.searchsorted(np.cumsum(lengths), wrong, side="right")), len(columns))
            raise ValueError(
                f"Example {example} of the batch, column {columns[column]!r}, holds the token id {ids[wrong]}, outside "
                f"the student's vocabulary of {self.vocab_size}; tokenise with the student's tokenizer."
            )
        return ids, lengths

    def _pad(self, ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        """A right-padded batch."""
        width = -(-int(lengths.max()) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        mask = np.arange(min(width, self.max_length))[None, :] < lengths[:, None]
        padded = np.full(mask.shape, self.tokenizer.pad_token_id, dtype=np.int64)
        padded[mask] = ids
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def _flat(self, ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        """All tokens one after the other, and where each text starts."""
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(offsets)}

    def _rows(self, features: list[dict[str, Any]], columns: list[str]) -> np.ndarray:
        """Rows of the teacher's cache, row by row."""
        if columns[0] + ROW_SUFFIX in features[0]:
            return np.asarray([example[column + ROW_SUFFIX] for example in features for column in columns], np.int64)
        return self.teacher.rows_for([example[column] for example in features for column in columns])

    def _hidden(self, rows: np.ndarray, lengths: np.ndarray, width: int) -> dict[int, torch.Tensor]:
        """Hidden states of the teacher beside the student's tokens, index -> `(R, width, D)`."""
        states = {}
        for layer in self.hidden_layers:
            hidden = self.teacher.hidden(layer, rows)
            if not np.array_equal(np.diff(hidden.offsets), lengths):
                raise ValueError(
                    "The teacher's cache was written for texts cut at another length than the student's. Write it with "
                    f"max_seq_length={self.max_length}, or train with the max_length it was written with."
                )
            states[layer] = torch.from_numpy(hidden.padded(width)[0])
        return states


def _key(ids: np.ndarray) -> int:
    """The same number for the same ids, in every process."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little", signed=True)


__all__ = ["DistillCollator", "check_token_ids", "column_lengths", "text_columns", "tokenize_columns"]
