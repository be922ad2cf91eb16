"""The mixers against readable references, and the neutral start of everything that BERT's attention has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel
from hf_distill.models.deltanet.mixers_deltanet import MixerBase, positions_from_mask, rotate

Build = Callable[..., HfdDeltaNetModel]


@pytest.fixture
def fresh_mixer(tiny_config: Callable[..., HfdDeltaNetConfig]) -> Callable[..., MixerBase]:
    """Builds the first mixer of a newly initialised model."""

    def fresh_mixer(**fields: Any) -> MixerBase:
        torch.manual_seed(0)
        return HfdDeltaNetModel(tiny_config(initializer_range=0.5, **fields)).double().eval().layers[0].mixer

    return fresh_mixer


def _heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (4, 4))


def test_ridge_equals_the_written_formula(build: Build) -> None:
    mixer = build().layers[0].mixer
    hidden = torch.randn(1, 7, 16, dtype=torch.float64)
    q, k, v = (_heads(linear(hidden))[0] for linear in (mixer.query, mixer.key, mixer.value))
    weight = mixer.beta(hidden).sigmoid()[0]
    heads = []
    for h in range(4):
        w = (weight[:, h] / weight[:, h].sum())[:, None]
        key_mean, value_mean = (w * k[:, h]).sum(0), (w * v[:, h]).sum(0)
        centered = k[:, h] - key_mean
        gram = centered.T @ (w * centered) + mixer.ridge_log_lambda[h].exp() * torch.eye(4, dtype=torch.float64)
        memory = torch.linalg.solve(gram, centered.T @ (w * (v[:, h] - value_mean)))
        heads.append(value_mean + (q[:, h] - key_mean) @ memory)
    expected = mixer.output(torch.stack(heads, 1).flatten(1))
    torch.testing.assert_close(mixer(hidden)[0], expected, atol=1e-6, rtol=1e-5)


def _delta_loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, strict: bool) -> torch.Tensor:
    """Token loop over `(T, H, D)`; `strict` reads before the own token is written."""
    state, answers = torch.zeros(4, 4, 4, dtype=q.dtype), []
    for t in range(q.shape[0]):
        if strict:
            answers.append(torch.einsum("hd,hde->he", q[t], state))
        error = v[t] - torch.einsum("hd,hde->he", k[t], state)
        state = state + torch.einsum("hd,he->hde", k[t], beta[t, :, None] * error)
        if not strict:
            answers.append(torch.einsum("hd,hde->he", q[t], state))
    return torch.stack(answers)


@pytest.mark.parametrize("mixer_type", ["delta_causal", "delta_flip", "delta_split"])
def test_delta_equals_the_token_loop(build: Build, mixer_type: str) -> None:
    mixer = build(mixer=mixer_type, chunk_size=4).layers[0].mixer
    hidden = torch.randn(1, 11, 16, dtype=torch.float64)
    q, k, v = (_heads(linear(hidden))[0] for linear in (mixer.query, mixer.key, mixer.value))
    q, k, beta = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1), mixer.beta(hidden).sigmoid()[0]
    heads = _delta_loop(q, k, v, beta, strict=False)
    reverse = _delta_loop(q.flip(0), k.flip(0), v.flip(0), beta.flip(0), strict=mixer_type == "delta_flip").flip(0)
    if mixer_type == "delta_flip":
        heads = 0.5 * (heads + reverse)
    elif mixer_type == "delta_split":
        heads = torch.cat((heads[:, :2], reverse[:, 2:]), dim=1)
    torch.testing.assert_close(mixer(hidden)[0], mixer.output(heads.flatten(1)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "extra", [{"conv_size": 3}, {"local_size": 5}, {"use_output_gate": True}, {"conv_size": 5, "local_size": 3}]
)
@pytest.mark.parametrize("mixer_type", ["ridge", "delta_causal", "delta_flip"])
def test_extras_start_without_effect(
    mixer_type: str, extra: dict[str, Any], fresh_mixer: Callable[..., MixerBase]
) -> None:
    plain = fresh_mixer(mixer=mixer_type)
    mixer = fresh_mixer(mixer=mixer_type, **extra)
    mixer.load_state_dict(plain.state_dict(), strict=False)
    hidden, mask = torch.randn(2, 9, 16, dtype=torch.float64), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    real = mask.bool()
    torch.testing.assert_close(mixer(hidden, mask)[real], plain(hidden, mask)[real])


def test_local_branch_adds_the_neighbours_values(build: Build) -> None:
    mixer = build(local_size=3).layers[0].mixer
    hidden = torch.randn(1, 6, 16, dtype=torch.float64)
    with_branch = mixer(hidden)
    taps = mixer.local_taps(hidden).unflatten(-1, (-1, 3)).repeat_interleave(mixer.config.head_dim, dim=2)
    value = functional.pad(mixer.value(hidden), (0, 0, 1, 1))
    near = sum(taps[..., j] * value[:, j : j + 6] for j in range(3))
    with torch.no_grad():
        mixer.local_taps.weight.zero_()
        mixer.local_taps.bias.zero_()
    torch.testing.assert_close(with_branch, mixer(hidden) + near @ mixer.output.weight.T)


def test_head_norm_gives_every_head_unit_size(fresh_mixer: Callable[..., MixerBase]) -> None:
    mixer = fresh_mixer(mixer="delta_flip", use_head_norm=True)
    seen = []
    mixer.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer(torch.randn(1, 9, 16, dtype=torch.float64))
    size = _heads(seen[0]).square().mean(-1)
    torch.testing.assert_close(size, torch.ones_like(size))


@pytest.mark.parametrize("memory", ["two_decay", "joint_residual"])
@pytest.mark.parametrize("use_flux", [False, True])
def test_decays_start_at_the_configured_values(
    memory: str, use_flux: bool, fresh_mixer: Callable[..., MixerBase]
) -> None:
    """Through the logit: 0.30 and 0.85 are real, unlike sigmoid(log p) = 0.23 and 0.46."""
    scales = fresh_mixer(mixer="delta_causal", memory=memory, use_flux=use_flux).timescales
    if scales.flux is not None:
        torch.nn.init.zeros_(scales.flux.bilinear)
    hidden = torch.randn(1, 5, 16, dtype=torch.float64)
    keys = torch.randn(1, 5, 4, 4, dtype=torch.float64)
    fast, slow = scales.log_decays(hidden, scales.psi(keys, keys, hidden), None)
    torch.testing.assert_close(fast.exp(), torch.full_like(fast, 0.30))
    torch.testing.assert_close(slow.exp(), torch.full_like(slow, 0.85))


def test_decays_per_head_and_log_spaced(fresh_mixer: Callable[..., MixerBase]) -> None:
    listed = fresh_mixer(mixer="delta_flip", memory="two_decay", fast_decay_init=[0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(
        listed.timescales.fast_decay.bias.sigmoid(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    )
    spread = fresh_mixer(mixer="delta_flip", memory="two_decay", decay_spacing="log").timescales.slow_decay.bias
    rate = -spread.sigmoid().log()
    torch.testing.assert_close(rate[0] / rate[-1], torch.tensor(4.0).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(rate.log().diff(), rate.log().diff()[:1].expand(3), rtol=1e-4, atol=0)


def test_padding_writes_nothing_and_forgets_nothing(fresh_mixer: Callable[..., MixerBase]) -> None:
    mixer = fresh_mixer(mixer="delta_causal", memory="two_decay", use_coupling=True, use_flux=True)
    hidden, mask = torch.randn(1, 4, 16, dtype=torch.float64), torch.tensor([[1, 0, 1, 0]])
    _, k, v = mixer.project(hidden, mask)
    psi = mixer.timescales.psi(k, v, hidden)
    assert v[0, [1, 3]].abs().max() == 0
    assert mixer.write_strength(hidden, mask)[0, [1, 3]].abs().max() == 0
    assert all(x[0, [1, 3]].abs().max() == 0 for x in mixer.timescales.log_decays(hidden, psi, mask))
    coupling = mixer.timescales.coupling(psi, mask)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(coupling[0, [1, 3]], eye.expand(2, 4, 2, 2))
    assert (coupling[0, [0, 2]] - eye).abs().min() > 1e-3
    torch.testing.assert_close(coupling.sum(-1), torch.ones_like(coupling[..., 0]))


def test_flux_steers_the_memory(build: Build) -> None:
    fields = {"mixer": "delta_causal", "memory": "two_decay", "use_coupling": True}
    with_flux, without = build(use_flux=True, **fields), build(**fields)
    ids = torch.arange(1, 13)[None]
    without.load_state_dict(with_flux.state_dict(), strict=False)
    assert (with_flux(ids).last_hidden_state - without(ids).last_hidden_state).abs().max() > 1e-4


@pytest.mark.parametrize("mixer_type", ["ridge", "delta_causal", "delta_flip", "delta_split"])
def test_state_dropout_skips_a_share_of_writes_in_training_only(
    mixer_type: str, fresh_mixer: Callable[..., MixerBase]
) -> None:
    mixer = fresh_mixer(mixer=mixer_type, state_dropout=0.25)
    hidden = torch.randn(20, 50, 16, dtype=torch.float64)
    assert (mixer.write_strength(hidden) > 0).all()
    torch.testing.assert_close(mixer(hidden), mixer(hidden))
    mixer.train()
    beta = mixer.write_strength(hidden)
    assert abs((beta == 0).double().mean().item() - 0.25) < 0.03
    torch.testing.assert_close(beta[beta > 0], torch.full_like(beta[beta > 0], 0.5))
    assert (mixer(hidden) - mixer(hidden)).abs().max() > 1e-3


@pytest.mark.parametrize("mixer_type", ["ridge", "delta_causal"])
def test_without_token_beta_a_head_writes_all_tokens_alike(
    mixer_type: str, fresh_mixer: Callable[..., MixerBase]
) -> None:
    mixer = fresh_mixer(mixer=mixer_type, token_beta=False)
    assert (mixer.beta_bias is None) == (mixer_type == "ridge")  # whose normalised sums would cancel it
    if mixer.beta_bias is not None:
        torch.nn.init.normal_(mixer.beta_bias)
    mask = torch.tensor([[1, 1, 1, 0]])
    beta = mixer.write_strength(torch.randn(1, 4, 16, dtype=torch.float64), mask)
    assert (beta[0, 3] == 0).all()
    torch.testing.assert_close(beta[0, :3], beta[0, :1].expand(3, -1))
    assert mixer_type == "ridge" or beta[0, 0].unique().numel() > 1  # each head its own


def test_orthogonal_init(fresh_mixer: Callable[..., MixerBase]) -> None:
    mixer = fresh_mixer(orthogonal_init=True)
    eye = torch.eye(16, dtype=torch.float64)
    for linear in (mixer.query, mixer.key, mixer.value, mixer.output):
        torch.testing.assert_close(linear.weight @ linear.weight.T, eye, atol=1e-5, rtol=0)


def test_ridge_without_positions_is_blind_to_order(build: Build) -> None:
    mixer = build().layers[0].mixer
    hidden, shuffle = torch.randn(1, 8, 16, dtype=torch.float64), torch.randperm(8)
    torch.testing.assert_close(mixer(hidden[:, shuffle]), mixer(hidden)[:, shuffle], atol=1e-6, rtol=1e-6)
    rotary = build(position_embedding_type="rotary").layers[0].mixer
    assert (rotary(hidden[:, shuffle]) - rotary(hidden)[:, shuffle]).abs().max() > 1e-3


def test_rotation_depends_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).unbind()

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, torch.tensor([[i]]), 100.0) * rotate(k, torch.tensor([[j]]), 100.0)).sum()

    torch.testing.assert_close(score(3, 7), score(23, 27), atol=1e-4, rtol=1e-4)
    assert (score(3, 7) - score(3, 9)).abs() > 1e-3
    torch.testing.assert_close(rotate(q, torch.tensor([[5]]), 100.0).norm(), q.norm(), atol=1e-5, rtol=1e-5)


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0]])
    assert positions_from_mask(mask, mask).tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2]]
    assert positions_from_mask(mask, None).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_exponential_beta_cannot_overflow(fresh_mixer: Callable[..., MixerBase]) -> None:
    mixer = fresh_mixer(mixer="ridge", beta_activation="exp")
    with torch.no_grad():
        mixer.beta.weight.fill_(1e3)
    assert mixer(torch.randn(1, 6, 16, dtype=torch.float64)).isfinite().all()
