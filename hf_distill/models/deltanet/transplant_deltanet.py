"""Weights of a BERT-like teacher into the DeltaNet encoder: which architectures, which names, which layers.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT and MPNet differ in the names of the attention's projections, in the offset of
the position table and in the token types; everything else is a copy. MPNet's relative position bias has no counterpart
in a linear mixer and is left behind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Architectures whose position table starts after the padding id.
_OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet")
_SUPPORTED_TYPES = ("bert", *_OFFSET_TYPES)
# Fields that the teacher's weights fix.
_FIXED_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "hidden_act", "layer_norm_eps", "pad_token_id")


def config_from_teacher(
    teacher: PreTrainedModel,
    num_hidden_layers: int | None,
    layer_map: list[int] | None,
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """The student's configuration fields: the teacher's sizes, the layer map and the caller's choices.

    Args:
        teacher: A BERT-like encoder.
        num_hidden_layers: Depth of the student, or `None` for the teacher's (or the map's length).
        layer_map: Teacher layer (from 0) of each student layer, or `None` for evenly spaced ones.
        overrides: Fields of `HfdDeltaNetConfig` that the weights do not fix.

    Returns:
        Keyword arguments for `HfdDeltaNetConfig`.

    Raises:
        ValueError: If the teacher is not supported, the map does not fit, or an override contradicts the weights.
    """
    _check_teacher(teacher)
    config = teacher.config
    for name in overrides:
        if name in (*_FIXED_FIELDS, "type_vocab_size", "teacher_layers"):
            raise ValueError(
                f"`{name}` is fixed by the teacher's weights. Leave it out, or build the student without."
            )
    layers = _layer_map(config.num_hidden_layers, num_hidden_layers, layer_map)
    values = {name: getattr(config, name) for name in _FIXED_FIELDS}
    values.update(
        num_hidden_layers=len(layers),
        num_attention_heads=config.num_attention_heads,
        initializer_range=config.initializer_range,
        max_position_embeddings=teacher.embeddings.position_embeddings.num_embeddings - _position_offset(teacher),
        type_vocab_size=1 if config.model_type == "mpnet" else config.type_vocab_size,
        teacher_layers=layers,
    )
    rows = values["max_position_embeddings"]
    wanted = overrides.get("max_position_embeddings", rows)
    if wanted > rows and overrides.get("position_embedding_type", "absolute") == "absolute":
        raise ValueError(
            f"The teacher has {rows} absolute positions, so `max_position_embeddings` cannot be {wanted}. Use "
            "position_embedding_type='rotary' or 'none' for longer texts."
        )
    return values | overrides


@torch.no_grad()
def copy_teacher(student: nn.Module, teacher: PreTrainedModel) -> None:
    """Copies embeddings, norms, feed-forward layers and projections in place, by `student.config.teacher_layers`.

    Args:
        student: An `HfdDeltaNetModel` whose configuration came from `config_from_teacher`.
        teacher: The same teacher.
    """
    source, target = teacher.embeddings, student.embeddings
    target.word_embeddings.weight.copy_(source.word_embeddings.weight)
    target.LayerNorm.load_state_dict(source.LayerNorm.state_dict())
    if target.position_embeddings is not None:
        offset = _position_offset(teacher)
        rows = student.config.max_position_embeddings
        target.position_embeddings.weight.copy_(source.position_embeddings.weight[offset : offset + rows])
    if teacher.config.model_type == "mpnet":
        target.token_type_embeddings.weight.zero_()
    else:
        target.token_type_embeddings.weight.copy_(source.token_type_embeddings.weight)
    before = source.LayerNorm
    for layer, index in zip(student.layers, student.config.teacher_layers, strict=True):
        block = teacher.encoder.layer[index]
        projections, norm = _attention_parts(block)
        if not student.config.orthogonal_init:
            targets = (layer.mixer.query, layer.mixer.key, layer.mixer.value, layer.mixer.output)
            for linear, original in zip(targets, projections, strict=True):
                linear.load_state_dict(original.state_dict())
        if layer.mixer.head_norm is not None:
            layer.mixer.head_norm.copy_(_answer_size(before, layer.mixer.value, student.config.num_attention_heads))
        before = block.output.LayerNorm
        layer.mixer_norm.load_state_dict(norm.state_dict())
        layer.intermediate.load_state_dict(block.intermediate.dense.state_dict())
        layer.output.load_state_dict(block.output.dense.state_dict())
        layer.output_norm.load_state_dict(block.output.LayerNorm.state_dict())


def _answer_size(norm: nn.LayerNorm, value: nn.Linear, heads: int) -> torch.Tensor:
    """Start `(H, 1)` of the per-head norm: about the size of what the teacher's heads put out.

    Values of inputs that left `norm` have a known size if its channels are independent; attention averages over
    tokens, which leaves roughly a fifth of it (a norm that started at 1 would drown the residual stream).
    """
    offset = value.bias + value.weight @ norm.bias
    energy = value.weight.square() @ norm.weight.square() + offset.square()
    return 0.2 * energy.unflatten(0, (heads, -1)).mean(-1, keepdim=True).sqrt()


def _attention_parts(block: nn.Module) -> tuple[tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear], nn.LayerNorm]:
    """Query, key, value and output projections and the residual norm of a teacher's layer."""
    attention = block.attention
    if type(attention).__name__ == "MPNetAttention":
        inner = attention.attn
        return (inner.q, inner.k, inner.v, inner.o), attention.LayerNorm
    inner = attention.self
    return (inner.query, inner.key, inner.value, attention.output.dense), attention.output.LayerNorm


