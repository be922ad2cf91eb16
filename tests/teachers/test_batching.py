"""Batches of ragged rows: every row once, within the budget, padded as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.teachers.batching import pad_rows, token_batches


@given(lengths=st.lists(st.integers(1, 60), max_size=80), budget=st.integers(1, 300))
def test_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = list(token_batches(array, budget))
    rows = np.concatenate(batches) if batches else np.empty(0)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget
    assert all(np.diff(array[rows.astype(int)]) <= 0)


def test_equal_lengths_keep_their_order() -> None:
    batches = list(token_batches(np.array([3, 5, 3, 5, 3]), budget=9))
    assert [batch.tolist() for batch in batches] == [[1], [3], [0, 2, 4]]


@pytest.mark.parametrize(("side", "expected"), [("right", [[7, 8, 0], [1, 2, 3]]), ("left", [[0, 7, 8], [1, 2, 3]])])
def test_padding(side: str, expected: list[list[int]]) -> None:
    ids, mask = pad_rows([np.array([7, 8]), np.array([1, 2, 3])], pad_id=0, side=side)
    assert ids.tolist() == expected
    assert mask.tolist() == [[int(value != 0) for value in row] for row in expected]
