"""Token ids in the columns of a data set: which columns hold them, and how they are made, checked and measured.

Everything here happens once, before the first step, and reads the columns through arrow in pieces of bounded size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

logger = logging.get_logger(__name__)

IDS_SUFFIX = "_input_ids"
ROW_SUFFIX = "_row"
TOO_LONG = ("truncate", "drop", "error")
"""What can be done with a sequence that is longer than allowed."""
_PIECE = 10_000
"""Rows that are read at once."""
_COMPARED = 8
"""First rows whose ids are compared with their texts."""
_PADDED_SHARE = 0.1
"""Share of rows ending in the padding id from which a column counts as padded: a text may end in it by chance."""


def text_columns(column_names: Iterable[str]) -> list[str]:
    """Names the text columns of a data set, whether they hold strings or ids.

    Args:
        column_names: All column names, such as `["anchor_input_ids", "anchor_row", "positive_input_ids", …]`.

    Returns:
        `["anchor", "positive"]`, `["text"]`, or `["mft"]` where `mft_input_ids` is the only column of ids.

    Raises:
        ValueError: If there is no such column, or only ids of several tokenizers.
    """
    column_names = list(column_names)
    names = {name.removesuffix(IDS_SUFFIX) for name in column_names}
    if {"anchor", "positive"} <= names:
        return ["anchor", "positive"]
    if "text" in names:
        return ["text"]
    ids = [name.removesuffix(IDS_SUFFIX) for name in column_names if name.endswith(IDS_SUFFIX)]
    ids = [name for name in ids if name not in ("anchor", "positive")]
    if len(ids) == 1:
        return ids
    if ids:
        raise ValueError(
            f"The data set has ids of several tokenizers, {[name + IDS_SUFFIX for name in ids]}: choose those of the "
            f"student's with ids_column={ids[0] + IDS_SUFFIX!r}."
        )
    raise ValueError(
        f"The data set has the columns {sorted(column_names)}, but needs `text`, or `anchor` and `positive` "
        "(strings), or the same with ids: `text_input_ids`, or `anchor_input_ids` and `positive_input_ids`. "
        "Rename yours with `dataset.rename_column(...)`."
    )


def tokenize_columns(
    dataset: Dataset,
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    prompt: str | None = None,
    add_special_tokens: bool = True,
) -> Dataset:
    """Adds `<column>_input_ids` for every string column that has none yet.

    Args:
        dataset: Rows with the string columns.
        columns: The string columns.
        tokenizer: The student's tokenizer.
        max_length: Longest sequence in tokens; the rest is cut. `None` cuts nothing.
        prompt: Text put before every text of the student.
        add_special_tokens: Add what the tokenizer adds around a text ([CLS] … [SEP]).

    Returns:
        The data set with the id columns.

    Raises:
        ValueError: If a row has no text; the message names column and row.
    """

    def tokenize(batch: dict[str, list[str]], indices: list[int]) -> dict[str, list[list[int]]]:
        ids = {}
        for column in missing:
            for index, text in zip(indices, batch[column], strict=True):
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(
                        f"Row {index} has no text in column {column!r} (it holds {text!r}). Remove such rows first: "
                        f"dataset.filter(lambda row: row[{column!r}] and row[{column!r}].strip())."
                    )
            texts = [(prompt or "") + text for text in batch[column]]
            encoded = tokenizer(
                texts,
                truncation=max_length is not None,
                max_length=max_length,
                add_special_tokens=add_special_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            ids[column + IDS_SUFFIX] = encoded["input_ids"]
        return ids

    missing = [column for column in columns if column + IDS_SUFFIX not in dataset.column_names]
    if not missing:
        return dataset
    return dataset.map(tokenize, batched=True, with_indices=True, desc="Tokenising", load_from_cache_file=False)


def column_lengths(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Tokens of every row; of several columns the longest, since they share one padded batch.

    Args:
        dataset: Rows with `<column>_input_ids`.
        columns: Text columns.

    Returns:
        `(N,)` int64.
    """
    import pyarrow.compute as pc

    table = dataset.with_format("arrow").select_columns([c + IDS_SUFFIX for c in columns])[:]
    lengths = [pc.list_value_length(table[c + IDS_SUFFIX]).to_numpy() for c in columns]
    return np.max(lengths, axis=0).astype(np.int64)


