"""The identity of a teacher and the manifest: what differs is named, on both sides."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hf_distill.teachers.fingerprint import sha256_of_tokenizer, sha256_of_weights
from hf_distill.teachers.manifest import Manifest, ShardInfo, TeacherSpec


@pytest.fixture
def spec() -> TeacherSpec:
    return TeacherSpec(
        teacher="org/teacher", weights_sha256="aa", tokenizer_sha256="bb", pooling="mean", dtype="float32"
    )


@pytest.fixture
def manifest(spec: TeacherSpec) -> Manifest:
    return Manifest(
        spec, num_rows=3, dim=4, shards=(ShardInfo("a.safetensors", 2, 9, "cc"), ShardInfo("b", 1, 4, "dd"))
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_sha256", "other"),
        ("tokenizer_sha256", "other"),
        ("prompt", "query: "),
        ("pooling", "cls"),
        ("normalize", False),
        ("truncate_dim", 2),
        ("max_seq_length", 128),
        ("dtype", "bfloat16"),
        ("signals", ("embedding", "hidden_1")),
    ],
)
def test_every_difference_names_both_sides(manifest: Manifest, spec: TeacherSpec, field: str, value: object) -> None:
    wanted = replace(spec, **{field: value})
    with pytest.raises(ValueError, match=field) as error:
        manifest.require(wanted, "some/folder")
    assert repr(getattr(spec, field)) in str(error.value)
    assert repr(value) in str(error.value)
    assert "some/folder" in str(error.value)
    assert wanted.fingerprint != spec.fingerprint


def test_what_may_differ(manifest: Manifest, spec: TeacherSpec) -> None:
    """Names of the same weights, a dtype left open, and signals that are not needed do not matter."""
    manifest.require(spec)
    manifest.require(replace(spec, teacher="copy/of-it", revision="main"))
    manifest.require(replace(spec, dtype="auto"))
    more = replace(manifest, spec=replace(spec, signals=("embedding", "hidden_1")))
    more.require(spec)
    assert replace(spec, teacher="copy/of-it").fingerprint == spec.fingerprint


def test_without_weights_the_name_is_the_identity() -> None:
    spec = TeacherSpec(teacher="vectors-2024", revision="1")
    assert spec.differences(replace(spec, revision="2")) == ["revision: the cache has '1', expected is '2'"]
    assert replace(spec, teacher="vectors-2025").fingerprint != spec.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": ""}, "name the teacher"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"truncate_dim": 0}, "at least 1"),
        ({"signals": ("hidden_1",)}, "must hold 'embedding'"),
        ({"signals": ("embedding", "attention")}, "Unknown signal 'attention'"),
        ({"signals": ("embedding", "embedding")}, "twice"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSpec(**{"teacher": "t", **fields})


def test_json_round_trip(manifest: Manifest, tmp_path) -> None:
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
    assert manifest.num_tokens == 13
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["fingerprint"] == manifest.spec.fingerprint


def test_damaged_manifests(manifest: Manifest, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="same job"):
        Manifest.load(tmp_path)
    path = tmp_path / "manifest.json"
    good = manifest.to_json()
    for bad in (good[:50], "[]", good.replace('"format": 1', '"format": 99'), good.replace('"dim"', '"width"')):
        path.write_text(bad)
        with pytest.raises(ValueError, match="not a readable manifest"):
            Manifest.load(tmp_path)
    path.write_text(good.replace('"prompt": ""', '"prompt": "x"'))
    with pytest.raises(ValueError, match="was changed"):
        Manifest.load(tmp_path)


def test_spec_of_a_model(tiny_sentence_transformer: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_sentence_transformer, device="cpu", prompts={"query": "find: "})
    spec = TeacherSpec.of(model)
    assert (spec.pooling, spec.normalize, spec.max_seq_length, spec.prompt) == ("mean", True, 64, "")
    assert "/" not in spec.teacher
    assert spec.fingerprint == TeacherSpec.of(SentenceTransformer(tiny_sentence_transformer, device="cpu")).fingerprint
    model.encode(["a text", "a longer text that sets padding and truncation of the tokenizer"])
    assert TeacherSpec.of(model) == spec
    assert TeacherSpec.of(model, prompt_name="query").prompt == "find: "
    model.default_prompt_name = "query"
    assert TeacherSpec.of(model).prompt == "find: "
    assert TeacherSpec.of(model, prompt="").prompt == ""
    with pytest.raises(ValueError, match=r"no prompt named 'passage'.*'query'"):
        TeacherSpec.of(model, prompt_name="passage")
    with pytest.raises(ValueError, match="truncate_dim is 33.*32"):
        TeacherSpec.of(model, truncate_dim=33)


def test_hashes_see_what_matters(tiny_sentence_transformer: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    weights, tokenizer = sha256_of_weights(model), sha256_of_tokenizer(model.tokenizer)
    with torch.no_grad():
        next(model.parameters()).view(-1)[7] += 1e-3
    assert sha256_of_weights(model) != weights
    model.tokenizer.add_tokens(["zzzz"])
    assert sha256_of_tokenizer(model.tokenizer) != tokenizer


def test_hash_of_a_python_tokenizer(tmp_path) -> None:
    from transformers import CanineTokenizer

    small, large = CanineTokenizer(), CanineTokenizer(pad_token="!")
    small.get_vocab = lambda: {"a": 1, "b": 2}
    large.get_vocab = lambda: {"a": 1, "b": 2}
    assert sha256_of_tokenizer(small) != sha256_of_tokenizer(large)
    large.get_vocab = lambda: {"a": 2, "b": 1}
    small.get_vocab = lambda: {"b": 1, "a": 2}
    large.pad_token = small.pad_token
    assert sha256_of_tokenizer(small) == sha256_of_tokenizer(large)
