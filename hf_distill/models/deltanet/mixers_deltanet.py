"""Token mixers of the DeltaNet encoder: what stands in the place of BERT's self-attention.

`RidgeMixer` reads the bidirectional fixpoint of the delta rule in closed form; `DeltaMixer` (in `recurrence_deltanet`)
runs the recurrence. Both share the projections, convolutions and gates of `MixerBase`. Contract: padding writes
nothing and forgets nothing, so outputs at real tokens never depend on padding or on batch mates.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_deltanet import HfdDeltaNetConfig
from .ops_conv import dynamic_conv, short_conv
from .ops_ridge import RidgeSolution, RidgeSums, ridge_mix, ridge_read, ridge_solve, ridge_sums

# Bound of the logit under an exponential write strength: exp(10) tokens outweigh any document.
_MAX_EXP_LOGIT = 10.0


def positions_from_mask(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Numbers the real tokens from 0, so that positions do not depend on the padding side.

    Args:
        hidden: `(B, T, ...)`, for shape and device.
        attention_mask: `(B, T)`, 1 at real tokens, or `None` if there is no padding.

    Returns:
        `(B, T)` positions; padding gets the position of the last real token before it, or 0.
    """
    if attention_mask is None:
        return torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def upcast(x: torch.Tensor) -> torch.Tensor:
    """At least float32: memories are never written, solved or read in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cast_once(x: torch.Tensor) -> torch.Tensor:
    """Under autocast, `x` in the dtype of its matrix products: each of them would cast it anew otherwise."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def rotate(x: torch.Tensor, position_ids: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotates pairs of channels by angles that grow with the position (rotary embedding, in float32).

    Args:
        x: `(B, T, H, D)` queries or keys, `D` even.
        position_ids: `(B, T)`.
        theta: Base of the wavelengths.

    Returns:
        `(B, T, H, D)` in the dtype of `x`.

    References:
        - RoFormer: https://huggingface.co/papers/2104.09864
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position_ids[:, :, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    left, right = upcast(x).chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class NeutralLinear(nn.Linear):
    """A linear layer that starts at zero, so that whatever it steers starts at its neutral value.

    A class of its own because transformers initialises custom models module by module and passes over modules that own
    no parameter: a parent cannot be relied on to reset its children.
    """


class OrthogonalLinear(nn.Linear):
    """A projection that starts orthogonal (`orthogonal_init`)."""


class MixerBase(nn.Module):
    """Projections, convolutions, write strength, gate and output dense shared by the mixers.

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.hidden_size, config.num_attention_heads
        projection = OrthogonalLinear if config.orthogonal_init else nn.Linear
        self.query = projection(width, width)
        self.key = projection(width, width)
        self.value = projection(width, width)
        self.output = projection(width, width)
        # The ridge's sums are divided by the sum of beta: a common factor, hence a bias, would have no effect.
        biased = config.mixer != "ridge"
        self.beta = NeutralLinear(width, heads, bias=biased) if config.token_beta else None
        self.beta_bias = nn.Parameter(torch.empty(heads)) if biased and not config.token_beta else None
        self.conv_weight = nn.Parameter(torch.empty(3 * width, config.conv_size)) if config.conv_size else None
        self.local_taps = NeutralLinear(width, heads * config.local_size) if config.local_size else None
        self.gate = NeutralLinear(width, width) if config.use_output_gate else None
        self.head_norm = nn.Parameter(torch.empty(heads, config.head_dim)) if config.use_head_norm else None

    def reset_parameters(self) -> None:
        """Neutral start of the mixer's own parameters: identity convolution, norm weights 1."""
        if self.conv_weight is not None:
            identity = torch.zeros_like(self.conv_weight)
            identity[:, -1 if self.config.is_causal else self.config.conv_size // 2] = 1.0
            init.copy_(self.conv_weight, identity)
        if self.head_norm is not None:
            init.ones_(self.head_norm)
        if self.beta_bias is not None:
            init.zeros_(self.beta_bias)

    def project(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values after convolution and rotation; values are 0 at padding.

        Args:
            hidden: `(B, T, hidden_size)`.
            attention_mask: `(B, T)`, 1 at real tokens, or `None`.
            position_ids: `(B, T)`; read off the mask when `None`.

        Returns:
            Three tensors `(B, T, H, D)`.
        """
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        if self.conv_weight is not None:
            mixed = short_conv(torch.cat((q, k, v), -1), self.conv_weight, attention_mask, self.config.is_causal)
            q, k, v = mixed.chunk(3, dim=-1)
        return self.split_heads(q, k, v, attention_mask, position_ids)

    def split_heads(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cuts `(B, T, hidden_size)` into heads `(B, T, H, D)`, rotates queries and keys, masks values."""
        if attention_mask is not None:
            v = v * attention_mask[:, :, None].to(v.dtype)
        q, k, v = (x.unflatten(-1, (self.config.num_attention_heads, -1)) for x in (q, k, v))
        if self.config.position_embedding_type == "rotary":
            position_ids = positions_from_mask(q, attention_mask) if position_ids is None else position_ids
            q = rotate(q, position_ids, self.config.rotary_theta)
            k = rotate(k, position_ids, self.config.rotary_theta)
        return q, k, v

    def write_strength(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Beta `(B, T, H)` in float32: how strongly a token is written; 0 at padding and at dropped writes."""
        if self.beta is not None:
            logit = upcast(self.beta(hidden))
        else:
            logit = upcast(hidden[..., :1]).new_zeros(*hidden.shape[:2], self.config.num_attention_heads)
            logit = logit if self.beta_bias is None else logit + self.beta_bias
        if self.config.beta_activation == "exp":
            beta = logit.clamp(-_MAX_EXP_LOGIT, _MAX_EXP_LOGIT).exp()
        else:
            beta = logit.sigmoid()
        if self.training and self.config.state_dropout > 0:
            # State dropout as a Bernoulli mask on writes: dropout on the state itself would break its low-rank form.
            beta = beta * torch.empty_like(beta).bernoulli_(1.0 - self.config.state_dropout)
        return beta if attention_mask is None else beta * attention_mask[:, :, None].to(beta.dtype)

    def near_taps(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """The filter `(B, T, H, local_size)` with which a token reads its neighbours; `None` without this branch."""
        return None if self.local_taps is None else self.local_taps(hidden).unflatten(-1, (-1, self.config.local_size))

    def local(
        self, v: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """What the neighbours' values `(B, T, H, D)` say, same shape; `None` without this branch.

        A global memory cannot tell a token's neighbours from the rest of a long text, but half of a teacher's heads
        look at little else: here each token weighs the values around it by taps of its own.
        """
        taps = self.near_taps(hidden)
        return None if taps is None else dynamic_conv(v, taps, attention_mask, self.config.is_causal)

    def read_out(self, heads: torch.Tensor, near: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
        """Norm, gate, sum with the local branch, and output dense.

        Args:
            heads: `(B, T, H, D)` what the memory answered.
            near: `(B, T, H, D)` what `local` answered, or `None`.
            hidden: `(B, T, hidden_size)` the mixer's input, for the gate.

        Returns:
            `(B, T, hidden_size)`.
        """
        if self.head_norm is not None:
            heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + self.config.layer_norm_eps)
            heads = heads * self.head_norm
        if self.gate is not None:
            heads = heads * (2.0 * self.gate(hidden).sigmoid()).unflatten(-1, heads.shape[2:])
        if near is not None:
            heads = heads + near
        return self.output(heads.flatten(2).to(hidden.dtype))


class RidgeMixer(MixerBase):
    r"""Converged delta rule: every token reads the ridge regression from all keys to all values.

    With `w = beta / sum(beta)` (0 at padding) and `W = diag(w)`, per head,

    .. math:: S = (K_c^T W K_c + \lambda I)^{-1} K_c^T W V_c, \qquad o_t = \bar v + (q_t - \bar k) S

    where `\bar k, \bar v` are the weighted means and `K_c, V_c` the centered keys and values (all means are 0 with
    `ridge_center=False`). Linear in the length, no scan, and a document's sums merge exactly across chunks.

    Args:
        config: The encoder's configuration (`ridge_center`, `ridge_lambda_init`, `beta_activation`).

    References:
        - MesaNet (the causal relative): https://huggingface.co/papers/2506.05233
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__(config)
        # Learned as a logarithm: positive, and an optimiser step changes it by a factor whatever its size.
        self.ridge_log_lambda = nn.Parameter(torch.empty(config.num_attention_heads))

    def reset_parameters(self) -> None:
        """See `MixerBase`; `lambda` starts at `ridge_lambda_init`."""
        super().reset_parameters()
        init.constant_(self.ridge_log_lambda, math.log(self.config.ridge_lambda_init))

    def forward(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mixes the tokens of every text.

        Args:
            hidden: `(B, T, hidden_size)`.
            attention_mask: `(B, T)`, 1 at real tokens, or `None`.
            position_ids: `(B, T)`, for rotary positions; read off the mask when `None`.

        Returns:
            `(B, T, hidden_size)`.
        """
        hidden = cast_once(hidden)
        q, k, v = self.project(hidden, attention_mask, position_ids)
        beta = self.write_strength(hidden, attention_mask)
        heads = ridge_mix(q, k, v, beta, self.lam(), center=self.config.ridge_center)
        return self.read_out(heads, self.local(v, hidden, attention_mask), hidden)

    def lam(self) -> torch.Tensor:
        """The ridge `(H,)`, positive, in float32."""
        return upcast(self.ridge_log_lambda).exp()

    def summarize(self, hidden: torch.Tensor, position_ids: torch.Tensor, keep: slice) -> RidgeSums:
        """Sums over a part of a document, for streaming; `keep` cuts away the tokens that are only context."""
        _, k, v = self.project(hidden, None, position_ids)
        return ridge_sums(k[:, keep], v[:, keep], self.write_strength(hidden)[:, keep])

    def solve(self, sums: RidgeSums) -> RidgeSolution:
        """The memory that belongs to the sums of a whole text."""
        return ridge_solve(sums, self.lam(), center=self.config.ridge_center)

    def read(self, hidden: torch.Tensor, position_ids: torch.Tensor, solution: RidgeSolution) -> torch.Tensor:
        """The forward pass against a memory that was solved before, for streaming."""
        q, _, v = self.project(hidden, None, position_ids)
        return self.read_out(ridge_read(q, solution), self.local(v, hidden), hidden)
