"""Teacher vectors in a column: every layout reads the same, and every bad row is named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value

from hf_distill.data import token_ids
from hf_distill.data.teacher_column import TeacherColumn

VECTORS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float16)


def dataset(dtype: str = "float32", length: int = -1, vectors=VECTORS) -> Dataset:
    features = Features({"v": List(Value(dtype), length=length)})
    rows = [None if row is None else [float(x) for x in row] for row in vectors]
    return Dataset.from_dict({"v": rows}, features=features)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("length", [-1, 4])
def test_every_layout_reads_the_same(monkeypatch, dtype, length):
    monkeypatch.setattr(token_ids, "_PIECE", 3)
    column = TeacherColumn("v")
    rows = column.add(dataset(dtype, length))
    assert (rows.tolist(), column.dim, len(column)) == (list(range(7)), 4, 7)
    order = np.array([6, 0, 3, 3])
    found = column.embeddings(order)
    assert found.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert np.array_equal(found, VECTORS[order])


def test_selections_and_further_data_sets():
    column = TeacherColumn("v")
    column.add(dataset().select([5, 4, 2]))
    assert column.add(dataset("float64", 4)).tolist() == list(range(3, 10))
    column = pickle.loads(pickle.dumps(column))
    assert np.array_equal(column.embeddings([1, 9, 0, 3]), VECTORS[[4, 6, 5, 0]])
    with pytest.raises(ValueError, match="Row 0 of column 'v' holds 3 numbers, but the rows before hold 4"):
        column.add(dataset(vectors=VECTORS[:, :3]))
    with pytest.raises(ValueError, match="row number"):
        column.rows_for(["a text"])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1, 2], [1, 2], [1, 2, 3]], "Row 2 of column 'v' holds 3 numbers, but the rows before hold 2"),
        ([[1, 2], [1, float("nan")]], "Row 1 of column 'v' holds NaN or infinity"),
        ([[1, 2], [1, 2], [1, 1e300]], "Row 2 of column 'v' holds NaN or infinity"),
        ([[1, 2], []], "Row 1 of column 'v' holds no vector"),
        ([[1, 2], [1, 2], None], "Row 2 of column 'v' holds no vector"),
    ],
)
def test_bad_rows_are_named(monkeypatch, vectors, message):
    monkeypatch.setattr(token_ids, "_PIECE", 2)
    with pytest.raises(ValueError, match=message):
        TeacherColumn("v").add(dataset("float64", vectors=vectors))


def test_a_missing_number_and_wrong_types_are_named():
    with pytest.raises(ValueError, match="Row 1 of column 'v' holds NaN"):
        TeacherColumn("v").add(Dataset.from_dict({"v": [[1.0, 2.0], [None, 2.0]]}))
    with pytest.raises(ValueError, match="'v' must hold the teacher's vectors"):
        TeacherColumn("v").add(Dataset.from_dict({"v": [[1, 2]]}))
    with pytest.raises(ValueError, match=r"no column 'w', only \['v'\]"):
        TeacherColumn("w").add(dataset())


def test_streams_carry_their_vectors():
    column = TeacherColumn("v")
    column.add_stream(dataset().to_iterable_dataset())
    assert column.dim == 4
    assert column.stacked([[1, 2, 3, 4]]).dtype == np.float32
    with pytest.raises(ValueError, match="Example 1 of the batch holds 2 numbers in column 'v'"):
        column.stacked([[1, 2, 3, 4], [1, 2]])
    with pytest.raises(ValueError, match="Example 1 of the batch holds NaN"):
        column.stacked([[1, 2, 3, 4], [1, 2, 3, float("nan")]])
    with pytest.raises(ValueError, match="no column 'w'"):
        TeacherColumn("w").add_stream(dataset().to_iterable_dataset())
