"""The stages on tiny models: what stage 2 learns from, for every kind of student, and what stage 1 shares with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from transformers import AutoTokenizer, BertConfig, BertModel

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.projection import ProjectedCache
from hf_distill.trainers import embedding_stages
from hf_distill.trainers.alignment_config import MixerAlignmentConfig
from hf_distill.trainers.embedding_stages import EmbeddingRecipe, align, distil, new_student, teacher_signal, tokenize

WIDE = 48
# the live teacher may run in bf16, and a cache is float16
CLOSE = 0.03


def recipe_of(**fields: Any) -> EmbeddingRecipe:
    return EmbeddingRecipe(**{"teacher": "tiny", "sources": {"mine.jsonl": 1}, "tasks": ["stsb"], **fields})


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rows_of(signal: TeacherCache) -> np.ndarray:
    return signal.embeddings(np.arange(len(signal)))


def methods_of(signal: TeacherCache) -> list[str]:
    return [projection.method for projection in signal.manifest.projections]


@pytest.fixture(scope="module")
def wide(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> LiveTeacher:
    """A teacher of 48 dimensions with the tiny one's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {"hidden_size": WIDE, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        encoder = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)).eval()
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10.0)  # as in `tiny_bert`: embeddings that differ
    folder = str(tmp_path_factory.mktemp("wide"))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = models.Transformer(folder, max_seq_length=64)
    modules = [transformer, models.Pooling(WIDE, pooling_mode="mean"), models.Normalize()]
    return LiveTeacher(SentenceTransformer(modules=modules, device="cpu"), dtype="float32")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "zeros"}, "init must be one of teacher, random, but is 'zeros'"),
        ({"student": "rnn"}, "student must be one of deltanet, layers, static"),
        (
            {"student": "static", "num_layers": 2},
            "num_layers=2 has no .* static .*Remove num_layers .* deltanet or layers",
        ),
        (
            {"static_dim": 8},
            "static_dim=8 has no effect on a deltanet student. Remove static_dim .* student to static",
        ),
        ({"student": "layers", "static_dim": 8}, "static_dim=8 has no effect on a layers student"),
        (
            {"student": "layers", "student_config": '{"mixer": "ridge"}'},
            "student_config={'mixer': 'ridge'} has no effect",
        ),
        ({"student": "layers", "align_minutes": 0.5}, "align_minutes=0.5 has no effect on a layers student"),
        (
            {"student": "static", "align_learning_rate": 0.1},
            "align_learning_rate=0.1 has no effect on a static student",
        ),
        ({"first_layer_mix": "concat"}, "first_layer_mix='concat' has no effect without a first_layer_weight"),
        ({"student": "static", "align_token_budget": 9}, "align_token_budget=9 has no .*, or set student to deltanet"),
    ],
)
def test_a_field_that_has_no_effect_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"student": "layers", "num_layers": 1, "align_minutes": 0, "student_config": {}},
        {"student": "static", "static_dim": 8, "align_minutes": 4.0, "align_token_budget": 4096},
        {"num_layers": 1, "static_dim": 256, "align_minutes": 0.5},
        {"init": "random", "align_minutes": 6.0},
    ],
    ids=["switched off", "defaults", "deltanet", "the control of a config with a stage 1"],
)
def test_what_asks_for_nothing_is_no_contradiction(fields: dict[str, Any]) -> None:
    recipe = recipe_of(**fields)
    assert {name: getattr(recipe, name) for name in fields} == fields


def test_a_layers_student_learns_from_a_cache_with_the_first_layer_in_it(
    live: LiveTeacher, texts: Dataset, config: Callable, tiny_texts: list[str], tmp_path: Path
) -> None:
    recipe, args = recipe_of(student="layers", num_layers=1, first_layer_weight=0.5), config()
    student = new_student(recipe, live.model, 1)
    (kept,) = student[0].auto_model.encoder.layer
    last = live.encoder.encoder.layer[-1]
    assert torch.equal(kept.attention.self.query.weight, last.attention.self.query.weight)

    signal = teacher_signal(live, recipe, args, texts, student, live)
    assert type(signal) is TeacherCache, "it is as wide as the student: nothing is projected"
    assert signal.path.parent == Path(args.output_dir) / "teacher_cache"
    with torch.no_grad():
        words = [
            live.encoder.embeddings(live.model.tokenizer(text, return_tensors="pt").input_ids)
            for text in tiny_texts[:8]
        ]
    first = unit(np.stack([vectors[0].mean(dim=0).numpy() for vectors in words]))
    pure = live.model.encode(tiny_texts[:8])
    cached = signal.embeddings(np.arange(8))
    np.testing.assert_allclose(cached, unit(pure + 0.5 * first), atol=CLOSE)
    assert np.abs(cached - pure).max() > 2 * CLOSE, "without the first layer the test would show nothing"

    again = teacher_signal(live, recipe, args, texts, student, live)
    assert (signal.report.rows, signal.report.reused_rows) == (64, 0)
    assert (again.report.rows, again.report.reused_rows) == (0, 64), "what is in the cache is not embedded again"
    elsewhere = recipe_of(student="layers", num_layers=1, cache_dir=str(tmp_path / "shared"))
    plain = teacher_signal(live, elsewhere, args, texts, student, live)
    assert plain.path.parent == tmp_path / "shared"
    np.testing.assert_allclose(plain.embeddings(np.arange(8)), pure, atol=CLOSE)


