"""Streams in training: a `datasets.IterableDataset` whose rows are dealt out to the processes one batch after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
from torch.utils.data import IterableDataset


class RowStream(IterableDataset):
    """A stream that every process reads as a whole, so that accelerate gives each its own rows of it.

    The alternative, a share of the files for each process, ends at another step in each of them, and the first to end
    leaves the others waiting. Reading is cheap beside training; tokenising and padding are done for a process's own
    rows only.

    Args:
        dataset: The stream.
    """

    def __init__(self, dataset: datasets.IterableDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.dataset

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of a shuffled stream."""
        self.dataset.set_epoch(epoch)


__all__ = ["RowStream"]
