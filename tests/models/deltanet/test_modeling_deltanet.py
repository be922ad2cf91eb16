"""Contracts of the encoder: padding and batch mates change nothing, causality, gradients, checkpointing, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel

Build = Callable[..., HfdDeltaNetModel]


def _ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 50, shape, generator=torch.Generator().manual_seed(seed))


def test_output_follows_bert(build: Build) -> None:
    model = build()
    output = model(_ids(2, 5), output_hidden_states=True)
    assert output.last_hidden_state.shape == (2, 5, 16)
    assert len(output.hidden_states) == 3
    assert output.states is None
    assert output.hidden_states[-1] is output.last_hidden_state
    embedded = model.embeddings(_ids(2, 5), None, torch.arange(5).expand(2, -1))
    torch.testing.assert_close(output.hidden_states[0], embedded)
    torch.testing.assert_close(model.layers[0](embedded)[0], output.hidden_states[1])
    as_tuple = model(_ids(2, 5), return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], output.last_hidden_state)
    model.config.output_hidden_states = True
    assert len(model(_ids(2, 5)).hidden_states) == 3


def test_block_around_the_mixer_equals_berts() -> None:
    """Embeddings, both residual norms and the feed-forward layer (one activation) are BERT's to the last bit."""
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, intermediate_size=24,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip
    student = HfdDeltaNetModel.from_teacher(bert)
    hidden = student.embeddings(_ids(2, 7), None, torch.arange(7).expand(2, -1))
    torch.testing.assert_close(hidden, bert.embeddings(_ids(2, 7)), rtol=0, atol=0)
    inner = bert.encoder.layer[0].attention
    mixed = inner.output.dense(inner.self(hidden)[0])
    torch.testing.assert_close(student.layers[0].feed_forward(hidden, mixed), bert.encoder.layer[0](hidden))


@pytest.mark.parametrize("positions", ["absolute", "rotary", "none"])
def test_padding_and_batch_mates_change_nothing(build: Build, variant: dict[str, Any], positions: str) -> None:
    model = build(position_embedding_type=positions, **variant)
    text = _ids(1, 9, seed=1)
    alone = model(text, output_hidden_states=True).hidden_states
    layouts = {
        "right": list(range(9)),
        "left": list(range(5, 14)),
        "inside": [0, 1, 4, 5, 6, 9, 11, 12, 13],
    }
    ids, mask = _ids(5, 14, seed=2), torch.ones(5, 14, dtype=torch.long)
    for row, places in enumerate(layouts.values()):
        mask[row] = 0
        mask[row, places] = 1
        ids[row, places] = text[0]
    mask[4] = 0  # a row of nothing but padding
    order = [4, 2, 3, 0, 1]
    for batch in (list(range(5)), order):
        output = model(ids[batch], mask[batch], output_hidden_states=True).hidden_states
        for layer, expected in zip(output, alone, strict=True):
            assert layer.isfinite().all()
            for row, places in enumerate(layouts.values()):
                torch.testing.assert_close(layer[batch.index(row), places], expected[0], atol=1e-6, rtol=1e-5)
    for row, places in enumerate(layouts.values()):
        by_itself = model(ids[row : row + 1], mask[row : row + 1]).last_hidden_state
        torch.testing.assert_close(by_itself[0, places], alone[-1][0], atol=1e-6, rtol=1e-5)


def test_gradients_ignore_padding(build: Build, variant: dict[str, Any]) -> None:
    model = build(**variant)
    text, mask = _ids(1, 6, seed=3), torch.zeros(2, 10, dtype=torch.long)
    ids = torch.zeros(2, 10, dtype=torch.long)
    ids[0, 2:8], mask[0, 2:8] = text[0], 1  # padded on both sides, beside an empty row
    weights = torch.randn(6, 16, dtype=torch.float64)

    def gradients(ids: torch.Tensor, mask: torch.Tensor | None, rows: slice) -> list[torch.Tensor]:
        model.zero_grad()
        (model(ids, mask).last_hidden_state[0, rows] * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for padded, alone in zip(gradients(ids, mask, slice(2, 8)), gradients(text, None, slice(0, 6)), strict=True):
        assert padded.isfinite().all()
        torch.testing.assert_close(padded, alone, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("memory", ["single", "two_decay", "joint_residual"])
def test_causal_mixer_never_sees_later_tokens(build: Build, memory: str) -> None:
    more = {} if memory == "single" else {"use_flux": True, "use_coupling": True}
    model = build(mixer="delta_causal", memory=memory, conv_size=4, local_size=3, **more)
    ids = _ids(1, 40)
    before = model(ids, torch.ones_like(ids)).last_hidden_state
    changed = ids.clone()
    changed[0, 23] = (ids[0, 23] % 49) + 1
    after = model(changed, torch.ones_like(ids)).last_hidden_state
    assert (after[0, :23] - before[0, :23]).abs().max() < 1e-9
    assert ((after[0, 23:] - before[0, 23:]).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("mixer", ["ridge", "delta_flip"])
def test_encoder_mixers_see_both_sides(build: Build, mixer: str) -> None:
    model = build(mixer=mixer)
    ids = _ids(1, 12)
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] % 49) + 1
    difference = (model(changed).last_hidden_state - model(ids).last_hidden_state).abs().amax(-1)
    assert (difference > 1e-6).all()


def test_too_long_a_text_names_the_remedy(build: Build) -> None:
    with pytest.raises(ValueError, match="65 tokens.*64 absolute positions.*'rotary' or 'none'"):
        build()(_ids(1, 65))
    for kind in ("rotary", "none"):
        model = build(position_embedding_type=kind)
        assert model.embeddings.position_embeddings is None
        assert model(_ids(1, 65)).last_hidden_state.isfinite().all()


def test_wrong_inputs_are_refused(build: Build) -> None:
    model = build()
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(_ids(1, 3), inputs_embeds=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        model(_ids(1, 3), torch.ones(1, 1, 3, 3))
    with pytest.raises(ValueError, match="two_decay"):
        model(_ids(1, 3), collect_states=True)


def test_word_vectors_may_be_given_instead_of_ids(build: Build) -> None:
    model = build(conv_size=3)
    ids, mask = _ids(2, 6), torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]])
    given = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(given, model(ids, mask).last_hidden_state)


