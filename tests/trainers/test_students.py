"""Students: what each takes from its source, the control, and that they save and load without a trace of a local path."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hf_distill.trainers.students import (
    LONG_LENGTH,
    build_student,
    has_position_table,
    is_deltanet,
    spaced_layers,
    wrap_encoder,
)

TEXTS = ["a small river runs past the old mill", "the train", "two children were playing with a red ball"]


@pytest.fixture(scope="module")
def source(tiny_sentence_transformer: str) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_sentence_transformer), device="cpu")


def test_deltanet_takes_the_source_weights(source: SentenceTransformer) -> None:
    student = build_student("deltanet", source)
    theirs, ours = source[0].auto_model, student[0].auto_model
    assert torch.equal(ours.embeddings.word_embeddings.weight, theirs.embeddings.word_embeddings.weight)
    assert torch.equal(ours.layers[1].mixer.query.weight, theirs.encoder.layer[1].attention.self.query.weight)
    assert ours.config.teacher_layers == [0, 1]


def test_random_control_has_the_shape_but_not_the_weights(source: SentenceTransformer) -> None:
    student, control = (build_student("deltanet", source, init=init) for init in ("teacher", "random"))
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (student, control)]
    assert shapes[0] == shapes[1]
    words = [model[0].auto_model.embeddings.word_embeddings.weight for model in (student, control)]
    assert not torch.allclose(words[0], words[1], atol=1e-3)


def test_the_seed_decides_the_control(source: SentenceTransformer) -> None:
    first, same, other = (build_student("static", source, init="random", static_dim=8, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.encode(TEXTS), same.encode(TEXTS))
    assert not np.allclose(first.encode(TEXTS), other.encode(TEXTS))


def test_all_layers_are_the_source_itself(source: SentenceTransformer) -> None:
    student = build_student("layers", source)
    np.testing.assert_allclose(student.encode(TEXTS), source.encode(TEXTS), atol=1e-6)


def test_shallow_student_has_no_dropout(source: SentenceTransformer) -> None:
    student = build_student("layers", source, num_layers=1).train()
    features = student.preprocess(["a text"])
    first, second = (student(dict(features))["sentence_embedding"] for _ in range(2))
    assert torch.equal(first, second)


def test_shallow_student_leaves_the_source_alone(source: SentenceTransformer) -> None:
    student = build_student("layers", source, num_layers=1)
    assert len(student[0].auto_model.encoder.layer) == 1 == student[0].auto_model.config.num_hidden_layers
    assert len(source[0].auto_model.encoder.layer) == 2


@pytest.mark.parametrize("kind", ["deltanet", "layers", "static"])
def test_saved_students_load_and_name_no_folder(kind: str, source: SentenceTransformer, tmp_path: Path) -> None:
    student = build_student(kind, source, **({"static_dim": 8} if kind == "static" else {}))
    student.save(str(tmp_path / "student"))
    loaded = SentenceTransformer(str(tmp_path / "student"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(TEXTS), student.encode(TEXTS))
    for file in (tmp_path / "student").rglob("*.json"):
        assert "tmp" not in file.read_text(encoding="utf-8"), file


def test_a_tokenizer_that_pads_on_the_left(source: SentenceTransformer, tmp_path: Path) -> None:
    """Its texts are padded on the right, here and after loading: the others of a batch never move its positions."""
    tokenizer = copy.deepcopy(source.tokenizer)
    tokenizer.padding_side = "left"
    student = wrap_encoder(source[0].auto_model, tokenizer, 64)
    assert tokenizer.padding_side == "left"
    student.save_pretrained(str(tmp_path), create_model_card=False)
    for model in (student, SentenceTransformer(str(tmp_path), device="cpu")):
        alone = np.concatenate([model.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(model.encode(TEXTS), alone, atol=1e-6)
    np.testing.assert_allclose(alone, source.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(("layers", "expected"), [(1, [5]), (2, [0, 5]), (3, [0, 2, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_spaced_layers(layers: int, expected: list[int]) -> None:
    assert spaced_layers(layers, 6) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rnn"}, "choices are"),
        ({"kind": "layers", "init": "zeros"}, "choices are"),
        ({"kind": "layers", "mixer": "ridge"}, "configure a DeltaNet"),
        ({"kind": "layers", "num_layers": 7}, "between 1 and"),
        ({"kind": "static", "static_dim": 4000}, "static_dim"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str, source: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match=message):
        build_student(source=source, **arguments)


def finished(source: SentenceTransformer, folder: Path, **fields) -> SentenceTransformer:
    """A DeltaNet with weights of its own, saved and loaded as `init_from` loads it."""
    student = build_student("deltanet", source, mixer="ridge", local_size=3, **fields)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    student.save_pretrained(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("fields", [{}, {"position_embedding_type": "rotary"}], ids=["table", "rotary"])
def test_a_finished_deltanet_goes_on_as_its_copy(fields: dict, source: SentenceTransformer, tmp_path: Path) -> None:
    start = finished(source, tmp_path, **fields)
    student = build_student("deltanet", start, local_size=3)
    assert is_deltanet(student)
    assert not is_deltanet(source)
    assert student.max_seq_length == start.max_seq_length == (LONG_LENGTH if fields else 64)
    np.testing.assert_array_equal(student.encode(TEXTS), start.encode(TEXTS))
    with torch.no_grad():
        student[0].auto_model.embeddings.word_embeddings.weight.zero_()
    assert start[0].auto_model.embeddings.word_embeddings.weight.any(), "a copy, not the same tensors"
    control = build_student("deltanet", start, init="random")
    assert control[0].auto_model.config.mixer == "ridge"
    assert not np.allclose(control.encode(TEXTS), start.encode(TEXTS), atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"local_size": 5}, "not built with local_size=5"),
        ({"num_layers": 1}, "not built with num_layers=1"),
        ({"kind": "layers"}, "no attention layers"),
    ],
)
def test_a_copy_of_a_deltanet_is_what_it_is(
    arguments: dict, message: str, source: SentenceTransformer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build_student(**{"kind": "deltanet", "source": finished(source, tmp_path), **arguments})


LONG = " ".join(
    ["two children were playing with a red ball near the gate"] * 20 + ["the storm is seen before the thunder"]
)


@pytest.mark.parametrize("positions", ["rotary", "none"])
def test_without_a_table_of_positions_long_texts_are_read_to_their_end(
    positions: str, source: SentenceTransformer, tmp_path: Path
) -> None:
    student = build_student("deltanet", source, position_embedding_type=positions)
    assert student.max_seq_length == LONG_LENGTH
    assert not has_position_table(student)
    ids = student.tokenizer(LONG, return_tensors="pt").input_ids
    assert ids.shape[1] > 128, "longer than the source reads, and than its table"
    whole = student[0].auto_model.embed_document(ids)
    np.testing.assert_allclose(student.encode(LONG), torch.nn.functional.normalize(whole)[0].numpy(), atol=1e-5)
    student.save_pretrained(str(tmp_path), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert loaded.max_seq_length == LONG_LENGTH
    np.testing.assert_array_equal(loaded.encode(LONG), student.encode(LONG))
    loaded.max_seq_length = 64
    assert not np.allclose(loaded.encode(LONG), student.encode(LONG), atol=1e-3)


def test_the_default_student_reads_what_its_source_reads(source: SentenceTransformer) -> None:
    for student in (build_student("deltanet", source), build_student("layers", source)):
        assert student.max_seq_length == source.max_seq_length == 64
        assert student[0].auto_model.config.max_position_embeddings == 128
        assert has_position_table(student)
    control = build_student("deltanet", source, init="random", position_embedding_type="none")
    assert control.max_seq_length == LONG_LENGTH
    shorter = build_student("deltanet", source, position_embedding_type="none", max_position_embeddings=512)
    assert shorter.max_seq_length == 512
    assert has_position_table(build_student("static", source, static_dim=8)), (
        "a table of words is limited by nothing else"
    )
