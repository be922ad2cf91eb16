"""A teacher with its first layer mixed in: the formula, the same through every path, and known to the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_distill.teachers.first_layer import with_first_layer
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache

if TYPE_CHECKING:
    from pathlib import Path


def _expected(model: SentenceTransformer, texts: list[str], weight: float) -> np.ndarray:
    """The formula, text by text, without any padding."""
    rows = []
    for text in texts:
        ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=model.max_seq_length).input_ids
        with torch.no_grad():
            first = model.transformers_model(ids, output_hidden_states=True).hidden_states[0][0].mean(dim=0).numpy()
        embedding = model.encode(text)
        mixed = embedding / np.linalg.norm(embedding) + weight * first / np.linalg.norm(first)
        rows.append(mixed / np.linalg.norm(mixed))
    return np.stack(rows)


def test_formula_through_every_path(tiny_model: SentenceTransformer, tiny_texts: list[str], tmp_path: Path) -> None:
    texts = list(dict.fromkeys(tiny_texts))[:12]
    expected = _expected(tiny_model, texts, 0.3)
    mixed = with_first_layer(tiny_model, 0.3)
    np.testing.assert_allclose(mixed.encode(texts), expected, atol=1e-5)
    live = LiveTeacher(mixed, dtype="float32")
    np.testing.assert_allclose(live.embed(texts), expected, atol=1e-5)
    cache = write_cache(texts, live, tmp_path, progress=False)
    np.testing.assert_allclose(cache.embeddings(range(len(texts))), expected, atol=1e-3)
    assert np.abs(expected - tiny_model.encode(texts)).max() > 0.01


def test_beside_the_embedding_the_cosines_add_up(
    tiny_model: SentenceTransformer, tiny_texts: list[str], tmp_path: Path
) -> None:
    texts, weight = list(dict.fromkeys(tiny_texts))[:12], 0.6
    mixed = with_first_layer(tiny_model, weight, "concat")
    assert mixed.get_embedding_dimension() == 2 * tiny_model.get_embedding_dimension()
    added = _expected(tiny_model, texts, 1.0)
    found = mixed.encode(texts)
    assert found.shape == (12, 2 * added.shape[1])
    embedding = tiny_model.encode(texts, normalize_embeddings=True)
    first = found[:, added.shape[1] :] / np.linalg.norm(found[:, added.shape[1] :], axis=1, keepdims=True)
    expected = (embedding @ embedding.T + weight * first @ first.T) / (1 + weight)
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-5)
    sums = embedding + first
    np.testing.assert_allclose(sums / np.linalg.norm(sums, axis=1, keepdims=True), added, atol=1e-5)  # the same f
    cache = write_cache(texts, LiveTeacher(mixed, dtype="float32"), tmp_path, progress=False)
    np.testing.assert_allclose(cache.embeddings(range(len(texts))), found, atol=1e-3)


def test_the_teacher_itself_stays_as_it_was(tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    before = tiny_model.encode(tiny_texts[:4])
    with_first_layer(tiny_model, 0.5).encode(tiny_texts[:4])
    np.testing.assert_array_equal(tiny_model.encode(tiny_texts[:4]), before)
    assert with_first_layer(tiny_model, 0.0) is tiny_model


def test_the_weight_is_part_of_the_identity(tiny_model: SentenceTransformer) -> None:
    plain, low, high = (TeacherSpec.of(with_first_layer(tiny_model, weight)) for weight in (0.0, 0.1, 0.2))
    beside = TeacherSpec.of(with_first_layer(tiny_model, 0.1, "concat"))
    assert len({spec.fingerprint for spec in (plain, low, high, beside)}) == 4
    assert "FirstLayerMix(weight=0.1)" in low.pooling


def test_wrong_weight_or_teacher(tiny_model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="first_layer_weight is -1"):
        with_first_layer(tiny_model, -1)
    with pytest.raises(ValueError, match="first_layer_mix is 'product'"):
        with_first_layer(tiny_model, 0.1, "product")
    static = SentenceTransformer(modules=[StaticEmbedding(tiny_model.tokenizer, embedding_dim=8)])
    with pytest.raises(ValueError, match="needs a BERT-like teacher"):
        with_first_layer(static, 0.1)