def test_every_trainable_parameter_gets_a_gradient(build: Build, variant: dict[str, Any]) -> None:
    model = build(**variant).train()
    ids = torch.arange(1, 50)[None]
    kinds = torch.arange(49)[None] % 2
    (model(ids, token_type_ids=kinds).last_hidden_state * torch.randn(49, 16, dtype=torch.float64)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert without == []
    model.eval()


def test_gradient_reaches_every_parameter_at_the_neutral_start(build: Build, variant: dict[str, Any]) -> None:
    """Zero-initialised branches must still learn: nothing starts on a dead spot."""
    torch.manual_seed(0)
    config = build(**variant).config
    model = HfdDeltaNetModel(config).double()
    (model(_ids(2, 30)).last_hidden_state * torch.randn(2, 30, 16, dtype=torch.float64)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_changes_nothing(build: Build, variant: dict[str, Any]) -> None:
    model = build(**(variant | {"state_dropout": 0.3, "hidden_dropout_prob": 0.1})).train()
    ids, mask = _ids(2, 9), torch.tensor([[1] * 9, [1] * 6 + [0] * 3])

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(5)  # the recomputed forward must draw the same dropout
        model.zero_grad()
        model(ids, mask).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    for saved, full in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(saved, full)
    model.eval()


def test_bf16_autocast_stays_close_and_keeps_float32_parameters(build: Build, variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = HfdDeltaNetModel(build(**variant).config)
    ids, mask = _ids(2, 20), torch.tensor([[1] * 20, [1] * 13 + [0] * 7])
    full = model(ids, mask).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(ids, mask).last_hidden_state
    assert half.isfinite().all()
    assert torch.cosine_similarity(half.float()[mask.bool()], full[mask.bool()], dim=-1).min() > 0.995
    half.float().square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_half_precision_weights_run(build: Build, variant: dict[str, Any]) -> None:
    model = HfdDeltaNetModel(build(**variant).config).to(torch.bfloat16)
    output = model(_ids(1, 8)).last_hidden_state
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_positions_may_be_given(build: Build) -> None:
    for fields in ({"conv_size": 3}, {"position_embedding_type": "rotary"}):
        model = build(**fields)
        ids, mask = _ids(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        given = model(ids, mask, position_ids=torch.arange(6)[None]).last_hidden_state
        torch.testing.assert_close(given[mask.bool()], model(ids, mask).last_hidden_state[mask.bool()])
    shifted = model(ids, mask, position_ids=torch.arange(3, 9)[None]).last_hidden_state
    torch.testing.assert_close(shifted[0], given[0], atol=1e-5, rtol=1e-5)  # rotary: only distances count


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_flags_are_harmless(build: Build, attention: str, tmp_path: Any) -> None:
    model = build(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert type(again) is HfdDeltaNetModel
    torch.testing.assert_close(
        again(_ids(1, 8)).last_hidden_state, model(_ids(1, 8)).last_hidden_state, rtol=0, atol=0
    )


@pytest.mark.parametrize("memory", ["single", "two_decay", "joint_residual"])
def test_states_stay_bounded_over_a_long_text(build: Build, memory: str) -> None:
    more = {} if memory == "single" else {"use_flux": True, "use_coupling": True}
    model = build(mixer="delta_causal", memory=memory, position_embedding_type="none", dtype=torch.float32, **more)
    layer = model.layers[0]
    hidden = layer.output_norm(torch.randn(1, 1500, 16))
    values = layer.mixer.value(hidden).abs().max()
    _, states = layer.mixer.mix(hidden)
    assert all(state.abs().max() < 10 * values for state in states)


@pytest.mark.parametrize("memory", ["two_decay", "joint_residual"])
def test_states_of_both_timescales_are_returned(build: Build, memory: str) -> None:
    model = build(mixer="delta_flip", memory=memory)
    output = model(_ids(3, 7), collect_states=True)
    assert len(output.states) == 2
    assert all(state.shape == (6, 4, 4, 4) for pair in output.states for state in pair)
    model.collect_states = True
    by_attribute = model(_ids(3, 7))
    torch.testing.assert_close(by_attribute.states[1][0], output.states[1][0])
    torch.testing.assert_close(by_attribute.last_hidden_state, output.last_hidden_state)
    model.collect_states = False


def test_projection_weights_are_the_parameters(build: Build) -> None:
    model = build()
    weights = model.projection_weights()
    assert len(weights) == 6
    assert weights[0] is model.layers[0].mixer.query.weight
    assert weights[5] is model.layers[1].mixer.value.weight


def test_fresh_models_are_reproducible_and_scaled_by_the_config() -> None:
    config = HfdDeltaNetConfig(vocab_size=500, hidden_size=64, num_attention_heads=4, num_hidden_layers=1)
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(HfdDeltaNetModel(config))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.isfinite().all(), name
    assert abs(models[0].embeddings.word_embeddings.weight.std().item() - 0.02) < 0.002
    assert models[0].embeddings.word_embeddings.weight[0].abs().max() == 0
