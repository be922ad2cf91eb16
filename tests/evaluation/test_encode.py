"""`encode_sorted` gives `model.encode`'s vectors, for every kind of model, order and precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hf_distill.evaluation.encode import count_tokens, encode_sorted, normalize_rows


@pytest.mark.parametrize("kind", ["tiny_model", "static_model"])
@pytest.mark.parametrize("tokens_per_batch", [None, 1, 64])
def test_same_vectors_as_encode_in_float32(kind, tokens_per_batch, tiny_texts, request):
    model = request.getfixturevalue(kind)
    ours = encode_sorted(model, tiny_texts, dtype="float32", tokens_per_batch=tokens_per_batch)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, model.encode(tiny_texts), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["tiny_model", "static_model"])
def test_bfloat16_is_near_and_pools_in_float32(kind, tiny_texts, request):
    model = request.getfixturevalue(kind)
    exact, half = (encode_sorted(model, tiny_texts, dtype=dtype) for dtype in ("float32", "bfloat16"))
    cosines = (normalize_rows(exact) * normalize_rows(half)).sum(axis=1)
    assert cosines.min() > 0.995
    if kind == "tiny_model":
        assert not np.array_equal(exact, half)  # autocast was on
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)  # Normalize ran in float32


def test_left_padding_is_cut_on_the_left(tiny_model, tiny_texts):
    model = copy.deepcopy(tiny_model)
    model.tokenizer.padding_side = "left"  # BERT's positions move with the padding: compare batches of one
    ours = encode_sorted(model, tiny_texts[:10], dtype="float32", tokens_per_batch=1)
    np.testing.assert_allclose(ours, model.encode(tiny_texts[:10], batch_size=1), atol=2e-6)


def test_duplicates_come_back_in_place(tiny_model, tiny_texts):
    ours = encode_sorted(tiny_model, tiny_texts[:10] + tiny_texts[:3], dtype="float32")
    np.testing.assert_array_equal(ours[:3], ours[10:])


def test_each_distinct_text_is_encoded_once(tiny_model, tiny_texts, monkeypatch):
    seen = []
    original = type(tiny_model).preprocess
    monkeypatch.setattr(
        type(tiny_model), "preprocess", lambda self, texts, **kw: seen.extend(texts) or original(self, texts, **kw)
    )
    encode_sorted(tiny_model, tiny_texts * 3)
    assert sorted(seen) == sorted(set(tiny_texts))


def test_prompts(tiny_model, tiny_texts):
    model = copy.deepcopy(tiny_model)
    model.prompts["query"] = "find : "
    plain, named, given = (
        encode_sorted(model, tiny_texts[:4], dtype="float32", **kw)
        for kw in ({}, {"prompt_name": "query"}, {"prompt": "find : "})
    )
    np.testing.assert_allclose(named, model.encode(tiny_texts[:4], prompt_name="query"), atol=2e-6)
    np.testing.assert_array_equal(named, given)
    assert not np.allclose(plain, named)
    model.default_prompt_name = "query"
    np.testing.assert_array_equal(encode_sorted(model, tiny_texts[:4], dtype="float32"), named)
    with pytest.raises(ValueError, match="no prompt 'passage'"):
        encode_sorted(model, ["a"], prompt_name="passage")


def test_truncate_dim(tiny_model, tiny_texts):
    model = copy.deepcopy(tiny_model)
    model.truncate_dim = 8
    np.testing.assert_allclose(
        encode_sorted(model, tiny_texts[:5], dtype="float32"), model.encode(tiny_texts[:5]), atol=2e-6
    )


def test_no_texts_and_one_text(tiny_model):
    assert encode_sorted(tiny_model, []).shape == (0, 32)
    assert encode_sorted(tiny_model, ["a small river"]).shape == (1, 32)


def test_training_mode_comes_back_and_no_dropout(tiny_model, tiny_texts):
    model = copy.deepcopy(tiny_model)
    model.train()
    model[0].auto_model.embeddings.dropout.p = 0.5
    first = encode_sorted(model, tiny_texts[:4], dtype="float32")
    np.testing.assert_array_equal(first, encode_sorted(model, tiny_texts[:4], dtype="float32"))
    assert model.training
    assert model[0].auto_model.embeddings.dropout.training


def test_nan_names_the_text(tiny_model):
    model = copy.deepcopy(tiny_model)
    river = model.tokenizer.convert_tokens_to_ids("river")
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight[river] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity for 1 of 2 texts, first for 'a small river'"):
        encode_sorted(model, ["the old mill", "a small river"])


def test_unknown_dtype(tiny_model):
    with pytest.raises(ValueError, match="'int4'"):
        encode_sorted(tiny_model, ["a"], dtype="int4")


def test_count_tokens(tiny_model, static_model):
    texts = ["the old mill", "", "the old mill " * 40]
    np.testing.assert_array_equal(count_tokens(tiny_model.tokenizer, texts), [5, 2, 122])
    np.testing.assert_array_equal(count_tokens(tiny_model.tokenizer, texts, 64), [5, 2, 64])
    np.testing.assert_array_equal(count_tokens(static_model.tokenizer, texts), [3, 0, 120])
    assert count_tokens(tiny_model.tokenizer, []).shape == (0,)


def test_normalize_rows_leaves_zeros():
    rows = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)
