"""From the user's data set to the columns that sampler and collator read, everything checked before the first step."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.teacher_column import TEACHER_COLUMN
from hf_distill.data.token_ids import (
    IDS_SUFFIX,
    ROW_SUFFIX,
    check_ids_match_texts,
    check_token_ids,
    fit_lengths,
    text_columns,
    tokenize_columns,
)
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.teacher_source import TeacherSource

logger = logging.get_logger(__name__)


class TrainingData:
    """Prepares training and evaluation data for one student and one teacher.

    What the trainer keeps has, for every text column, `<column>_input_ids` and, with a cache or a teacher column,
    `<column>_row`, the row of its vector.

    Args:
        args: Columns, lengths and terms.
        source: Where the teacher's answers come from.
        tokenizer: The student's.
        max_length: Longest sequence in tokens.
        vocab_size: Rows of the student's embedding table.
        flat: Whether the student is a static table, whose texts get no special tokens.
    """

    def __init__(
        self,
        args: EmbeddingDistillConfig,
        source: TeacherSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        vocab_size: int,
        flat: bool = False,
    ) -> None:
        self.args = args
        self.source = source
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.flat = flat

    def prepare(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """Token ids, checked, and the rows of the teacher's vectors, for every text column.

        Args:
            dataset: Rows with `text`, or `anchor` and `positive`, as strings or ids; or with the configured columns.

        Returns:
            The data set as the trainer needs it. A stream is checked batch by batch instead.

        Raises:
            ValueError: If something is missing, empty, out of range or does not fit; names column, row and remedy.
        """
        if isinstance(dataset, IterableDataset):
            return self._stream(dataset)
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"A {type(dataset).__name__} is not supported; mix your sources into one `datasets.Dataset` first "
                "(hf_distill.data.sources.load_mix)."
            )
        if not len(dataset):
            raise ValueError("The data set has no rows; check its file, its filters and its limit.")
        rows = None if self.source.column is None else self.source.add_column(dataset)
        if self.args.ids_column is not None:
            dataset = self._chosen(dataset)
        elif rows is not None:
            dataset = dataset.remove_columns([self.args.teacher_column])
        columns = text_columns(dataset.column_names)
        if self.args.contrastive_weight and len(columns) < 2:
            raise ValueError(
                "contrastive_weight > 0 needs pairs, but the data set has single texts. Use a source with `anchor` and "
                "`positive` (such as wordnet_pairs), or set contrastive_weight=0."
            )
        if rows is not None:
            dataset = self._with_rows(dataset, columns, rows)
        for column in columns:
            dataset = self._column(dataset, column)
        closing = {self.tokenizer.sep_token_id, self.tokenizer.eos_token_id}
        padding = self.tokenizer.pad_token_id
        check_token_ids(dataset, columns, self.vocab_size, pad_token_id=None if padding in closing else padding)
        if self.args.ids_column is not None and columns[0] in dataset.column_names:
            check_ids_match_texts(dataset, columns[0], self.tokenizer)
        return fit_lengths(dataset, columns, self.max_length, self.args.too_long)

    def needed(self, column_names: list[str]) -> list[str]:
        """The columns that the collator uses.

        Args:
            column_names: Those of a prepared data set.

        Returns:
            Ids, rows of the teacher's vectors, and texts for a live teacher with another tokenizer.
        """
        columns = text_columns(column_names)
        needed = [column + IDS_SUFFIX for column in columns]
        needed += [column + ROW_SUFFIX for column in columns if self.source.cache is not None]
        return needed + (columns if self.source.needs_texts else [])

    def _stream(self, dataset: IterableDataset) -> IterableDataset:
        """A stream with the configured columns under the names that the collator reads."""
        if self.args.ids_column is None and self.source.column is None:
            return dataset
        if dataset.column_names is None:
            raise ValueError(
                "ids_column and teacher_column need to know the stream's columns: give it features with "
                "`dataset.cast(Features({...}))`."
            )
        if self.source.column is not None:
            self.source.add_stream(dataset)
            if self.args.teacher_column != TEACHER_COLUMN:
                dataset = dataset.rename_column(self.args.teacher_column, TEACHER_COLUMN)
        if self.args.ids_column is not None:
            dataset = self._chosen(dataset)
        self._one_text(text_columns(dataset.column_names))
        return dataset

    def _chosen(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """The id column that was asked for, and what belongs to it under its name: `text` and `row`."""
        ids, found = self.args.ids_column, list(dataset.column_names)
        if ids not in found:
            others = [name for name in found if name.endswith("input_ids")]
            raise ValueError(
                f"The data set has no column {ids!r}; its columns of ids are {others or 'none'}, all columns "
                f"{sorted(found)}. Set ids_column to one of them."
            )
        column = ids.removesuffix(IDS_SUFFIX)
        kept = {ids: ids}
        for own, given in ((column, "text"), (column + ROW_SUFFIX, "row")):
            name = own if own in found else given
            if name in found:
                kept[name] = own
        if isinstance(dataset, IterableDataset) and self.source.column is not None:
            kept[TEACHER_COLUMN] = TEACHER_COLUMN
        renamed = {old: new for old, new in kept.items() if old != new}
        dataset = dataset.select_columns(list(kept))
        return dataset.rename_columns(renamed) if renamed else dataset

    def _one_text(self, columns: list[str]) -> None:
        """Refuses pairs beside a teacher column, which holds one vector a row."""
        if self.source.column is not None and len(columns) > 1:
            raise ValueError(
                f"teacher_column={self.args.teacher_column!r} holds one vector a row, but the data set has pairs "
                f"({columns}). Use single texts, or a teacher cache."
            )

    def _with_rows(self, dataset: Dataset, columns: list[str], rows: np.ndarray) -> Dataset:
        """The rows of the teacher column, as a column."""
        self._one_text(columns)
        name = columns[0] + ROW_SUFFIX
        if name in dataset.column_names:
            dataset = dataset.remove_columns([name])
        return dataset.add_column(name, rows)

    def _column(self, dataset: Dataset, column: str) -> Dataset:
        """One text column tokenised, and its rows found in the cache."""
        args, ids = self.args, column + IDS_SUFFIX
        prompt = args.prompts.get(column) if isinstance(args.prompts, dict) else args.prompts
        if prompt and ids in dataset.column_names:
            raise ValueError(f"prompts is set, but {column!r} is tokenised already: put the prompt into the ids.")
        if column not in dataset.column_names and self.source.needs_texts:
            raise ValueError(
                "The live teacher has another tokenizer than the student, or a prompt, so it needs the text column "
                f"{'text' if args.ids_column else column!r} beside {ids!r}."
            )
        dataset = tokenize_columns(
            dataset,
            [column],
            self.tokenizer,
            self.max_length if args.too_long == "truncate" else None,
            prompt=prompt,
            add_special_tokens=not self.flat,
        )
        cache, row_column = self.source.cache, column + ROW_SUFFIX
        if cache is None:
            return dataset
        if row_column not in dataset.column_names:
            if column not in dataset.column_names:
                raise ValueError(
                    f"The teacher's vectors of {column!r} cannot be found: there is neither {row_column!r} nor the text "
                    f"itself. Add one of the two columns. (The data set has {len(dataset)} rows, the cache {len(cache)}.)"
                )
            dataset = dataset.add_column(row_column, cache.rows_for(dataset[column][:]))
        self._check_rows(dataset, row_column)
        return dataset

    def _check_rows(self, dataset: Dataset, row_column: str) -> None:
        """Refuses rows that the cache does not have."""
        rows = dataset.with_format("numpy")[row_column][:]
        if rows.dtype.kind not in "iu":
            raise ValueError(f"{row_column!r} must hold row numbers, but row 0 holds {rows[0]!r}.")
        wrong = np.flatnonzero((rows < 0) | (rows >= len(self.source.cache)))
        if len(wrong):
            raise ValueError(
                f"Row {wrong[0]} of {row_column!r} points to row {rows[wrong[0]]}, but the cache has "
                f"{len(self.source.cache)} rows (the data set {len(dataset)}): it was written from other texts. Write it "
                "again, or drop the column to look the texts up."
            )


def align_padding(embeddings: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets every real token train: torch gives the row `padding_idx` of an embedding table no gradient.

    A student that came from a model with another tokenizer may still have that one's padding id there, which can be a
    frequent token of its own.

    Args:
        embeddings: The student's input embeddings, changed in place.
        tokenizer: The student's tokenizer.
    """
    if not isinstance(embeddings, nn.Embedding) or embeddings.padding_idx in (None, tokenizer.pad_token_id):
        return
    logger.warning(
        f"The student's embedding table takes id {embeddings.padding_idx} for padding and would never train it, but the "
        f"tokenizer pads with id {tokenizer.pad_token_id}: the table now follows the tokenizer."
    )
    embeddings.padding_idx = tokenizer.pad_token_id


__all__ = ["TrainingData", "align_padding"]
