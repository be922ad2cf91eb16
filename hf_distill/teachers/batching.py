"""Batches of ragged token rows: sorted by length and cut by a budget of padded tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of about the same work.

    Rows are sorted by length, longest first (a batch that does not fit fails at once, and the time left is estimated
    from the safe side); rows of equal length keep their order, so that the same rows always give the same batches.

    Args:
        lengths: Tokens of each row, ``(N,)``.
        budget: Most tokens of a batch, padding included; a longer row is a batch by itself.

    Yields:
        The row numbers of each batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count


def pad_rows(rows: Sequence[np.ndarray], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token rows to the longest of them.

    Args:
        rows: Token ids of each row, int64.
        pad_id: Id that fills up.
        side: ``"right"`` or ``"left"``, as the teacher's tokenizer does it.

    Returns:
        ``input_ids`` and ``attention_mask``, each int64 ``(B, T)``.
    """
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    positions = np.arange(lengths.max())
    mask = positions < lengths[:, None]
    if side == "left":
        mask = mask[:, ::-1]
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = np.concatenate(rows)
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))