def _position_offset(teacher: PreTrainedModel) -> int:
    """Rows before the first position: RoBERTa and MPNet count from the padding id plus 1."""
    if teacher.config.model_type in _OFFSET_TYPES:
        return teacher.embeddings.position_embeddings.padding_idx + 1
    return 0


def _check_teacher(teacher: PreTrainedModel) -> None:
    """Refuses everything but the encoders whose layout this file knows."""
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError(
            f"`teacher` must be a transformers encoder, got {type(teacher).__name__}. Of a SentenceTransformer pass "
            "`model[0].auto_model`."
        )
    config = teacher.config
    if config.model_type not in _SUPPORTED_TYPES:
        raise ValueError(
            f"Cannot take weights from model type '{config.model_type}'. Supported: {', '.join(_SUPPORTED_TYPES)}. "
            "Train from scratch with HfdDeltaNetModel(config) and distil, or use one of those as the teacher."
        )
    if teacher.base_model is not teacher:
        raise ValueError(
            f"`teacher` must be the bare encoder, got {type(teacher).__name__}. Pass its `.base_model` (AutoModel)."
        )
    if getattr(config, "is_decoder", False):  # MPNet has no such field
        raise ValueError("`teacher` is a decoder. Load it with is_decoder=False.")


def _layer_map(teacher_layers: int, num_hidden_layers: int | None, layer_map: list[int] | None) -> list[int]:
    """The teacher layer of each student layer, evenly spaced and ending at the last one by default."""
    if layer_map is None:
        depth = teacher_layers if num_hidden_layers is None else num_hidden_layers
        if not 1 <= depth <= teacher_layers:
            raise ValueError(
                f"`num_hidden_layers` must be between 1 and the teacher's {teacher_layers}, got {depth}. A deeper "
                "student needs an explicit `layer_map`, which may name a layer twice."
            )
        return [(i + 1) * teacher_layers // depth - 1 for i in range(depth)]
    if num_hidden_layers not in (None, len(layer_map)):
        raise ValueError(f"`layer_map` has {len(layer_map)} entries, but `num_hidden_layers` is {num_hidden_layers}.")
    if not layer_map or not all(0 <= i < teacher_layers for i in layer_map):
        raise ValueError(f"`layer_map` must hold teacher layers from 0 to {teacher_layers - 1}, got {layer_map}.")
    return list(layer_map)
