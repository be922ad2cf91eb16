"""Batches of texts of similar length: less padding, so more text per second, at a fixed batch size or token budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import BatchSampler

_MIN_ROW_TOKENS = 8
"""A row counts at least this many tokens against a budget, so that very short texts do not make huge batches."""


class LengthBucketBatchSampler(BatchSampler):
    """Shuffles, sorts by length inside pools of batches, cuts batches, shuffles the batches.

    Every row is seen once an epoch. The order is a pure function of `seed` and the epoch, and the number of batches is
    the same in every epoch, so a run that resumes in the middle of an epoch sees exactly the batches it would have seen.

    Args:
        lengths: Tokens of each row, `(N,)`; for a pair the longer of the two.
        batch_size (`int`, *optional*): Rows of a batch. Give this or `token_budget`.
        token_budget (`int`, *optional*): Padded tokens (rows x longest row) a batch may hold; a row counts at least 8.
        bucket (`bool`, *optional*, defaults to `True`): Sort inside pools; `False` gives plain random batches.
        shuffle (`bool`, *optional*, defaults to `True`): `False` sorts everything by length, longest first (evaluation).
        pool_batches (`int`, *optional*, defaults to 50): Batches of a pool: larger pads less and mixes less.
        drop_last (`bool`, *optional*, defaults to `False`): Leave out a last batch that is not full (fixed size only).
        seed (`int`, *optional*, defaults to 42): Seed of the order.

    Raises:
        ValueError: If neither or both of `batch_size` and `token_budget` are given, there are no rows, or one row alone
            exceeds the budget.

    Example:
        >>> sampler = LengthBucketBatchSampler([3, 50, 4, 48], batch_size=2)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        lengths: np.ndarray | list[int],
        batch_size: int | None = None,
        *,
        token_budget: int | None = None,
        bucket: bool = True,
        shuffle: bool = True,
        pool_batches: int = 50,
        drop_last: bool = False,
        seed: int = 42,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        if (batch_size is None) == (token_budget is None):
            raise ValueError("Give exactly one of `batch_size` (rows) and `token_budget` (padded tokens of a batch).")
        if not len(self.lengths):
            raise ValueError("There are no rows to make batches of; check the training data set and its filters.")
        if token_budget is not None and self.lengths.max() > token_budget:
            row = int(self.lengths.argmax())
            raise ValueError(
                f"Row {row} has {self.lengths[row]} tokens, more than token_budget={token_budget}. Raise the budget or "
                "lower max_length."
            )
        if batch_size is not None and drop_last and len(self.lengths) < batch_size:
            raise ValueError(
                f"{len(self.lengths)} rows make no full batch of {batch_size}. Lower the batch size or keep the last batch."
            )
        # accelerate shards a sampler without `batch_size` whatever the size of its batches
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.bucket, self.shuffle, self.pool_batches = bucket, shuffle, pool_batches
        self.drop_last, self.seed, self.epoch = drop_last, seed, 0
        self.num_batches = self._count()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of this epoch; called before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches(self.epoch)
        if len(batches) < self.num_batches:  # only with a budget: repeat a few, so that every epoch is equally long
            batches += batches[: self.num_batches - len(batches)]
        for batch in batches[: self.num_batches]:
            yield batch.tolist()

    def _count(self) -> int:
        """Number of batches of every epoch: with a budget that of epoch 0."""
        if self.token_budget is not None:
            return len(self._batches(0))
        full, rest = divmod(len(self.lengths), self.batch_size)
        return full + int(rest > 0 and not self.drop_last)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch in their final order."""
        if not self.shuffle:
            return self._cut(np.argsort(-self.lengths, kind="stable"))
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths))
        if not self.bucket:
            return self._cut(order)
        pool = self.pool_batches * self._rows_per_batch()
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            batches += self._cut(rows[np.argsort(-self.lengths[rows], kind="stable")])
        # a short batch stays last: accelerate ends an epoch at the first batch that is not full
        tail = batches[-1:] if self.batch_size is not None and len(batches[-1]) < self.batch_size else []
        head = batches[: len(batches) - len(tail)]
        return [head[i] for i in rng.permutation(len(head))] + tail

    def _rows_per_batch(self) -> int:
        """Rows of a batch, for a budget those of average length."""
        if self.batch_size is not None:
            return self.batch_size
        return max(1, int(self.token_budget / np.maximum(self.lengths, _MIN_ROW_TOKENS).mean()))

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        """Cuts rows, in their order, into batches; with a budget as many rows as fit beside the longest of them."""
        if self.batch_size is not None:
            batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            return batches[:-1] if self.drop_last and len(batches[-1]) < self.batch_size else batches
        costs = np.maximum(self.lengths[rows], _MIN_ROW_TOKENS)
        batches, start = [], 0
        while start < len(rows):
            count = max(1, self.token_budget // int(costs[start]))
            while costs[start : start + count].max() * count > self.token_budget and count > 1:
                count -= 1
            batches.append(rows[start : start + count])
            start += count
        return batches


__all__ = ["LengthBucketBatchSampler"]
