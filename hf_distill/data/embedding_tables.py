"""A model's vocabulary changed in place: every table that has a row per token, and all that depends on the padding id."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROLES = ("pad", "bos", "eos")


@torch.no_grad()
def replace_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Callable[[Tensor], Tensor]
) -> bool | None:
    """Gives a model the vocabulary of a tokenizer.

    Tied output embeddings stay tied; an untied output layer and its bias go through the same function.

    Args:
        model: Changed in place.
        tokenizer: The new tokenizer.
        rows: From an old table `(V, D)` to the new one `(W, D)`.

    Returns:
        Whether the output embeddings are tied; `None` for a model without.

    Raises:
        ValueError: If the model cannot take this tokenizer; nothing is changed then.
    """
    check_vocabulary(model, tokenizer)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = None if head is None else head.weight is table.weight
    padded = table.padding_idx
    new = rows(table.weight)
    bias = None if head is None or head.bias is None else rows(head.bias[:, None])[:, 0]
    new_head = rows(head.weight) if tied is False else None
    with torch.random.fork_rng(devices=[]):  # resizing draws numbers for rows that are overwritten below
        model.resize_token_embeddings(len(new), mean_resizing=False)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    table.weight.copy_(new)
    # the row of `padding_idx` gets no gradient: it must be the new padding token's
    table.padding_idx = None if padded is None else tokenizer.pad_token_id
    if new_head is not None:
        head.weight.copy_(new_head)
    if bias is not None:
        head.bias.copy_(bias)
    follow_tokenizer(model, tokenizer)
    return tied


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses what cannot work before anything is computed.

    Args:
        model: The model.
        tokenizer: The tokenizer it shall get.

    Raises:
        ValueError: If the tokenizer has no padding token, or the model is none or cannot change its vocabulary or padding id.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"The model is a {type(model).__name__}, not a transformers model. Of a SentenceTransformer give "
            "`model[0].auto_model`."
        )
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise ValueError(f"{type(model).__name__} has no table of token vectors whose rows could be exchanged.")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "The tokenizer has no padding token, so batches cannot be padded. Name one first, for example "
            "`tokenizer.pad_token = tokenizer.eos_token`."
        )
    if model.config.model_type == "mpnet" and tokenizer.pad_token_id != 1:
        raise ValueError(
            f"MPNet's code takes id 1 for padding, whatever its configuration says, but this tokenizer pads with id "
            f"{tokenizer.pad_token_id}. Take another source model, or a tokenizer that pads with id 1."
        )


@torch.no_grad()
def follow_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Sets the ids in the configuration, and moves position tables that start behind the padding id.

    RoBERTa-like models number positions from `pad_token_id + 1`. So that every token keeps its position's vector, the table
    moves along and grows or shrinks by the difference.

    Args:
        model: Changed in place.
        tokenizer: The new tokenizer.
    """
    for module in _positions_behind_padding(model):
        _move_positions(module, tokenizer.pad_token_id)
        model.config.max_position_embeddings = module.position_embeddings.num_embeddings
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        for role in _ROLES if config is not None else ():
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))


def _positions_behind_padding(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Embedding layers whose positions start behind the padding id."""
    for module in list(model.modules()):
        behind = isinstance(getattr(module, "padding_idx", None), int) and not isinstance(module, nn.Embedding)
        if behind and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            yield module


def _move_positions(module: nn.Module, padding: int) -> None:
    """Lets the positions of a RoBERTa-like embedding layer start behind another padding id."""
    old = module.position_embeddings
    used = old.weight[module.padding_idx + 1 :]
    table = torch.cat([used.new_zeros(padding + 1, used.shape[1]), used])
    module.position_embeddings = nn.Embedding.from_pretrained(
        table, freeze=not old.weight.requires_grad, padding_idx=padding
    )
    module.padding_idx = padding
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name == "position_ids":
            setattr(module, name, torch.arange(len(table), device=buffer.device).expand((1, -1)))
        elif name == "token_type_ids":
            setattr(module, name, buffer.new_zeros(1, len(table)))


__all__ = ["check_vocabulary", "follow_tokenizer", "replace_vocabulary"]
