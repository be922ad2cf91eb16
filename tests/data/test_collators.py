"""Padding, truncation, vocabulary checks and the teacher's rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_distill.data.collators import (
    DistillCollator,
    check_token_ids,
    column_lengths,
    text_columns,
    tokenize_columns,
)
from hf_distill.data.teacher_column import TeacherColumn
from hf_distill.teachers.signal import HiddenRows


class RowTeacher:
    """Row r says the vector (r, 2r); its hidden states have `tokens[r]` tokens."""

    def __init__(self, tokens: tuple[int, ...] = ()) -> None:
        self.tokens = tokens

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([rows, 2 * rows], axis=1).astype(np.float16)

    def rows_for(self, texts: list[str]) -> np.ndarray:
        return np.array([len(text) for text in texts])

    def hidden(self, layer: int, rows: np.ndarray) -> HiddenRows:
        lengths = [self.tokens[row] for row in rows]
        values = np.concatenate([np.full((n, 3), row + layer) for n, row in zip(lengths, rows, strict=True)])
        return HiddenRows(values.astype(np.float16), np.concatenate([[0], np.cumsum(lengths)]))


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_bert)


def test_pads_with_the_real_pad_id_and_masks(tokenizer, tiny_bert):
    other = AutoTokenizer.from_pretrained(tiny_bert, pad_token="[MASK]")
    for tok in (tokenizer, other):
        batch = DistillCollator(tok, 64)([{"text_input_ids": [2, 50, 3]}, {"text_input_ids": [2, 50, 51, 3]}])
        assert batch["input_ids"].shape == (2, 8)
        assert batch["input_ids"][0].tolist() == [2, 50, 3] + [tok.pad_token_id] * 5
        assert batch["attention_mask"].sum(1).tolist() == [3, 4]
    assert other.pad_token_id != tokenizer.pad_token_id


def test_equals_the_tokenizer(tokenizer, tiny_texts):
    data = tokenize_columns(Dataset.from_dict({"text": tiny_texts}), ["text"], tokenizer, 20)
    batch = DistillCollator(tokenizer, 20, pad_to_multiple_of=1)(list(data.select_columns(["text_input_ids"])))
    expected = tokenizer(tiny_texts, padding=True, truncation=True, max_length=20, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    streamed = DistillCollator(tokenizer, 20, pad_to_multiple_of=1)([{"text": text} for text in tiny_texts])
    assert torch.equal(streamed["input_ids"], expected["input_ids"])


def test_truncation_keeps_the_closing_token(tokenizer):
    ids = [tokenizer.cls_token_id, *range(60, 90), tokenizer.sep_token_id]
    batch = DistillCollator(tokenizer, 10)([{"text_input_ids": ids}])
    assert batch["input_ids"].tolist() == [[*ids[:9], tokenizer.sep_token_id]]


def test_pairs_are_interleaved_with_their_teacher_rows(tokenizer):
    rows = [
        {"anchor_input_ids": [2, 60], "positive_input_ids": [2, 61, 62], "anchor_row": 7, "positive_row": 1},
        {"anchor_input_ids": [2, 63], "positive_input_ids": [2, 64], "anchor_row": 2, "positive_row": 3},
        {"anchor_input_ids": [2, 65], "positive_input_ids": [2, 64], "anchor_row": 5, "positive_row": 3},
    ]
    batch = DistillCollator(tokenizer, 64, teacher=RowTeacher())(rows)
    assert batch["num_columns"] == 2
    assert batch["input_ids"][:, 1].tolist() == [60, 61, 63, 64, 65, 64]
    assert batch["teacher_embedding"][:, 0].tolist() == [7, 1, 2, 3, 5, 3]
    a, b, c = batch["positive_ids"].tolist()
    assert a != b == c


def test_hidden_states_lie_beside_their_tokens(tokenizer):
    rows = [{"text_input_ids": [2, 60, 3], "text_row": 1}, {"text_input_ids": [2, 3], "text_row": 0}]
    collator = DistillCollator(tokenizer, 64, teacher=RowTeacher(tokens=(2, 3)), hidden_layers=[4, 2])
    states = collator(rows)["teacher_hidden_states"]
    assert sorted(states) == [2, 4]
    assert states[4].shape == (2, 8, 3)
    assert states[4][:, :, 0].tolist() == [[5, 5, 5, 0, 0, 0, 0, 0], [4, 4, 0, 0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="another length"):
        DistillCollator(tokenizer, 64, teacher=RowTeacher(tokens=(2, 9)), hidden_layers=[2])(rows)


def test_flat_batches_for_static_tables(tokenizer):
    batch = DistillCollator(tokenizer, 64, flat=True)([{"text_input_ids": [60, 61]}, {"text_input_ids": [62]}])
    assert batch["input_ids"].tolist() == [60, 61, 62]
    assert batch["offsets"].tolist() == [0, 2]


def test_rows_are_looked_up_by_text_when_absent(tokenizer):
    batch = DistillCollator(tokenizer, 64, teacher=RowTeacher(), keep_texts=True)(
        [{"text": "mill"}, {"text": "a ball"}]
    )
    assert batch["teacher_embedding"][:, 0].tolist() == [4, 6]
    assert batch["texts"] == ["mill", "a ball"]


def test_bad_ids_and_rows_are_named(tokenizer):
    collator = DistillCollator(tokenizer, 64)
    good = {"anchor_input_ids": [2, 3], "positive_input_ids": [2, 3]}
    with pytest.raises(ValueError, match=r"Example 1 .*'positive', holds the token id 99999"):
        collator([good, {"anchor_input_ids": [2], "positive_input_ids": [2, 99999]}])
    with pytest.raises(ValueError, match=r"Example 1 .*no token ids in column 'anchor'"):
        collator([good, {"anchor_input_ids": [], "positive_input_ids": [2]}])
    with pytest.raises(ValueError, match="no text"):
        collator([{"text": "fine"}, {"text": "  "}])
    data = Dataset.from_dict({"text_input_ids": [[2, 3], [2, 5, 3], [2, -1]]})
    with pytest.raises(ValueError, match=r"Row 2 of column 'text_input_ids' holds the token id -1"):
        check_token_ids(data, ["text"], len(tokenizer))
    with pytest.raises(ValueError, match=r"Row 1 of column 'text_input_ids' holds no"):
        check_token_ids(Dataset.from_dict({"text_input_ids": [[2], []]}), ["text"], len(tokenizer))
    with pytest.raises(ValueError, match=r"Row 1 has no text in column 'text'"):
        tokenize_columns(Dataset.from_dict({"text": ["fine", None]}), ["text"], tokenizer, 20)


def test_columns_and_lengths(tokenizer):
    assert text_columns(["positive_input_ids", "anchor", "anchor_row"]) == ["anchor", "positive"]
    assert text_columns(["text_input_ids", "label"]) == ["text"]
    with pytest.raises(ValueError, match="rename_column"):
        text_columns(["sentence1", "sentence2"])
    data = Dataset.from_dict({"anchor_input_ids": [[1], [1, 2, 3]], "positive_input_ids": [[1, 2], [4]]})
    assert column_lengths(data, ["anchor", "positive"]).tolist() == [2, 3]
    assert column_lengths(data.select([1]), ["anchor", "positive"]).tolist() == [3]


def test_missing_pad_token(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, pad_token="[MASK]")
    with pytest.raises(ValueError, match=r"pads with id 4, outside the student's vocabulary of 4"):
        DistillCollator(tokenizer, 64, vocab_size=4)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        DistillCollator(tokenizer, 64)


def test_rows_that_are_too_long_are_dropped_or_refused(tokenizer):
    rows = [{"mft_input_ids": [2, 50, 3], "mft_row": 4}, {"mft_input_ids": [2, 3], "mft_row": 7}]
    batch = DistillCollator(tokenizer, 2, too_long="drop", teacher=RowTeacher())(rows)
    assert batch["attention_mask"].sum(1).tolist() == [2]
    assert batch["teacher_embedding"].tolist() == [[7, 14]]
    with pytest.raises(ValueError, match=r"Example 0 of the batch has 3 tokens in \['mft'\], more than max_length=2"):
        DistillCollator(tokenizer, 2, too_long="error")(rows)
    with pytest.raises(ValueError, match="All 2 examples"):
        DistillCollator(tokenizer, 1, too_long="drop")(rows)
    texts = [{"text": "a small river runs past the old mill"}, {"text": "mill"}]
    assert len(DistillCollator(tokenizer, 5, too_long="drop")(texts)["input_ids"]) == 1
    with pytest.raises(ValueError, match="too_long must be one of"):
        DistillCollator(tokenizer, 5, too_long="cut")


def test_examples_of_a_stream_carry_their_vectors(tokenizer):
    column = TeacherColumn("v")
    column.add_stream(Dataset.from_dict({"v": [[0.0, 1.0]]}).to_iterable_dataset())
    rows = [{"text_input_ids": [2, 3], "teacher_embedding": [1.0, 2.0]}]
    assert DistillCollator(tokenizer, 8, teacher=column)(rows)["teacher_embedding"].tolist() == [[1.0, 2.0]]
