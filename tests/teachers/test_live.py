"""The live teacher: what it says equals sentence-transformers, and nothing can wake it from evaluation mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from hf_distill.teachers.live import LiveTeacher, best_dtype, load_teacher

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@pytest.fixture
def live(tiny_model: SentenceTransformer) -> LiveTeacher:
    return LiveTeacher(tiny_model, dtype="float32")


def _batch(live: LiveTeacher, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return live.pad(live.tokenize(texts)[0])


def test_embed_equals_encode(live: LiveTeacher, tiny_texts: list[str]) -> None:
    expected = live.model.encode(tiny_texts)
    for budget in (None, 64, 1):
        np.testing.assert_allclose(live.embed(tiny_texts, tokens_per_batch=budget), expected, atol=1e-5)
    assert live.embed([]).shape == (0, 32)


def test_prompt_is_put_before(live: LiveTeacher, tiny_texts: list[str]) -> None:
    expected = live.model.encode(tiny_texts[:5], prompt="the river: ")
    np.testing.assert_allclose(live.embed(tiny_texts[:5], prompt="the river: "), expected, atol=1e-5)
    assert np.abs(live.embed(tiny_texts[:5]) - expected).max() > 1e-3


def test_the_models_own_prompt_is_the_default(tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    tiny_model.prompts["query"], tiny_model.default_prompt_name = "the river: ", "query"
    texts = tiny_texts[:5]
    live = LiveTeacher(tiny_model, dtype="float32")
    assert live.prompt == "the river: "
    np.testing.assert_allclose(live.embed(texts), tiny_model.encode(texts), atol=1e-5)
    np.testing.assert_allclose(live.embed(texts, prompt=""), tiny_model.encode(texts, prompt=""), atol=1e-5)
    bare = LiveTeacher(tiny_model, dtype="float32", prompt="")
    np.testing.assert_allclose(bare.embed(texts), tiny_model.encode(texts, prompt=""), atol=1e-5)
    assert np.abs(bare.embed(texts) - live.embed(texts)).max() > 1e-3


def test_e5_has_its_prompt_wherever_it_comes_from(tiny_model: SentenceTransformer, monkeypatch) -> None:
    import sentence_transformers

    asked = {}
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda name, **options: asked.update(options))
    load_teacher("intfloat/multilingual-e5-small", device="cpu")
    assert asked["prompts"][asked["default_prompt_name"]] == "query: "
    asked.clear()
    load_teacher("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
    assert "prompts" not in asked


def test_pooling_without_the_prompt(live: LiveTeacher, tiny_texts: list[str]) -> None:
    live.model.set_pooling_include_prompt(False)
    expected = live.model.encode(tiny_texts[:5], prompt="the river: ")
    np.testing.assert_allclose(live.embed(tiny_texts[:5], prompt="the river: "), expected, atol=1e-5)
    live.model.set_pooling_include_prompt(True)
    assert np.abs(live.embed(tiny_texts[:5], prompt="the river: ") - expected).max() > 1e-3


def test_forward_gives_all_of_one_pass(live: LiveTeacher, tiny_texts: list[str]) -> None:
    ids, mask = _batch(live, tiny_texts[:6])
    calls = []
    live.encoder.register_forward_hook(lambda *_: calls.append(1))
    signal = live.forward(ids, mask)
    assert len(calls) == 1
    assert len(signal.hidden_states) == 3
    np.testing.assert_allclose(signal.embedding.numpy(), live.model.encode(tiny_texts[:6]), atol=1e-5)
    expected = live.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for found, wanted in zip(signal.hidden_states, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert live(ids, mask, hidden_states=False).hidden_states == ()
    assert not live.encoder.config.output_hidden_states


def test_no_gradient_and_usable_as_a_target(live: LiveTeacher, tiny_texts: list[str]) -> None:
    signal = live.forward(*_batch(live, tiny_texts[:3]))
    assert not signal.embedding.requires_grad
    assert not any(states.requires_grad for states in signal.hidden_states)
    student = torch.zeros(3, 32, requires_grad=True)
    (student * signal.embedding).sum().backward()
    assert torch.equal(student.grad, signal.embedding)


def test_train_does_not_wake_it(tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    live = LiveTeacher(tiny_model, dtype="float32")
    ids, mask = _batch(live, tiny_texts[:4])
    expected = live.forward(ids, mask).embedding
    assert live.train() is live
    assert not tiny_model.training
    tiny_model.train()
    assert torch.equal(live.forward(ids, mask).embedding, expected)
    live.encoder.train()
    assert torch.equal(live.forward(ids, mask).embedding, expected)


def test_padding_changes_nothing(live: LiveTeacher, tiny_texts: list[str]) -> None:
    ids, mask = _batch(live, tiny_texts[:4])
    wide = torch.nn.functional.pad(ids, (0, 9)), torch.nn.functional.pad(mask, (0, 9))
    torch.testing.assert_close(live.forward(*wide).embedding, live.forward(ids, mask).embedding, atol=1e-5, rtol=0)


def test_bfloat16_is_close_and_leaves_the_weights(tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    exact = LiveTeacher(tiny_model, dtype="float32").embed(tiny_texts)
    rough = LiveTeacher(tiny_model, dtype="bfloat16").embed(tiny_texts)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    assert (rough * exact).sum(axis=1).min() > 0.999
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}


def test_dtypes(tiny_model: SentenceTransformer) -> None:
    assert LiveTeacher(tiny_model).dtype == best_dtype("cpu")
    assert best_dtype("meta") == "float32"
    with pytest.raises(ValueError, match="int8"):
        LiveTeacher(tiny_model, dtype="int8")


def test_loads_a_folder(tiny_sentence_transformer: str, tiny_texts: list[str]) -> None:
    live = LiveTeacher(tiny_sentence_transformer, dtype="float32", device="cpu")
    assert live.embed(tiny_texts[:2]).shape == (2, 32)
    assert live.to("cpu").eval().device.type == "cpu"


def test_unknown_teacher_is_one_clear_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"'no-such/teacher'.*Check the name"):
        load_teacher("no-such/teacher", device="cpu")


def test_a_static_table_has_no_hidden_states(tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    table = StaticEmbedding(tiny_model.tokenizer.backend_tokenizer, embedding_dim=8)
    live = LiveTeacher(SentenceTransformer(modules=[table], device="cpu"))
    assert live.embed(tiny_texts[:3]).shape == (3, 8)
    live.model.prompts["query"], live.model.default_prompt_name = "river mill ", "query"
    bare = live.embed(tiny_texts[:3], prompt="")
    np.testing.assert_array_equal(bare, live.model.encode(tiny_texts[:3], prompt=""))
    assert np.abs(live.embed(tiny_texts[:3], prompt="river mill ") - bare).max() > 1e-4
    with pytest.raises(ValueError, match="StaticEmbedding.*no hidden states"):
        _ = live.encoder


def test_real_teacher(teacher_path: str) -> None:
    live = LiveTeacher(teacher_path, device="cpu")
    found = live.embed(["A man is playing a guitar.", "Someone plays an instrument.", "Rain fell all day."])
    assert found.shape == (3, 384)
    similarities = found @ found.T
    assert similarities[0, 1] > 0.5 > similarities[0, 2]
    assert live.model.encode("Rain fell all day.") @ found[2] > 0.999
