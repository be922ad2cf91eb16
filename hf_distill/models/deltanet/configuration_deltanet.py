"""Configuration of the DeltaNet sentence encoder (`hfd_deltanet`).

One strict dataclass: every field is read by the model, wrong types and contradictory combinations are refused with an
error that names the remedy, and `auto_map` travels inside `config.json`, so that `AutoConfig` and `AutoModel` load the
saved folder with `trust_remote_code=True` on a machine that has only torch and transformers.
"""

# ruff: noqa: I002
# No `from __future__ import annotations` here: `strict` checks types at run time and skips annotations that are
# strings.
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

_AUTO_MAP = {
    "AutoConfig": "configuration_deltanet.HfdDeltaNetConfig",
    "AutoModel": "modeling_deltanet.HfdDeltaNetModel",
}
# Keyword arguments that PreTrainedConfig takes without declaring them as fields.
_BASE_KEYWORDS = {
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "use_cache",
}


@strict
class HfdDeltaNetConfig(PreTrainedConfig):
    r"""Describes a post-LN BERT encoder whose attention is replaced by a linear-time mixer.

    Args:
        vocab_size (`int`, defaults to `30522`): Number of word pieces.
        hidden_size (`int`, defaults to `384`): Width `D` of the residual stream.
        num_hidden_layers (`int`, defaults to `6`): Number of blocks.
        num_attention_heads (`int`, defaults to `12`): Number of memory heads `H`; a head has `hidden_size / H` keys.
        intermediate_size (`int`, defaults to `1536`): Width of the feed-forward layers.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward layers, applied once.
        hidden_dropout_prob (`float`, defaults to `0.0`): Dropout after the embeddings, the mixer and the feed-forward
            layer. The default differs from BERT's 0.1: a student that regresses on a teacher gains nothing from noise.
        max_position_embeddings (`int`, defaults to `512`): Rows of the position table (`"absolute"` only): texts may
            not be longer.
        type_vocab_size (`int`, defaults to `2`): Rows of the token type table.
        layer_norm_eps (`float`, defaults to `1e-12`): Epsilon of every LayerNorm and of the per-head norm.
        initializer_range (`float`, defaults to `0.02`): Standard deviation of randomly initialised weights.
        pad_token_id (`int`, *optional*, defaults to `0`): Padding id; its word vector gets no gradient.
        position_embedding_type (`str`, defaults to `"absolute"`): `"absolute"` (a learned table, as in BERT),
            `"rotary"` (queries and keys are rotated; any length) or `"none"` (order only through convolutions or a
            recurrent mixer; any length).
        rotary_theta (`float`, defaults to `10000.0`): Base of the rotary wavelengths.
        mixer (`str`, defaults to `"ridge"`): `"ridge"` (bidirectional fixpoint of the delta rule in closed form),
            `"delta_causal"`, `"delta_flip"` (two passes, the backward one over strictly later tokens) or
            `"delta_split"` (first half of the heads reads forwards, second half backwards).
        memory (`str`, defaults to `"single"`): Memory of the delta mixers: `"single"` (one state, no decay),
            `"two_decay"` (a fast and a slow state, each with its own error) or `"joint_residual"` (a fast and a slow
            state that share one error).
        use_flux (`bool`, defaults to `False`): Resonance flux: a gate per token and head, computed from key, value and
            hidden state, that steers decays, read-out mix and coupling of the two states.
        use_coupling (`bool`, defaults to `False`): Cross-timescale coupling: before each write the two states
            exchange a part of their content.
        fast_decay_init (`float` or `list[float]`, defaults to `0.30`): Initial decay per token of the fast state, for
            all heads or one value per head.
        slow_decay_init (`float` or `list[float]`, defaults to `0.85`): The same for the slow state.
        decay_spacing (`str`, defaults to `"shared"`): `"shared"` gives all heads the initial decay; `"log"` spreads
            the half-lives of the heads log-spaced from 1/2 to 2 times the initial one.
        conv_size (`int`, defaults to `0`): Taps of the short convolution over queries, keys and values (0 = none);
            causal for `delta_causal`, else centered and odd. Starts as the identity.
        local_size (`int`, defaults to `0`): Taps (odd) of a dynamic convolution over the values, chosen by each token
            and head, that is added to the heads' output (0 = none); causal for `delta_causal`, else centered. Starts
            at zero. Without it the ridge cannot tell neighbours in a long text.
        use_output_gate (`bool`, defaults to `False`): Multiplies the heads' output by `2 sigmoid(W x)`; starts at 1.
        use_head_norm (`bool`, defaults to `False`): RMSNorm of every head's output.
        state_dropout (`float`, defaults to `0.10`): In training, the share of writes (token and head) that is skipped:
            a Bernoulli mask on beta, so that the parallel form stays exact.
        orthogonal_init (`bool`, defaults to `False`): Query, key, value and output projections start orthogonal;
            `from_teacher` then leaves them so.
        token_beta (`bool`, defaults to `True`): Every token has a write strength of its own in every head; without, a
            head writes all tokens with the same, learned strength (which the ridge's normalised sums cancel).
        beta_activation (`str`, defaults to `"sigmoid"`): Positive function of the write strength; `"exp"` is for
            `"ridge"` only, whose sums are normalised by beta.
        ridge_center (`bool`, defaults to `True`): Keys, values and queries are centered by their beta-weighted means:
            uniform attention plus a second-order correction.
        ridge_lambda_init (`float`, defaults to `4.0`): Initial ridge `lambda` of every head, in units of a mean
            squared key entry. Read as a first-order softmax the ridge would be `sqrt(D)`, 5.7 for 32 keys a head.
        chunk_size (`int`, defaults to `32`): Tokens per chunk of the parallel delta rule, half of it with two
            states; results do not depend on it.
        teacher_layers (`list[int]`, *optional*): The teacher layer (counted from 0) that each layer was taken from;
            written by `from_teacher`.
        auto_map (`dict`, *optional*): Which file holds which class; for `trust_remote_code`.

    Raises:
        ValueError: If a field is unknown, out of range or contradicts another one.

    Example:
        >>> config = HfdDeltaNetConfig(mixer="delta_flip", memory="joint_residual", use_flux=True)
    """

    model_type = "hfd_deltanet"

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    position_embedding_type: Literal["absolute", "rotary", "none"] = "absolute"
    rotary_theta: float | int = 10000.0
    mixer: Literal["ridge", "delta_causal", "delta_flip", "delta_split"] = "ridge"
    memory: Literal["single", "two_decay", "joint_residual"] = "single"
    use_flux: bool = False
    use_coupling: bool = False
    fast_decay_init: float | list[float] = 0.30
    slow_decay_init: float | list[float] = 0.85
    decay_spacing: Literal["shared", "log"] = "shared"
    conv_size: int = 0
    local_size: int = 0
    use_output_gate: bool = False
    use_head_norm: bool = False
    state_dropout: float | int = 0.10
    orthogonal_init: bool = False
    token_beta: bool = True
    beta_activation: Literal["sigmoid", "exp"] = "sigmoid"
    ridge_center: bool = True
    ridge_lambda_init: float | int = 4.0
    chunk_size: int = 32
    teacher_layers: list[int] | None = None
    auto_map: dict[str, str] | None = field(default_factory=lambda: dict(_AUTO_MAP))

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuses unknown fields (a config read from a file may carry those of a later version)."""
        if self.transformers_version is None:
            for name in kwargs:
                if not name.startswith("_") and name not in _BASE_KEYWORDS:
                    known = [f.name for f in fields(self)]
                    close = get_close_matches(name, known, n=1)
                    hint = f"Did you mean `{close[0]}`?" if close else "See the docstring for the fields there are."
                    raise ValueError(f"{type(self).__name__} has no field `{name}`. {hint}")
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """Width of a head's keys and values."""
        return self.hidden_size // self.num_attention_heads

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one."""
        return self.mixer == "delta_causal"

    def validate_sizes(self) -> None:
        """Checks sizes, dropouts and the head width.

        Raises:
            ValueError: If one is out of range.
        """
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            _require(getattr(self, name) >= 1, f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("max_position_embeddings", "type_vocab_size", "chunk_size"):
            _require(getattr(self, name) >= 1, f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("hidden_dropout_prob", "state_dropout"):
            _require(0 <= getattr(self, name) < 1, f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        for name in ("layer_norm_eps", "initializer_range", "rotary_theta", "ridge_lambda_init"):
            _require(getattr(self, name) > 0, f"`{name}` must be positive, got {getattr(self, name)}.")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
            f"({self.num_attention_heads}). Choose a number of heads that divides it.",
        )
        _require(
            self.position_embedding_type != "rotary" or self.head_dim % 2 == 0,
            f"Rotary positions need an even head width, got {self.head_dim}. Change `num_attention_heads`.",
        )
        _require(
            self.teacher_layers is None or len(self.teacher_layers) == self.num_hidden_layers,
            f"`teacher_layers` must name one layer for each of the {self.num_hidden_layers} layers, got "
            f"{self.teacher_layers}.",
        )

    def validate_memory(self) -> None:
        """Checks that the memory's switches fit the mixer and each other.

        Raises:
            ValueError: If two fields contradict each other.
        """
        _require(
            self.mixer != "ridge" or self.memory == "single",
            f"mixer='ridge' has no fast and slow state, so memory='{self.memory}' means nothing. Use memory='single' "
            "or one of the delta mixers.",
        )
        _require(
            not self.use_flux or self.memory != "single",
            "`use_flux` steers the two states of a delta mixer. Set memory='two_decay' or 'joint_residual'.",
        )
        _require(
            not self.use_coupling or self.memory != "single",
            "`use_coupling` lets the two states of a delta mixer exchange content. Set memory='two_decay' or "
            "'joint_residual'.",
        )
        _require(
            self.beta_activation != "exp" or self.mixer == "ridge",
            "beta_activation='exp' is not bounded by 1, so a delta rule diverges. Use 'sigmoid' or mixer='ridge'.",
        )
        _require(
            self.mixer != "delta_split" or self.num_attention_heads % 2 == 0,
            f"mixer='delta_split' needs an even number of heads, got {self.num_attention_heads}. Use 'delta_flip'.",
        )

    def validate_decays(self) -> None:
        """Checks the initial decays.

        Raises:
            ValueError: If a decay is not in (0, 1) or there is not one for each head.
        """
        for name in ("fast_decay_init", "slow_decay_init"):
            value = getattr(self, name)
            per_head = value if isinstance(value, list) else [value] * self.num_attention_heads
            _require(
                len(per_head) == self.num_attention_heads,
                f"`{name}` must be a number or a list of {self.num_attention_heads} numbers (one for each head), got "
                f"{len(per_head)}.",
            )
            _require(all(0 < p < 1 for p in per_head), f"`{name}` must lie strictly between 0 and 1, got {value}.")
            _require(
                self.decay_spacing == "shared" or not isinstance(value, list),
                f"decay_spacing='log' spreads one number over the heads, but `{name}` is a list. Use 'shared'.",
            )

    def validate_convolutions(self) -> None:
        """Checks the taps of the convolutions.

        Raises:
            ValueError: If a width is negative, 1, or even where it must be centered.
        """
        for name in ("conv_size", "local_size"):
            size = getattr(self, name)
            _require(size == 0 or size >= 2, f"`{name}` must be 0 (off) or at least 2, got {size}.")
            _require(
                size % 2 == 1 or size == 0 or self.is_causal,
                f"`{name}` must be odd, so that it can be centered, got {size}. Use {size + 1}.",
            )


def _require(condition: bool, message: str) -> None:
    """Raises a `ValueError` with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


__all__ = ["HfdDeltaNetConfig"]
