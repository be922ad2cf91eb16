"""Delta-rule mixers of the DeltaNet encoder: one memory or two timescales, read causally or from both sides.

The hierarchical memory has a fast and a slow state per head. What the design's origin did in sequence (normalising
the states after each chunk, coupling them by a batch mean) has no parallel form and made outputs depend on chunk
borders and batch mates. Here keys have norm 1 and writes are below 1, which bounds the states; every coupling is a 2x2
matrix that depends on the token only; and reads may be normalised per head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_deltanet import HfdDeltaNetConfig
from .mixers_deltanet import MixerBase, NeutralLinear, cast_once, upcast
from .ops_conv import dynamic_conv, short_conv
from .ops_deltanet import delta_rule_chunk
from .ops_timescales import two_timescale_chunk


class StreamState(NamedTuple):
    """What a causal mixer hands from one chunk of a text to the next.

    Attributes:
        conv: `(B, conv_size - 1, 3 * hidden_size)` last inputs of the short convolution, or `None`.
        local: `(B, local_size - 1, hidden_size)` last values, or `None`.
        memory: The state `(B, H, D, D)`, or the fast and the slow one.
    """

    conv: torch.Tensor | None
    local: torch.Tensor | None
    memory: tuple[torch.Tensor, ...]


class ResonanceFlux(nn.Module):
    r"""A gate per token and head: how strongly key, value and hidden state resonate.

    .. math:: \psi = \sigma(k^T W v / \tau + w x + b), \qquad \psi = 1/2 \text{ where the weights are 0}

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__()
        heads, dim = config.num_attention_heads, config.head_dim
        self.bilinear = nn.Parameter(torch.empty(heads, dim, dim))
        self.temperature = nn.Parameter(torch.empty(heads))
        self.hidden = NeutralLinear(config.hidden_size, heads)

    def reset_parameters(self) -> None:
        """Small bilinear weights and temperature `sqrt(D)`."""
        dim = self.bilinear.shape[-1]
        init.normal_(self.bilinear, std=0.1 / math.sqrt(dim))
        init.constant_(self.temperature, math.sqrt(dim))

    def forward(self, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Computes psi.

        Args:
            k: `(B, T, H, D)` keys of norm 1.
            v: `(B, T, H, D)` values.
            hidden: `(B, T, hidden_size)` the mixer's input.

        Returns:
            `(B, T, H)` in (0, 1), float32.
        """
        resonance = torch.einsum("bthd,hde,bthe->bth", upcast(k), upcast(self.bilinear), upcast(v))
        return (resonance / upcast(self.temperature) + upcast(self.hidden(hidden))).sigmoid()


class Timescales(nn.Module):
    """What drives a fast and a slow state per token and head: decays, split of the write, exchange, read mix.

    Args:
        config: The encoder's configuration.
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.hidden_size, config.num_attention_heads
        self.fast_decay = NeutralLinear(width, heads)
        self.slow_decay = NeutralLinear(width, heads)
        self.mix = nn.Parameter(torch.empty(heads))
        self.split = NeutralLinear(width, heads) if config.memory == "joint_residual" else None
        self.flux = ResonanceFlux(config) if config.use_flux else None
        self.mix_flux = nn.Parameter(torch.empty(heads)) if config.use_flux else None
        self.exchange = nn.Parameter(torch.empty(heads)) if config.use_coupling else None

    def reset_parameters(self) -> None:
        """Decays start at the configured values (through the logit), writes and reads are shared equally."""
        for linear, value in (
            (self.fast_decay, self.config.fast_decay_init),
            (self.slow_decay, self.config.slow_decay_init),
        ):
            decay = _decay_per_head(value, self.config.num_attention_heads, self.config.decay_spacing)
            init.copy_(linear.bias, decay.logit().to(linear.bias))
        init.zeros_(self.mix)
        if self.mix_flux is not None:
            init.ones_(self.mix_flux)
        if self.exchange is not None:
            init.constant_(self.exchange, math.log(0.2 / 0.8))  # a tenth of the content, see `coupling`

    def psi(self, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The resonance flux `(B, T, H)`; 1/2, which is neutral everywhere, without `use_flux`."""
        return k.new_full(k.shape[:3], 0.5) if self.flux is None else self.flux(k, v, hidden)

    def log_decays(
        self, hidden: torch.Tensor, psi: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-decays `(B, T, H)` <= 0 of the two states; 0 at padding. Flux above 1/2 forgets faster."""
        decays = [functional.logsigmoid(upcast(x(hidden))) * (0.5 + psi) for x in (self.fast_decay, self.slow_decay)]
        if attention_mask is not None:
            decays = [x * attention_mask[:, :, None].to(x.dtype) for x in decays]
        return decays[0], decays[1]

    def writes(self, beta: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write strengths of the two states; a shared error is split between them, else both write all of it."""
        if self.split is None:
            return beta, beta
        share = upcast(self.split(hidden)).sigmoid()
        return beta * share, beta * (1.0 - share)

    def coupling(self, psi: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The exchange between the states, `(B, T, H, 2, 2)` with rows that sum to 1; the identity at padding.

        Before a write the fast state takes the share `c psi` from the slow one and the slow state `c (1 - psi)` from
        the fast one, with `c < 1/2` learned per head: rows that sum to 1 keep the states bounded, `c < 1` keeps the
        matrix invertible. Entry `[to, from]`, fast first.
        """
        if self.exchange is None:
            return None
        share = 0.5 * upcast(self.exchange).sigmoid()
        to_fast, to_slow = share * psi, share * (1.0 - psi)
        if attention_mask is not None:
            real = attention_mask[:, :, None].to(psi.dtype)
            to_fast, to_slow = to_fast * real, to_slow * real
        rows = (torch.stack((1.0 - to_fast, to_fast), -1), torch.stack((to_slow, 1.0 - to_slow), -1))
        return torch.stack(rows, dim=-2)

    def read(self, fast: torch.Tensor, slow: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
        """Mixes the two answers `(B, T, H, D)`; states with a shared error add up to one answer, else they average."""
        logit = self.mix if self.mix_flux is None else self.mix + self.mix_flux * (psi - 0.5)
        share = upcast(logit).sigmoid()[..., None]
        answer = share * fast + (1.0 - share) * slow
        return 2.0 * answer if self.config.memory == "joint_residual" else answer


class DeltaMixer(MixerBase):
    r"""The delta rule as a token mixer, causal or bidirectional, with one memory or a fast and a slow one.

    With keys and queries of norm 1, one memory: :math:`S_t = S_{t-1} + \beta_t k_t (v_t - S_{t-1}^T k_t)^T`,
    :math:`o_t = S_t^T q_t`. `delta_flip` averages this with a second pass from the end that reads strictly later
    tokens; `delta_split` lets the second half of the heads run from the end.

    Args:
        config: The encoder's configuration.

    References:
        - DeltaNet: https://huggingface.co/papers/2406.06484
        - Gated DeltaNet: https://huggingface.co/papers/2412.06464
    """

    def __init__(self, config: HfdDeltaNetConfig) -> None:
        super().__init__(config)
        self.timescales = None if config.memory == "single" else Timescales(config)

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
        return self.mix(hidden, attention_mask, position_ids)[0]

    def mix(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """As `forward`, and the final states `(B, H, D, D)`: one, or the fast and the slow one.

        For `delta_flip` the states of both directions are stacked on the batch axis.
        """
        hidden = cast_once(hidden)
        q, k, v = self.project(hidden, attention_mask, position_ids)
        heads, states = self.remember(q, k, v, hidden, attention_mask, None)
        return self.read_out(heads, self.local(v, hidden, attention_mask), hidden), states

    def step(
        self, hidden: torch.Tensor, position_ids: torch.Tensor, state: StreamState | None
    ) -> tuple[torch.Tensor, StreamState]:
        """The next chunk of a text under `delta_causal`, equal to the full forward pass.

        Args:
            hidden: `(B, C, hidden_size)` the chunk.
            position_ids: `(B, C)` its positions in the text.
            state: What the chunk before returned, or `None` at the start.

        Returns:
            The mixer's output for the chunk and the state for the next one.
        """
        conv = local = memory = None
        if state is not None:
            conv, local, memory = state
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        if self.conv_weight is not None:
            mixed, conv = _continue_conv(torch.cat((q, k, v), -1), self.conv_weight, conv)
            q, k, v = mixed.chunk(3, dim=-1)
        q, k, v = self.split_heads(q, k, v, None, position_ids)
        heads, memory = self.remember(q, k, v, hidden, None, memory)
        near = None
        taps = self.near_taps(hidden)
        if taps is not None:
            size = self.config.local_size - 1
            before = v.new_zeros(v.shape[0], size, *v.shape[2:]) if local is None else local
            window = torch.cat((before, v), 1)
            near = dynamic_conv(window, functional.pad(taps, (0, 0, 0, 0, size, 0)), None, causal=True)[:, size:]
            local = window[:, window.shape[1] - size :]
        return self.read_out(heads, near, hidden), StreamState(conv, local, memory)

    def remember(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        memory: tuple[torch.Tensor, ...] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Writes and reads all tokens `(B, T, H, D)`; returns the answers of the same shape and the final states."""
        q, k = (functional.normalize(upcast(x), dim=-1).to(v.dtype) for x in (q, k))
        beta = self.write_strength(hidden, attention_mask)
        if self.timescales is None:
            initial = None if memory is None else memory[0]
            answer, state = delta_rule_chunk(
                self._query_directions(q),
                *self._directions(k, v, beta),
                initial_state=initial,
                chunk_size=self.config.chunk_size,
            )
            return self._undirected(answer), (state,)
        psi = self.timescales.psi(k, v, hidden)
        betas = self.timescales.writes(beta, hidden)
        decays = self.timescales.log_decays(hidden, psi, attention_mask)
        coupling = self.timescales.coupling(psi, attention_mask)
        fast, slow, states = two_timescale_chunk(
            self._query_directions(q),
            *self._directions(k, v, *betas, *decays),
            coupling=None if coupling is None else self._directions(coupling)[0],
            joint=self.config.memory == "joint_residual",
            initial_state=memory,
            chunk_size=max(1, self.config.chunk_size // 2),
        )
        return self.timescales.read(self._undirected(fast), self._undirected(slow), psi), states

    def _directions(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Lays the backward reading beside the forward one: on the batch axis (flip) or the head axis (split)."""
        if self.config.mixer == "delta_flip":
            return [torch.cat((x, x.flip(1))) for x in inputs]
        if self.config.mixer == "delta_split":
            pairs = (x.chunk(2, dim=2) for x in inputs)
            return [torch.cat((ahead, back.flip(1)), dim=2) for ahead, back in pairs]
        return list(inputs)

    def _query_directions(self, q: torch.Tensor) -> torch.Tensor:
        """As `_directions`; the backward pass of `delta_flip` asks one step early, before the own token is written."""
        if self.config.mixer != "delta_flip":
            return self._directions(q)[0]
        return torch.cat((q, functional.pad(q.flip(1)[:, 1:], (0, 0, 0, 0, 0, 1))))

    def _undirected(self, answer: torch.Tensor) -> torch.Tensor:
        """Averages or joins the answers of the two directions again, in the order of the text."""
        if self.config.mixer == "delta_flip":
            ahead, back = answer.chunk(2)
            return 0.5 * (ahead + functional.pad(back[:, :-1], (0, 0, 0, 0, 1, 0)).flip(1))
        if self.config.mixer == "delta_split":
            ahead, back = answer.chunk(2, dim=2)
            return torch.cat((ahead, back.flip(1)), dim=2)
        return answer


def _decay_per_head(value: float | list[float], heads: int, spacing: str) -> torch.Tensor:
    """Initial decays `(H,)`; log spacing scales the log-decay from 2 (half the half-life) down to 1/2."""
    if isinstance(value, list):
        return torch.tensor(value)
    decay = torch.full((heads,), float(value))
    return decay ** (2.0 ** torch.linspace(1, -1, heads)) if spacing == "log" else decay


def _continue_conv(
    x: torch.Tensor, weight: torch.Tensor, tail: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A causal convolution whose text began before `x`; returns the output for `x` and the tail for the next chunk."""
    reach = weight.shape[1] - 1
    if tail is None:
        tail = x.new_zeros(x.shape[0], reach, x.shape[2])
    joined = torch.cat((tail, x), dim=1)
    return short_conv(joined, weight, None, True)[:, reach:], joined[:, -reach:]
