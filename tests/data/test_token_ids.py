"""Id columns: which one it is, and every way in which its rows can be wrong."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_distill.data import token_ids
from hf_distill.data.token_ids import (
    check_ids_match_texts,
    check_token_ids,
    fit_lengths,
    text_columns,
    tokenize_columns,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_bert)


def test_the_only_id_column_is_the_text():
    assert text_columns(["mft_input_ids", "mft", "mft_row"]) == ["mft"]
    assert text_columns(["text", "mft_input_ids", "tabi_input_ids"]) == ["text"]
    with pytest.raises(ValueError, match="several tokenizers.*ids_column='mft_input_ids'"):
        text_columns(["mft_input_ids", "tabi_input_ids"])
    with pytest.raises(ValueError, match="rename_column"):
        text_columns(["anchor_input_ids", "label"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1], [2, 3], [4, 99]], r"Row 2 of column 'mft_input_ids' holds the token id 99"),
        ([[1], [2, 3], []], r"Row 2 of column 'mft_input_ids' holds no token ids"),
        ([[1], [2, 3], None], r"Row 2 of column 'mft_input_ids' holds no token ids"),
        ([[1], [2, None], [3]], r"Row 1 of column 'mft_input_ids' holds the token id -1"),
        ([[1, 2], [1, 5], [1, 5]], r"Row 1 of column 'mft_input_ids' ends in the padding id 5, .* 2 of 3 rows"),
        ([["a"], ["b"]], r"'mft_input_ids' must hold lists of token ids .* row 0 holds list<"),
        ([1, 2], r"'mft_input_ids' must hold lists of token ids"),
    ],
)
def test_wrong_rows_are_named(monkeypatch, rows, message):
    monkeypatch.setattr(token_ids, "_PIECE", 2)
    data = Dataset.from_dict({"mft_input_ids": rows})
    with pytest.raises(ValueError, match=message):
        check_token_ids(data, ["mft"], 50, pad_token_id=5)


def test_good_rows_pass_and_a_selection_is_checked_as_selected():
    data = Dataset.from_dict({"mft_input_ids": [[0, 49], [99], [5, 1]]})
    check_token_ids(data.select([2, 0]), ["mft"], 50, pad_token_id=5)
    with pytest.raises(ValueError, match="Row 1 .* 99"):
        check_token_ids(data.select([0, 1]), ["mft"], 50)


def test_ids_of_another_tokenizer_are_noticed(tokenizer, tiny_texts):
    ids = tokenizer(tiny_texts, add_special_tokens=False)["input_ids"]
    data = Dataset.from_dict({"mft": tiny_texts, "mft_input_ids": [[*row[:9], 3] for row in ids]})
    check_ids_match_texts(data, "mft", tokenizer)
    other = Dataset.from_dict({"mft": tiny_texts, "mft_input_ids": [[token + 60 for token in row] for row in ids]})
    with pytest.raises(ValueError, match=r"'mft_input_ids' comes from another tokenizer than the student's .* row 0"):
        check_ids_match_texts(other, "mft", tokenizer)


def test_rules_for_long_rows():
    data = Dataset.from_dict({"mft_input_ids": [[1, 2], [1, 2, 3], [1], [1, 2, 3, 4]]})
    assert len(fit_lengths(data, ["mft"], 2)) == 4
    assert fit_lengths(data, ["mft"], 2, "drop")["mft_input_ids"][:] == [[1, 2], [1]]
    assert fit_lengths(data, ["mft"], 9, "drop") is data
    with pytest.raises(ValueError, match=r"Row 1 of \['mft_input_ids'\] has 3 tokens, more than max_length=2; 2 of 4"):
        fit_lengths(data, ["mft"], 2, "error")
    with pytest.raises(ValueError, match="All 4 rows .* leaves nothing"):
        fit_lengths(data, ["mft"], 0, "drop")


def test_tokenising_without_a_limit(tokenizer, tiny_texts):
    data = tokenize_columns(Dataset.from_dict({"text": tiny_texts}), ["text"], tokenizer, None)
    assert data["text_input_ids"][:] == tokenizer(tiny_texts)["input_ids"]
