"""Exact embedding of one long document in constant memory.

Causal recurrence: the chunks run once through all layers, each layer hands its state (and the last inputs of its
convolutions) to the next chunk. Ridge: a layer's memory needs sums over the whole text before anybody can read it, so
layer by layer the chunks are recomputed from the ids through the layers below, whose memories are already solved: `L`
layers cost about `L (L + 1) / 2` layer passes instead of `L`. Convolutions see past the border of a chunk, so there a
chunk is read with as many extra tokens on each side as all layers together can reach; only the inner tokens count.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .ops_ridge import RidgeSolution, merge_ridge_sums


def embed_document(model: nn.Module, input_ids: torch.Tensor, chunk_size: int = 1024) -> torch.Tensor:
    """Mean of the last hidden states of one text, equal to the full forward pass.

    Args:
        model: An `HfdDeltaNetModel` in evaluation mode.
        input_ids: `(1, T)` ids without padding.
        chunk_size: Tokens per step; activations grow with it and not with `T`.

    Returns:
        `(1, hidden_size)`.

    Raises:
        ValueError: If the input is not one non-empty text, the model is in training mode, its mixer cannot stream, or
            the text is longer than the position table.
    """
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise ValueError(f"`input_ids` must hold one text, (1, T) with T > 0, got {tuple(input_ids.shape)}.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    if model.training:
        raise ValueError("The model is in training mode, where dropout would blur the embedding. Call `model.eval()`.")
    model.check_length(input_ids.shape[1])
    if model.config.mixer == "ridge":
        return _embed_ridge(model, input_ids, chunk_size)
    if model.config.is_causal:
        return _embed_causal(model, input_ids, chunk_size)
    raise ValueError(
        f"mixer='{model.config.mixer}' reads a text from both ends and cannot stream. Use the full forward pass, or a "
        "student with mixer='ridge' or 'delta_causal'."
    )


def _embed_causal(model: nn.Module, input_ids: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """One pass; every layer carries its state from chunk to chunk."""
    length, total = input_ids.shape[1], 0.0
    states = [None] * len(model.layers)
    for start in range(0, length, chunk_size):
        hidden, position_ids = _embed_ids(model, input_ids, start, min(start + chunk_size, length))
        for index, layer in enumerate(model.layers):
            mixed, states[index] = layer.mixer.step(hidden, position_ids, states[index])
            hidden = layer.feed_forward(hidden, mixed)
        total = total + hidden.float().sum(1)
    return (total / length).to(hidden.dtype)


def _embed_ridge(model: nn.Module, input_ids: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """One pass a layer for the sums, bottom up, and a last one for the mean."""
    solutions: list[RidgeSolution] = []
    for layer in model.layers:
        sums = None
        for hidden, position_ids, keep in _chunks(model, input_ids, chunk_size, solutions):
            part = layer.mixer.summarize(hidden, position_ids, keep)
            sums = part if sums is None else merge_ridge_sums(sums, part)
        solutions.append(layer.mixer.solve(sums))
    total = 0.0
    for hidden, _, keep in _chunks(model, input_ids, chunk_size, solutions):
        total = total + hidden[:, keep].float().sum(1)
    return (total / input_ids.shape[1]).to(hidden.dtype)


def _chunks(
    model: nn.Module, input_ids: torch.Tensor, chunk_size: int, solutions: list[RidgeSolution]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
    """Yields every chunk's hidden states after the solved layers, their positions, and which of them count."""
    length = input_ids.shape[1]
    halo = len(model.layers) * (model.config.conv_size // 2 + model.config.local_size // 2)
    for start in range(0, length, chunk_size):
        stop = min(start + chunk_size, length)
        first, last = max(0, start - halo), min(length, stop + halo)
        hidden, position_ids = _embed_ids(model, input_ids, first, last)
        for layer, solution in zip(model.layers, solutions, strict=False):
            hidden = layer.feed_forward(hidden, layer.mixer.read(hidden, position_ids, solution))
        yield hidden, position_ids, slice(start - first, stop - first)


def _embed_ids(model: nn.Module, input_ids: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings `(1, C, hidden_size)` of a stretch of the text and its positions `(1, C)`."""
    position_ids = torch.arange(start, stop, device=input_ids.device)[None]
    return model.embeddings(input_ids[:, start:stop], None, position_ids), position_ids
