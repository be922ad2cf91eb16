"""The DeltaNet sentence encoder (`hfd_deltanet`): a post-LN BERT whose attention is a linear-time mixer.

Embeddings (word + position + token type, LayerNorm), then per layer mixer -> residual LayerNorm -> feed-forward (one
activation) -> residual LayerNorm. Parameter names follow BERT's where there is a counterpart, so `from_teacher` is a
plain copy. No pooling: sentence-transformers averages the last hidden states. `embed_document` embeds a text of any
length exactly, in constant memory.

Example:
    >>> from transformers import AutoModel
    >>> model = AutoModel.from_pretrained("user/student", trust_remote_code=True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .configuration_deltanet import HfdDeltaNetConfig
from .mixers_deltanet import MixerBase, NeutralLinear, OrthogonalLinear, RidgeMixer, positions_from_mask
from .recurrence_deltanet import DeltaMixer, ResonanceFlux, Timescales
from .streaming_deltanet import embed_document
from .transplant_deltanet import config_from_teacher, copy_teacher


@dataclass
class HfdDeltaNetOutput(BaseModelOutput):
    """Output of `HfdDeltaNetModel`.

    Args:
        last_hidden_state (`torch.Tensor`): `(B, T, hidden_size)`.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*): Embeddings and the output of every layer, as BERT's.
        states (`list[tuple[torch.Tensor, torch.Tensor]]`, *optional*): Final fast and slow state `(B, H, D, D)` of
            every layer (both directions stacked on the batch axis for `delta_flip`), for a decorrelation penalty.
    """

    states: list[tuple[torch.Tensor, torch.Tensor]] | None = None


class HfdDeltaNetEmbeddings(nn.Module):
    """Sum of word, position (only with absolute positions) and token type vectors, then LayerNorm and dropout.

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.position_embedding_type == "absolute"
            else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeds ids `(B, T)`, or completes given word vectors `(B, T, hidden_size)`.

        Returns:
            `(B, T, hidden_size)`.
        """
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            embeddings = embeddings + self.token_type_embeddings.weight[0]
        else:
            embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class HfdDeltaNetLayer(GradientCheckpointingLayer):
    """One block: mixer -> residual LayerNorm -> feed-forward -> residual LayerNorm.

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__()
        self.mixer: MixerBase = RidgeMixer(config) if config.mixer == "ridge" else DeltaMixer(config)
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Maps `(B, T, hidden_size)` to the next layer's input of the same shape.

        Args:
            hidden: `(B, T, hidden_size)`.
            attention_mask: `(B, T)`, 1 at real tokens, or `None`.
            position_ids: `(B, T)` or `None`.
            return_states: Also return the mixer's final states (delta mixers only).

        Returns:
            The layer's output and the states, or `None` in their place.
        """
        if return_states:
            mixed, states = self.mixer.mix(hidden, attention_mask, position_ids)
        else:
            mixed, states = self.mixer(hidden, attention_mask, position_ids), None
        return self.feed_forward(hidden, mixed), states

    def feed_forward(self, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Everything after the mixer, given the layer's input and the mixer's output, both `(B, T, hidden_size)`."""
        hidden = self.mixer_norm(hidden + self.dropout(mixed))
        output = self.output(self.activation(self.intermediate(hidden)))
        return self.output_norm(hidden + self.dropout(output))