def test_texts_that_are_left_out_are_not_embedded_either(live: LiveTeacher, texts: Dataset, config: Callable) -> None:
    recipe, tokenizer = recipe_of(student="layers"), live.model.tokenizer
    lengths = np.array([len(ids) for ids in tokenizer(texts["text"][:])["input_ids"]])
    args = config(max_length=16, too_long="drop")
    short = tokenize(texts, tokenizer, recipe, args)
    assert 0 < len(short) == (lengths <= 16).sum() < len(texts)
    assert len(teacher_signal(live, recipe, args, short, live.model, live)) == len(short)
    for_a_table = tokenize(texts, tokenizer, recipe_of(student="static"), args)
    assert len(for_a_table) == (lengths - 2 <= 16).sum() > len(short), "a table counts no special tokens"

    cut = tokenize(texts, tokenizer, recipe, config(max_length=16))
    assert [len(ids) for ids in cut["text_input_ids"]] == list(np.minimum(lengths, 16))
    with pytest.raises(ValueError, match="max_length=16"):
        tokenize(texts, tokenizer, recipe, config(max_length=16, too_long="error"))


def test_layer_wise_terms_ask_the_live_teacher(live: LiveTeacher, texts: Dataset, config: Callable) -> None:
    recipe, args = recipe_of(student="layers", first_layer_weight=0.2), config(hidden_weight=1.0)
    signal = teacher_signal(live, recipe, args, texts, live.model, live)
    assert isinstance(signal, LiveTeacher)
    assert len(signal.model) == len(live.model) + 1, "with the first layer mixed in"
    assert not Path(args.output_dir).exists()


def test_a_text_of_several_columns_is_embedded_once(
    live: LiveTeacher, config: Callable, tiny_texts: list[str]
) -> None:
    one, two, three = tiny_texts[:3]
    pairs = Dataset.from_dict({"anchor": [one, two], "positive": [two, three]})
    signal = teacher_signal(live, recipe_of(student="layers"), config(), pairs, live.model, live)
    assert len(signal) == 3
    assert list(signal.rows_for([three, one])) == [2, 0]


def test_a_static_student_learns_principal_directions(live: LiveTeacher, texts: Dataset, config: Callable) -> None:
    recipe, args = recipe_of(student="static", static_dim=8), config(max_steps=2, learning_rate=1e-2)
    student = new_student(recipe, live.model, 1)
    assert student.get_embedding_dimension() == 8
    signal = teacher_signal(live, recipe, args, texts, student, live)
    assert isinstance(signal, ProjectedCache)
    assert methods_of(signal) == ["pca", "pca_rotated"], "the table's own principal directions are others"
    whole = TeacherCache.embeddings(signal, np.arange(len(signal)))
    directions = np.linalg.svd(whole.astype(np.float64))[2][:8]
    best = unit(whole @ directions.T)
    np.testing.assert_allclose(rows_of(signal) @ rows_of(signal).T, best @ best.T, atol=1e-3)
    start = student.encode(texts["text"])
    assert (rows_of(signal) * start).sum(axis=-1).mean() > np.abs((best * start).sum(axis=-1)).mean() + 0.1

    table = student[0].embedding.weight
    before = table.detach().clone()
    trainer = distil(student, args, texts, signal, [])
    assert trainer.state.global_step == 2
    assert table.isfinite().all()
    assert not torch.equal(table.detach(), before)


