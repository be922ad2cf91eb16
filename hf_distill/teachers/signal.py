"""What a teacher says: the small containers that pass from teachers to trainers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LiveSignal:
    """The answer of a live teacher to one batch, all of one forward pass.

    Args:
        embedding: ``(B, D)``, float32, pooled and normalised as the teacher's modules say.
        hidden_states: Output of the embedding layer and of every layer, each ``(B, T, D)``; empty if not asked for.
    """

    embedding: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class HiddenRows:
    """Hidden states of several texts without padding: row ``i`` owns ``values[offsets[i]:offsets[i + 1]]``.

    Args:
        values: ``(tokens, D)``, float16.
        offsets: ``(N + 1,)``, int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def padded(self, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the states padded with zeros on the right.

        Args:
            length: Tokens to pad to; by default the longest text.

        Returns:
            The states ``(N, T, D)`` in the stored dtype and the mask ``(N, T)``, int64.

        Raises:
            ValueError: If a text is longer than ``length``.
        """
        lengths = np.diff(self.offsets)
        longest = int(lengths.max(initial=0))
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"A text has {longest} tokens, more than the {length} to pad to.")
        mask = np.arange(length) < lengths[:, None]
        states = np.zeros((len(self), length, self.values.shape[1]), dtype=self.values.dtype)
        states[mask] = self.values
        return states, mask.astype(np.int64)


@dataclass(frozen=True)
class WriteReport:
    """What writing a cache cost, this time.

    Args:
        rows: Rows encoded now, by this process.
        reused_rows: Rows found in finished shards.
        tokens: Tokens encoded now, by this process, without padding; 0 for a teacher that does not say.
        seconds: Time of encoding and writing.
    """

    rows: int
    reused_rows: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens encoded a second."""
        return self.tokens / self.seconds if self.seconds else 0.0