class HfdDeltaNetModel(PreTrainedModel):
    """The encoder: ids in, token vectors out. Use it through sentence-transformers with mean pooling.

    Args:
        config: An `HfdDeltaNetConfig`.

    Attributes:
        collect_states: Return the final states of every layer as `output.states` (only with a fast and a slow state).

    Example:
        >>> model = HfdDeltaNetModel(HfdDeltaNetConfig(num_hidden_layers=2))
        >>> model(torch.tensor([[101, 7592, 102]])).last_hidden_state.shape
        torch.Size([1, 3, 384])
    """

    config: HfdDeltaNetConfig
    config_class = HfdDeltaNetConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # There is no attention: the usual flags are accepted and change nothing.
    _supports_sdpa = True
    _no_split_modules = ["HfdDeltaNetEmbeddings", "HfdDeltaNetLayer"]

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__(config)
        self.embeddings = HfdDeltaNetEmbeddings(config)
        self.layers = nn.ModuleList([HfdDeltaNetLayer(config) for _ in range(config.num_hidden_layers)])
        self.collect_states = False
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws the weights of one module; the mixers add their neutral starts (there are no buffers to restore)."""
        super()._init_weights(module)
        if isinstance(module, NeutralLinear):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, OrthogonalLinear):
            init.orthogonal_(module.weight)
        elif isinstance(module, MixerBase | Timescales | ResonanceFlux):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Embedding:
        """The word vectors."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the word vectors."""
        self.embeddings.word_embeddings = value

    def projection_weights(self) -> list[nn.Parameter]:
        """Query, key and value weights `(hidden_size, hidden_size)` of every layer, for the orthogonality term."""
        mixers = [layer.mixer for layer in self.layers]
        return [linear.weight for mixer in mixers for linear in (mixer.query, mixer.key, mixer.value)]

    @classmethod
    def from_teacher(
        cls,
        teacher: PreTrainedModel,
        num_hidden_layers: int | None = None,
        layer_map: list[int] | None = None,
        **config_overrides: Any,
    ) -> HfdDeltaNetModel:
        """Builds a student that starts from the weights of a BERT-like encoder.

        Embeddings, LayerNorms, feed-forward layers and the query, key, value and output projections are copied; the
        rest of the mixer starts neutral. With `orthogonal_init=True` the projections are not copied; with
        `position_embedding_type` other than `"absolute"` the position table is left out.

        Args:
            teacher: A Bert-, Roberta-, XLM-Roberta-, Camembert- or MPNet model (the bare encoder).
            num_hidden_layers: Depth of the student; the teacher's by default.
            layer_map: For each student layer the teacher layer (from 0) it is taken from; by default evenly spaced,
                ending at the last: depth 3 from 6 takes 1, 3, 5.
            **config_overrides: Any field of `HfdDeltaNetConfig` that the weights do not fix.

        Returns:
            The student in float32 and evaluation mode; `config.teacher_layers` holds the map.

        Raises:
            ValueError: If the teacher's architecture is not supported or the map does not fit.

        Example:
            >>> student = HfdDeltaNetModel.from_teacher(
            ...     AutoModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
            ... )
        """
        fields = config_from_teacher(teacher, num_hidden_layers, layer_map, config_overrides)
        student = cls(HfdDeltaNetConfig(**fields))
        copy_teacher(student, teacher)
        return student.eval()

    @torch.no_grad()
    def embed_document(self, input_ids: torch.Tensor, chunk_size: int = 1024) -> torch.Tensor:
        """Mean-pooled embedding of one text of any length, exact, with activations for only `chunk_size` tokens.

        Args:
            input_ids: `(1, T)` ids without padding, special tokens included.
            chunk_size: Tokens per step.

        Returns:
            `(1, hidden_size)`: the mean of `last_hidden_state` over all tokens, not normalised.

        Raises:
            ValueError: If the model is in training mode, the mixer needs the whole text at once (`delta_flip`,
                `delta_split`), or the text is longer than the position table.
        """
        return embed_document(self, input_ids, chunk_size)

    def check_length(self, length: int) -> None:
        """Refuses texts that the position table cannot number.

        Args:
            length: Number of tokens `T`.

        Raises:
            ValueError: If positions are absolute and `T` exceeds `max_position_embeddings`.
        """
        limit = self.config.max_position_embeddings
        if self.config.position_embedding_type == "absolute" and length > limit:
            raise ValueError(
                f"The text has {length} tokens, but this model has {limit} absolute positions. Truncate the text, or "
                "build the student with position_embedding_type='rotary' or 'none', which have no limit."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        collect_states: bool | None = None,
    ) -> HfdDeltaNetOutput:
        """Encodes a batch of texts.

        Args:
            input_ids: `(B, T)` ids.
            attention_mask: `(B, T)`, 1 at real tokens and 0 at padding (either side or inside), or `None`.
            token_type_ids: `(B, T)`, 0 when `None`.
            position_ids: `(B, T)`; counted over the real tokens when `None`.
            inputs_embeds: `(B, T, hidden_size)` word vectors instead of `input_ids`.
            output_hidden_states: Also return the embeddings and every layer's output; the config's value when `None`.
            collect_states: Also return every layer's fast and slow state; `self.collect_states` when `None`.

        Returns:
            `HfdDeltaNetOutput`; with `return_dict=False` a tuple. Outputs at padding are finite and meaningless.

        Raises:
            ValueError: If the input is missing or given twice, the mask is not `(B, T)`, the text is too long for the
                position table, or states are asked of a model that has no fast and slow state.
        """
        order = None
        inputs = self._checked_inputs(input_ids, inputs_embeds, attention_mask)
        collect_states = self.collect_states if collect_states is None else collect_states
        if collect_states and self.config.memory == "single":
            raise ValueError(
                "`collect_states` needs memory='two_decay' or 'joint_residual'; this model has one state."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if position_ids is None:
            position_ids = positions_from_mask(inputs, attention_mask)
        position_ids = position_ids.expand(inputs.shape[:2])
        convolves = self.config.conv_size > 0 or self.config.local_size > 0
        if convolves and attention_mask is not None and _has_padding_before_tokens(attention_mask):
            # Convolutions must not see a gap inside a text: move the real tokens to the front, and back at the end.
            order = attention_mask.eq(0).byte().argsort(dim=1, stable=True)
            input_ids, token_type_ids, position_ids, attention_mask, inputs_embeds = (
                None if x is None else _take_tokens(x, order)
                for x in (input_ids, token_type_ids, position_ids, attention_mask, inputs_embeds)
            )
        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        all_hidden, all_states = [], []
        for layer in self.layers:
            all_hidden.append(hidden if output_hidden_states else None)
            hidden, states = layer(hidden, attention_mask, position_ids, collect_states)
            all_states.append(states)
        all_hidden.append(hidden)
        if order is not None:
            back = order.argsort(dim=1)
            all_hidden = [None if x is None else _take_tokens(x, back) for x in all_hidden]
        return HfdDeltaNetOutput(
            last_hidden_state=all_hidden[-1],
            hidden_states=tuple(all_hidden) if output_hidden_states else None,
            states=all_states if collect_states else None,
        )

    def _checked_inputs(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the one input that was given, after checking it against the mask and the position table."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is not None and attention_mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"`attention_mask` must be (B, T) = {tuple(inputs.shape[:2])} with 1 at real tokens, got "
                f"{tuple(attention_mask.shape)}."
            )
        self.check_length(inputs.shape[1])
        return inputs


def _has_padding_before_tokens(attention_mask: torch.Tensor) -> bool:
    """Whether any text of `(B, T)` has padding in front or inside, and not only at the end."""
    real = attention_mask.ne(0)
    return bool((real[:, 1:] & ~real[:, :-1]).any())


def _take_tokens(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorders the tokens of `(B, T)` or `(B, T, C)` by indices `(B, T)`."""
    return x.gather(1, order if x.ndim == 2 else order[:, :, None].expand(-1, -1, x.shape[-1]))


__all__ = ["HfdDeltaNetModel", "HfdDeltaNetOutput"]
