"""A smaller model from a larger one's own weights: some of its layers, or of its width.

Layers are taken evenly spaced. Width is cut by importance, the norm of the weights that touch a channel, head or neuron;
attention heads are kept whole, and all that stays keeps its order.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import BertModel, CamembertModel, PreTrainedModel, RobertaModel, XLMRobertaModel

_ENCODERS = (BertModel, RobertaModel, XLMRobertaModel, CamembertModel)
# Fields of a configuration that say something about each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def spaced_layers(num_layers: int, source_layers: int) -> list[int]:
    """Evenly spaced layers, the first and the last included (the last alone for one layer).

    Args:
        num_layers: How many to take.
        source_layers: How many there are.

    Returns:
        Ascending layer numbers from 0.

    Raises:
        ValueError: If there are not so many.
    """
    if not 1 <= num_layers <= source_layers:
        raise ValueError(f"num_layers={num_layers} must lie between 1 and the source's {source_layers}.")
    if num_layers == 1:
        return [source_layers - 1]
    return [round(i * (source_layers - 1) / (num_layers - 1)) for i in range(num_layers)]


@torch.no_grad()
def prune_model(
    model: PreTrainedModel,
    *,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
) -> PreTrainedModel:
    """A smaller copy of a model. What is `None` keeps its size.

    Args:
        model: Any model with one list of layers, for `num_layers`; a bare BERT-like encoder (`BertModel`, `RobertaModel`,
            `XLMRobertaModel`, `CamembertModel`), for the widths. It is left as it is.
        num_layers: Layers to keep, evenly spaced.
        hidden_size: Width of the residual stream. Such an encoder's heads share it out, and a head keeps its width: so it
            is `num_attention_heads` times the width of a head, and either of the two gives the other.
        intermediate_size: Neurons of each feed-forward layer.
        num_attention_heads: Heads of each layer; each layer keeps its own most important ones.

    Returns:
        The smaller model.

    Raises:
        ValueError: If a size is not between 1 and the model's, the two widths contradict each other, or the architecture is
            not supported.

    Example:
        >>> student = prune_model(AutoModel.from_pretrained("intfloat/multilingual-e5-small"), num_layers=6)
    """
    widths = (hidden_size, intermediate_size, num_attention_heads)
    if any(width is not None for width in widths):
        hidden_size, intermediate_size, num_attention_heads = _checked_widths(model, *widths)
    layers = None if num_layers is None else spaced_layers(num_layers, model.config.num_hidden_layers)
    pruned = copy.deepcopy(model) if layers is None else _with_layers(model, layers)
    if hidden_size is None:
        return pruned
    return _narrow(pruned, hidden_size, intermediate_size, num_attention_heads)


def _with_layers(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """A copy with some of the layers."""
    depth = model.config.num_hidden_layers
    lists = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of {depth} modules ({lists}), so it is not clear which are its "
            "layers. Models with one list of layers are supported, such as BERT, ModernBERT, Llama or Gemma."
        )
    pruned = copy.deepcopy(model)
    kept = nn.ModuleList(pruned.get_submodule(lists[0])[index] for index in layers)
    pruned.set_submodule(lists[0], kept)
    for position, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position
    for name in _PER_LAYER:
        values = getattr(pruned.config, name, None)
        if values is not None:
            setattr(pruned.config, name, [values[index] for index in layers])
    pruned.config.num_hidden_layers = len(layers)
    return pruned


def _checked_widths(
    model: PreTrainedModel, hidden_size: int | None, intermediate_size: int | None, heads: int | None
) -> tuple[int, int, int]:
    """The three widths, none of them missing."""
    if type(model) not in _ENCODERS:
        raise ValueError(
            f"{type(model).__name__} cannot be made narrower: only {', '.join(c.__name__ for c in _ENCODERS)} without a "
            "head on top are supported. num_layers works for every model with one list of layers."
        )
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    for name, value in (
        ("hidden_size", hidden_size),
        ("intermediate_size", intermediate_size),
        ("num_attention_heads", heads),
    ):
        if value is not None and not 1 <= value <= getattr(config, name):
            raise ValueError(f"{name}={value} must lie between 1 and the model's {getattr(config, name)}.")
    if hidden_size is None:
        hidden_size = config.hidden_size if heads is None else heads * head
    heads = hidden_size // head if heads is None else heads
    if heads * head != hidden_size:
        raise ValueError(
            f"hidden_size={hidden_size} and num_attention_heads={heads} do not fit: heads are kept whole and are {head} "
            f"wide here, so hidden_size must be {head} times the number of heads. Give one of the two only."
        )
    return hidden_size, intermediate_size or config.intermediate_size, heads


def _narrow(model: PreTrainedModel, hidden_size: int, intermediate_size: int, heads: int) -> PreTrainedModel:
    """A BERT-like encoder with fewer channels, heads and neurons."""
    config = copy.deepcopy(model.config)
    width = config.hidden_size // config.num_attention_heads
    config.hidden_size, config.intermediate_size, config.num_attention_heads = hidden_size, intermediate_size, heads
    with torch.random.fork_rng(devices=[]):
        pruned = type(model)(config, add_pooling_layer=model.pooler is not None)
    pruned = pruned.to(device=model.device, dtype=model.dtype).train(model.training)
    channels = _largest(_channel_importance(model), hidden_size)
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    for name in tables:
        _copy(getattr(pruned.embeddings, name), getattr(model.embeddings, name), None, channels)
    for new, old in zip(pruned.encoder.layer, model.encoder.layer, strict=True):
        rows = _head_rows(old, heads, width)
        for name in ("query", "key", "value"):
            _copy(getattr(new.attention.self, name), getattr(old.attention.self, name), rows, channels)
        _copy(new.attention.output.dense, old.attention.output.dense, channels, rows)
        _copy(new.attention.output.LayerNorm, old.attention.output.LayerNorm, None, channels)
        into, out = old.intermediate.dense, old.output.dense
        neurons = _largest(into.weight.norm(dim=1) * out.weight.norm(dim=0), intermediate_size)
        _copy(new.intermediate.dense, into, neurons, channels)
        _copy(new.output.dense, out, channels, neurons)
        _copy(new.output.LayerNorm, old.output.LayerNorm, None, channels)
    if model.pooler is not None:
        _copy(pruned.pooler.dense, model.pooler.dense, channels, channels)
    return pruned


def _channel_importance(model: PreTrainedModel) -> Tensor:
    """How much each channel of the residual stream `(D,)` is written and read: every matrix has the same say."""
    norms = [model.embeddings.word_embeddings.weight.float().norm(dim=0)]
    for layer in model.encoder.layer:
        readers = [layer.attention.self.query, layer.attention.self.key, layer.attention.self.value]
        norms += [reader.weight.float().norm(dim=0) for reader in (*readers, layer.intermediate.dense)]
        norms += [writer.weight.float().norm(dim=1) for writer in (layer.attention.output.dense, layer.output.dense)]
    return torch.stack([norm / norm.mean().clamp(min=1e-12) for norm in norms]).sum(dim=0)


def _head_rows(layer: nn.Module, heads: int, width: int) -> Tensor:
    """Rows of the most important heads of a layer, head after head."""
    attention = layer.attention
    parts = [attention.self.query.weight, attention.self.key.weight, attention.self.value.weight]
    by_head = [part.float().unflatten(0, (-1, width)).flatten(1).norm(dim=1) for part in parts]
    by_head.append(attention.output.dense.weight.float().T.unflatten(0, (-1, width)).flatten(1).norm(dim=1))
    kept = _largest(torch.stack([norm / norm.mean().clamp(min=1e-12) for norm in by_head]).sum(dim=0), heads)
    return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def _largest(importance: Tensor, count: int) -> Tensor:
    """Ascending numbers of the most important entries."""
    return importance.float().topk(count).indices.sort().values


def _copy(new: nn.Module, old: nn.Module, rows: Tensor | None, columns: Tensor) -> None:
    """Copies rows and columns of a linear layer or table; of a normalisation, which has no rows, its columns."""
    weight = old.weight if rows is None else old.weight[rows]
    new.weight.copy_(weight[..., columns])
    bias = getattr(old, "bias", None)
    if bias is not None:
        new.bias.copy_(bias[columns if rows is None else rows])


__all__ = ["prune_model", "spaced_layers"]