def test_a_wider_teacher_is_projected_and_turned_to_where_the_student_starts(
    wide: LiveTeacher, live: LiveTeacher, texts: Dataset, config: Callable, tiny_texts: list[str]
) -> None:
    recipe = recipe_of(init_from="the tiny one", student_config={"mixer": "ridge", "local_size": 3})
    student = new_student(recipe, live.model, 1)
    words = student[0].auto_model.embeddings.word_embeddings.weight
    assert torch.equal(words, live.encoder.embeddings.word_embeddings.weight)

    turned = teacher_signal(wide, recipe, config(), texts, student, live)
    assert turned.dim == 32
    assert methods_of(turned) == ["pca", "pca_rotated"]
    assert turned.projection.method == "pca_rotated"
    plain = teacher_signal(wide, recipe, config(), texts, student, wide)
    assert plain.projection.method == "pca"
    np.testing.assert_allclose(rows_of(turned) @ rows_of(turned).T, rows_of(plain) @ rows_of(plain).T, atol=1e-3)
    source = live.model.encode(tiny_texts)
    closeness = [float((rows_of(signal) * source).sum(axis=-1).mean()) for signal in (plain, turned)]
    assert closeness[1] > closeness[0] + 0.1

    trainer = distil(student, config(max_steps=1), texts, turned, [])
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_similarities_alone_need_no_projection(
    wide: LiveTeacher, live: LiveTeacher, texts: Dataset, config: Callable
) -> None:
    recipe = recipe_of(init_from="the tiny one", first_layer_weight=0.5, first_layer_mix="concat")
    student, args = new_student(recipe, live.model, 1), config(max_steps=1, cosine_weight=0.0, gram_weight=1.0)
    signal = teacher_signal(wide, recipe, args, texts, student, live)
    assert (signal.dim, methods_of(signal)) == (2 * wide.model.get_embedding_dimension(), [])
    trainer = distil(student, args, texts, signal, [])
    assert trainer.state.log_history[0]["loss/gram"] > 0
    assert teacher_signal(wide, recipe, config(), texts, student, live).dim == 32, "the cosine needs the student's"


def test_stage_1_needs_attention_to_imitate(live: LiveTeacher) -> None:
    finished = new_student(recipe_of(), live.model, 1)
    with pytest.raises(ValueError, match="a run's model is a DeltaNet .* Set align_minutes to 0"):
        new_student(recipe_of(init_from="a run's model", align_minutes=2.0), finished, 1)
    going_on = new_student(recipe_of(init_from="a run's model", align_minutes=0.0), finished, 1)
    assert torch.equal(*(model[0].auto_model.layers[0].mixer.query.weight for model in (finished, going_on)))


def test_a_table_of_another_source_is_turned_to_its_own_start(
    wide: LiveTeacher, live: LiveTeacher, texts: Dataset, config: Callable
) -> None:
    recipe = recipe_of(student="static", static_dim=8, init_from="the tiny one")
    signal = teacher_signal(wide, recipe, config(), texts, new_student(recipe, live.model, 1), live)
    assert (signal.dim, methods_of(signal)) == (8, ["pca", "pca_rotated"])


@pytest.mark.parametrize("precision", [{"bf16": False}, {"bf16": True}, {"bf16": False, "fp16": True}])
def test_stage_1_runs_as_the_command_line_says(
    precision: dict[str, bool], live: LiveTeacher, texts: Dataset, config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field differs from what stage 1 would take by itself on some machine; all reach its arguments."""

    class Captured(Exception):  # noqa: N818 (control flow, not an error)
        pass

    def stand_in(_: Any, config: MixerAlignmentConfig, *__: Any, **___: Any) -> None:
        raise Captured(config)

    asked: dict[str, Any] = {}

    def spy(**fields: Any) -> MixerAlignmentConfig:
        asked.update(fields)
        return MixerAlignmentConfig(**fields)

    monkeypatch.setattr(embedding_stages, "MixerAlignmentTrainer", stand_in)
    monkeypatch.setattr(embedding_stages, "MixerAlignmentConfig", spy)
    machine = {"tf32": False, "use_cpu": True, "full_determinism": True, "ddp_timeout": 77, "seed": 7}
    others = {"max_grad_norm": 0.5, "dataloader_num_workers": 2, "max_length": 48, "num_train_epochs": 2.0}
    args = config(**precision, **machine, **others, weight_decay=0.3)
    with pytest.raises(Captured) as caught:
        align(live.model, recipe_of(align_minutes=0.5, align_learning_rate=2e-3), args, live, texts)
    (found,) = caught.value.args
    wanted = {"fp16": False} | precision | machine | others
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert asked["use_cpu"] is True, "where there is no GPU it would be on without being asked for"
    assert (found.max_minutes, found.learning_rate) == (0.5, 2e-3)
    assert found.weight_decay == 0.0, "stage 1 has its own"
