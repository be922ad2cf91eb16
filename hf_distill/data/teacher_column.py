"""The teacher's vectors in a column of the training data, read by row number from arrow memory: `TeacherColumn`.

The vectors never pass through the data loader as Python lists: the loader carries row numbers, and the collator gathers
the rows of a batch straight from the memory-mapped column, as it does from a teacher cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.token_ids import list_pieces

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

TEACHER_COLUMN = "teacher_embedding"
"""Name under which the examples of a stream carry their vectors."""


class TeacherColumn:
    """The reader interface of a teacher cache over a column of lists (float16, float32 or float64; fixed size or not).

    Args:
        name: The column.

    Attributes:
        dim: Width of the vectors, known after the first `add`.

    Example:
        >>> column = TeacherColumn("teacher_embedding_final")
        >>> rows = column.add(dataset)
        >>> column.embeddings(rows[:2]).shape
        (2, 384)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dim: int | None = None
        self._parts: list[Dataset] = []
        self._starts = [0]

    def __len__(self) -> int:
        """Number of rows of all data sets."""
        return self._starts[-1]

    def add(self, dataset: Dataset) -> np.ndarray:
        """Checks the column of a data set and takes it in.

        Args:
            dataset: Training or evaluation data.

        Returns:
            The number under which each of its rows is read, int64 `(N,)`.

        Raises:
            ValueError: If the column is missing or is not made of vectors of one width without NaN; names the row.
        """
        self._check_type(dataset)
        for start, vectors in list_pieces(dataset, self.name):
            self._check(start, vectors)
        self._parts.append(dataset.select_columns([self.name]).with_format("arrow"))
        first = self._starts[-1]
        self._starts.append(first + len(dataset))
        return np.arange(first, self._starts[-1])

    def add_stream(self, dataset: IterableDataset) -> None:
        """Learns the width from the first example of a stream; the rest is checked batch by batch.

        Args:
            dataset: A stream with the column.

        Raises:
            ValueError: If the column is missing, or the first example has no vector.
        """
        first = next(iter(dataset), {})
        if self.name not in first:
            raise ValueError(f"The data set has no column {self.name!r}, only {sorted(first)}; see teacher_column.")
        if not first[self.name]:
            raise ValueError(f"Row 0 of column {self.name!r} holds no vector; remove it or fill it in.")
        self.dim = len(first[self.name])

    def embeddings(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Gathers vectors.

        Args:
            rows: Row numbers `(N,)`, as `add` gave them.

        Returns:
            `(N, D)`, float16 if the column is, else float32.
        """
        rows = np.asarray(rows, dtype=np.int64)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            table = self._parts[owner][(rows[places] - self._starts[owner]).tolist()]
            found.append((places, _matrix(table[self.name], self.dim)))
        result = np.empty((len(rows), self.dim), dtype=np.result_type(*(vectors for _, vectors in found)))
        for places, vectors in found:
            result[places] = vectors
        return result

    def rows_for(self, texts: Sequence[str]) -> np.ndarray:
        """Part of the reader interface that a column cannot offer.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"Vectors of column {self.name!r} are read by row number: give the examples a row column with what "
            "`TeacherColumn.add` returns."
        )

    def stacked(self, vectors: Sequence[Any]) -> np.ndarray:
        """The vectors that the examples of a streamed batch carry.

        Args:
            vectors: A list of numbers for each example.

        Returns:
            float32 `(N, D)`.

        Raises:
            ValueError: If one has another width or holds NaN; names the example.
        """
        for example, vector in enumerate(vectors):
            if vector is None or len(vector) != self.dim:
                raise ValueError(
                    f"Example {example} of the batch holds {0 if vector is None else len(vector)} numbers in column "
                    f"{self.name!r}, but the first example of the stream held {self.dim}."
                )
        stacked = _as_float(np.asarray(vectors, dtype=np.float64))
        wrong = np.flatnonzero(~np.isfinite(stacked).all(axis=1))
        if len(wrong):
            raise ValueError(f"Example {wrong[0]} of the batch holds NaN or infinity in column {self.name!r}.")
        return stacked

    def _check_type(self, dataset: Dataset) -> None:
        """Refuses a column that is missing, or holds anything but lists of floating point numbers."""
        import pyarrow as pa

        if self.name not in dataset.column_names:
            raise ValueError(
                f"The data set has no column {self.name!r}, only {sorted(dataset.column_names)}; see teacher_column."
            )
        kind = dataset.features.arrow_schema.field(self.name).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not pa.types.is_floating(kind.value_type):
            raise ValueError(
                f"Column {self.name!r} must hold the teacher's vectors, lists of float16, float32 or float64, but row 0 "
                f"holds {kind}."
            )

    def _check(self, start: int, vectors: pa.Array) -> None:
        """Checks one piece of the column, whose first row has the number `start`."""
        import pyarrow.compute as pc

        widths = pc.fill_null(pc.list_value_length(vectors), 0).to_numpy()
        if not widths.all():
            row = start + int(np.argmin(widths))
            raise ValueError(f"Row {row} of column {self.name!r} holds no vector; remove it or fill it in.")
        self.dim = int(widths[0]) if self.dim is None else self.dim
        other = np.flatnonzero(widths != self.dim)
        if len(other):
            raise ValueError(
                f"Row {start + other[0]} of column {self.name!r} holds {widths[other[0]]} numbers, but the rows before "
                f"hold {self.dim}. All vectors must come from one teacher."
            )
        wrong = np.flatnonzero(~np.isfinite(_matrix(vectors, self.dim)).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"Row {start + wrong[0]} of column {self.name!r} holds NaN or infinity ({len(wrong)} such rows in this "
                "piece). Remove these rows or embed their texts again."
            )


def _matrix(vectors: pa.Array | pa.ChunkedArray, dim: int) -> np.ndarray:
    """Lists of one width as `(N, dim)`; a missing number becomes NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = pc.list_flatten(vectors)
    flat = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
    return _as_float(flat.to_numpy(zero_copy_only=False).reshape(-1, dim))


def _as_float(values: np.ndarray) -> np.ndarray:
    """float16 as it is, everything else as float32; what float32 cannot hold becomes infinite."""
    if values.dtype == np.float16:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


__all__ = ["TEACHER_COLUMN", "TeacherColumn"]
