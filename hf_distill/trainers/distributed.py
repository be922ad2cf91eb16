"""What the objective needs of other processes: the rows of the whole batch, with correct gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes, 1 when none are connected."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def wait_for_all() -> None:
    """Waits until every process is here; does nothing when there is one."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def _gather(rows: Tensor) -> list[Tensor]:
    """The rows of every process, which may be differently many."""
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    sizes[dist.get_rank()] = len(rows)
    dist.all_reduce(sizes)
    most = int(sizes.max())
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    return [part[: int(size)] for part, size in zip(gathered, sizes, strict=True)]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenates the rows of all processes in the order of their ranks.

    Every process then computes the same in-batch loss. Only the process's own rows carry a gradient, scaled by the
    number of processes, because distributed data parallel averages what should be summed here: the result is the
    gradient of one process with the whole batch.

    Args:
        rows: `(R, ...)`, this process's rows; `R` may differ between processes.

    Returns:
        `(sum of R, ...)`; `rows` itself when there is one process.
    """
    if world_size() == 1:
        return rows
    parts = _gather(rows.detach().contiguous())
    if rows.requires_grad:
        scale = world_size()
        parts[dist.get_rank()] = rows * scale - (rows * (scale - 1)).detach()
    return torch.cat(parts)


__all__ = ["gather_rows", "wait_for_all", "world_size"]
