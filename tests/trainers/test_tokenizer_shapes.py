"""Students that are a part of a backbone, and requests that are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from hf_distill.teachers.function_model import function_model
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_jobs import Job
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.tokenizer_shapes import check_shapes, cut_encoder, cut_head, describe_cut


@pytest.fixture(scope="module")
def model(tiny_sentence_transformer: str) -> SentenceTransformer:
    return SentenceTransformer(tiny_sentence_transformer, device="cpu")


def check(
    models: dict[str, SentenceTransformer], entry: dict | None = None, training: dict | None = None, **fields: Any
) -> None:
    """Checks the jobs of a recipe with the backbone `model`."""
    asked = {"teacher": "teacher", "tokenizers": {"a": "x"}, "corpus": "y", "tasks": ["stsb_tr"]}
    backbones = {"part": {"model": "model", **(entry or {})}}
    recipe = TokenizerRecipe(**{**asked, "backbones": backbones, **fields})
    args = EmbeddingDistillConfig("out", bf16=False, report_to="none", **(training or {}))
    check_shapes(recipe.jobs(args), models, recipe, args)


def test_a_part_of_a_backbone(model: SentenceTransformer) -> None:
    job = Job("a-b", "a", "model", 1, False, 7, Path("run"), hidden_size=16, intermediate_size=24)
    encoder, head = cut_encoder(job, model), cut_head(job, model)
    config = encoder.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 16, 24)
    assert config.num_attention_heads == 2
    assert [type(module) for module in head] == [Pooling, Normalize]
    assert head[0].get_embedding_dimension() == 16
    assert model[1].get_embedding_dimension() == 32
    assert describe_cut(job, model) == "1 of its 2 layers, 16 of its 32 channels, 24 of its 64 neurons a layer"
    assert describe_cut(Job("a-b", "a", "model", None, False, 7, Path("run")), model) == ""


def test_a_dense_layer_keeps_the_width(model: SentenceTransformer, tiny_bert: str) -> None:
    dense = SentenceTransformer(
        modules=[Transformer(tiny_bert), Pooling(32, "mean"), Dense(32, 32), Normalize()], device="cpu"
    )
    check({"teacher": model, "model": dense})
    with pytest.raises(ValueError, match=r"a-part: hidden_size=16 does not fit the Dense layer .* of model"):
        check({"teacher": model, "model": dense}, {"hidden_size": 16}, teacher_dim=16)


@pytest.mark.parametrize(
    ("entry", "fields", "message"),
    [
        ({"num_layers": 3}, {}, "a-part: num_layers=3 must lie between 1 and the source's 2"),
        ({"hidden_size": 15}, {"teacher_dim": 15}, "a-part: hidden_size=15 and num_attention_heads=1 do not fit"),
        (
            {"hidden_size": 16},
            {},
            r"a-part has 16 numbers a text, but its teacher teacher has 32\. Choose --teacher_dim 16",
        ),
        ({}, {"teacher_dim": 16}, r"a-part has 32 numbers .* teacher has 16\. Choose --teacher_dim 32"),
        ({}, {"teacher_dim": 64}, "teacher_dim=64, but the teacher teacher has 32 numbers a text"),
    ],
)
def test_students_that_cannot_be(
    entry: dict[str, int], fields: dict[str, Any], message: str, model: SentenceTransformer
) -> None:
    with pytest.raises(ValueError, match=message):
        check({"teacher": model, "model": model}, entry, **fields)


def test_another_width_with_a_head_or_a_projection(model: SentenceTransformer) -> None:
    models, narrow, head = {"teacher": model, "model": model}, {"hidden_size": 16}, {"embedding_projection": "pca"}
    check(models, narrow, teacher_dim=16, tasks=["bitext"])
    check(models, narrow, head)
    check(models, narrow, {"cosine_weight": 0, "gram_weight": 1})  # no term compares vectors one by one
    with pytest.raises(ValueError, match=r"bitext compares a-part, 16 .* leave bitext out of --tasks"):
        check(models, narrow, head, tasks=["bitext"])


def test_a_student_wider_than_its_teacher(model: SentenceTransformer) -> None:
    short = SentenceTransformer(modules=list(model), truncate_dim=16, device="cpu")
    with pytest.raises(ValueError, match=r"a-part has 32 .* has 16\. Choose a narrower backbone"):
        check({"teacher": short, "model": model})


def test_several_teachers(model: SentenceTransformer) -> None:
    teachers = {"one": {"model": "teacher"}, "two": {"model": "other"}}
    models, several = {"teacher": model, "model": model}, {"teacher": None, "teachers": teachers, "corpus": None}
    several |= {"sources": {"x": 1}, "num_texts": 1}
    check(models, ensemble="concat", **several)  # its width is known when the corpus is
    check(models, {"hidden_size": 16}, ensemble="concat", teacher_dim=16, **several)
    with pytest.raises(ValueError, match=r"has 16 numbers .* has 32\. Choose --teacher_dim 16"):
        check(models, {"hidden_size": 16}, **several)
    with pytest.raises(ValueError, match=r"the teacher teacher, 32\. Leave bitext out of --tasks"):
        check(models, {"hidden_size": 16}, teacher_dim=16, **several, tasks=["bitext"])


def test_a_plain_function_is_no_backbone(model: SentenceTransformer) -> None:
    function = function_model(lambda texts: np.ones((len(texts), 32)), TeacherSpec(teacher="ones"), model.tokenizer)
    check({"teacher": function, "model": model})
    with pytest.raises(ValueError, match="a-part: model is a plain function without layers. Choose another backbone"):
        check({"teacher": model, "model": function})