def check_token_ids(
    dataset: Dataset, columns: Sequence[str], vocab_size: int, *, pad_token_id: int | None = None
) -> None:
    """Checks all ids against the vocabulary, and that no row is empty, before training starts.

    Args:
        dataset: Rows with `<column>_input_ids`.
        columns: Text columns.
        vocab_size: Rows of the student's embedding table.
        pad_token_id: The padding id, to refuse rows that are padded already; `None` where it also ends real texts.

    Raises:
        ValueError: Naming column, row and value.
    """
    import pyarrow.compute as pc

    for name in (column + IDS_SUFFIX for column in columns):
        _check_type(dataset, name)
        padded: list[int] = []
        for start, ids in list_pieces(dataset, name):
            lengths = pc.fill_null(pc.list_value_length(ids), 0).to_numpy()
            if not lengths.all():
                row = start + int(np.argmin(lengths))
                raise ValueError(f"Row {row} of column {name!r} holds no token ids; remove it or fill it in.")
            flat, ends = pc.fill_null(pc.list_flatten(ids), -1).to_numpy(), np.cumsum(lengths)
            wrong = np.flatnonzero((flat < 0) | (flat >= vocab_size))
            if len(wrong):
                row = start + int(np.searchsorted(ends, wrong[0], side="right"))
                raise ValueError(
                    f"Row {row} of column {name!r} holds the token id {flat[wrong[0]]}, outside the student's "
                    f"vocabulary of {vocab_size}. These ids come from another tokenizer: tokenise the texts with the "
                    "student's."
                )
            if pad_token_id is not None:
                padded += (start + np.flatnonzero(flat[ends - 1] == pad_token_id)).tolist()
        if len(padded) > _PADDED_SHARE * len(dataset):
            raise ValueError(
                f"Row {padded[0]} of column {name!r} ends in the padding id {pad_token_id}, and so do {len(padded)} of "
                f"{len(dataset)} rows. The collator pads and masks by itself: give ids without padding."
            )


def list_pieces(dataset: Dataset, name: str) -> Iterator[tuple[int, pa.Array]]:
    """Reads a column of lists in pieces, so that its size does not matter.

    Args:
        dataset: Where it is, with or without a selection of rows.
        name: The column.

    Yields:
        Number of the first row, and the lists.
    """
    start = 0
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=_PIECE):
        yield start, table[name].combine_chunks()
        start += table.num_rows


def _check_type(dataset: Dataset, name: str) -> None:
    """Refuses a column that holds anything but lists of whole numbers."""
    import pyarrow as pa

    kind = dataset.features.arrow_schema.field(name).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise ValueError(f"Column {name!r} must hold lists of token ids (whole numbers), but row 0 holds {kind}.")


def check_ids_match_texts(dataset: Dataset, column: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compares the ids of the first rows with what the student's tokenizer makes of their texts.

    Ids of another tokenizer of the same size raise no other error: the student would learn nonsense. Cut texts, special
    tokens and prompts are no reason to complain, so half of the tokens may differ.

    Args:
        dataset: Rows with the texts, `<column>`, and their ids, `<column>_input_ids`.
        column: The text column.
        tokenizer: The student's tokenizer.

    Raises:
        ValueError: If they hardly have a token in common.
    """
    name, common, possible = column + IDS_SUFFIX, 0, 0
    rows = [row for row in dataset.select(range(min(_COMPARED, len(dataset)))) if isinstance(row[column], str)]
    for row in rows:
        own = tokenizer(row[column], add_special_tokens=False)["input_ids"]
        common += sum((Counter(own) & Counter(row[name])).values())
        possible += min(len(own), len(row[name]))
    if 2 * common < possible:
        raise ValueError(
            f"Column {name!r} comes from another tokenizer than the student's ({type(tokenizer).__name__}): row 0 holds "
            f"the ids {rows[0][name][:8]} for the text {rows[0][column][:40]!r}, and the first {len(rows)} rows share "
            f"{common} of {possible} tokens with what the student's tokenizer gives. Choose the id column of the "
            "student's tokenizer, or, if the texts are not the ids' own, drop the text column."
        )


def fit_lengths(dataset: Dataset, columns: Sequence[str], max_length: int, too_long: str = "truncate") -> Dataset:
    """Applies the rule for sequences longer than allowed; cutting itself is the collator's work.

    Args:
        dataset: Rows with `<column>_input_ids`.
        columns: Text columns.
        max_length: Longest sequence in tokens.
        too_long: `"truncate"` keeps all rows, `"drop"` leaves long ones out, `"error"` refuses them.

    Returns:
        The data set, perhaps with fewer rows.

    Raises:
        ValueError: If the rule is `"error"` and a row is too long (the first is named), or no row would be left.
    """
    if too_long == "truncate":
        return dataset
    lengths = column_lengths(dataset, columns)
    long, names = np.flatnonzero(lengths > max_length), [column + IDS_SUFFIX for column in columns]
    if not len(long):
        return dataset
    if too_long == "error":
        raise ValueError(
            f"Row {long[0]} of {names} has {lengths[long[0]]} tokens, more than max_length={max_length}; {len(long)} of "
            f"{len(dataset)} rows are too long. Raise max_length, or set too_long='truncate' or 'drop'."
        )
    if len(long) == len(dataset):
        raise ValueError(
            f"All {len(dataset)} rows of {names} have more than max_length={max_length} tokens, so too_long='drop' leaves "
            "nothing. Raise max_length, or set too_long='truncate'."
        )
    logger.warning(f"{len(long):,} of {len(dataset):,} rows have more than {max_length} tokens and are left out.")
    return dataset.select(np.flatnonzero(lengths <= max_length))


__all__ = [
    "IDS_SUFFIX",
    "ROW_SUFFIX",
    "TOO_LONG",
    "check_ids_match_texts",
    "check_token_ids",
    "column_lengths",
    "fit_lengths",
    "list_pieces",
    "text_columns",
    "tokenize_columns",
]
