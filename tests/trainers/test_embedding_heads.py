"""Heads for teachers of another width, and how long a text may be that student and teacher both read."""

from __future__ import annotations

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.embedding import _UNTAUGHT_LENGTH
from hf_distill.trainers.students import LONG_LENGTH, build_student, wrap_encoder

HIDDEN = {"cosine_weight": 0.0, "hidden_weight": 1.0, "per_device_train_batch_size": 64, "max_steps": 1}


def bert(source: SentenceTransformer, width: int, layers: int, positions: int = 128) -> SentenceTransformer:
    """A random BERT of another shape with the tiny tokenizer; its states have means, as those of trained models."""
    fields = {"num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(5)
    encoder = BertModel(
        BertConfig(vocab_size=len(source.tokenizer), hidden_size=width, max_position_embeddings=positions, **fields)
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter)) if parameter.ndim == 2 or "bias" in name else None
    return wrap_encoder(encoder, source.tokenizer, 64)


@pytest.fixture(scope="module")
def wide(live: LiveTeacher) -> LiveTeacher:
    """A wider and deeper teacher than the 32-wide student of two layers."""
    return LiveTeacher(bert(live.model, 48, 4), dtype="float32", device="cpu")


def first_loss(trainer) -> float:
    """The hidden term before the first step, over all 64 texts."""
    return next(entry["loss/hidden"] for entry in trainer.state.log_history if "loss/hidden" in entry)


@pytest.mark.parametrize("kind", ["learned", "pca"])
def test_hidden_heads_get_gradients_and_move(make_trainer, wide, kind):
    trainer = make_trainer(teacher=wide, hidden_projection=kind, **HIDDEN | {"max_steps": 3})
    heads = trainer.objective.hidden_heads
    assert [tuple(head.weight.shape) for head in heads] == [(48, 32)] * 2
    assert trainer.source.hidden_layers == [0, 3]
    before = {name: value.clone() for name, value in heads.named_parameters()}
    gradients = {name: [] for name in before}
    for name, parameter in heads.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradients[name].append(float(gradient.norm())))
    trainer.train()
    for name, parameter in heads.named_parameters():
        assert len(gradients[name]) == 3
        assert min(gradients[name]) > 0, name
        assert not torch.equal(parameter, before[name]), name
    losses = [entry["loss/hidden"] for entry in trainer.state.log_history if "loss/hidden" in entry]
    assert losses[-1] < losses[0]


def test_pca_starts_the_hidden_heads_from_the_teachers_own_layers(make_trainer, wide, tiny_texts):
    trainer = make_trainer(teacher=wide, hidden_projection="pca", **HIDDEN)
    batch = wide.model.preprocess(tiny_texts)
    states = wide.forward(batch["input_ids"], batch["attention_mask"]).hidden_states
    for head, layer in zip(trainer.objective.hidden_heads, (0, 3), strict=True):
        rows = states[layer + 1][batch["attention_mask"].bool()]
        weight = head.weight.detach()
        torch.testing.assert_close(head.bias.detach(), rows.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(weight.T @ weight, torch.eye(32), atol=1e-4, rtol=1e-4)
        variances = ((rows - rows.mean(0)) @ weight).var(0)
        assert (variances[:-1] >= variances[1:] - 1e-4).all(), "the first coordinate is the first component"


@pytest.mark.parametrize("width", [32, 64])
def test_pca_starts_lower_than_a_random_head(make_trainer, live, wide, width):
    """Also where the student, 64 wide, has more coordinates than the teacher has components."""
    student = bert(live.model, width, 2)
    losses = {}
    for kind in ("learned", "pca"):
        trainer = make_trainer(student=copy.deepcopy(student), teacher=wide, hidden_projection=kind, **HIDDEN)
        if kind == "pca" and width > 48:
            for head in trainer.objective.hidden_heads:
                assert head.weight[:, :48].abs().sum() > 0
                assert not head.weight[:, 48:].any()
        trainer.train()
        losses[kind] = first_loss(trainer)
        assert all(head.weight[:, -1].any() for head in trainer.objective.hidden_heads), "every coordinate trains"
    assert losses["pca"] < 0.9 * losses["learned"]


def test_pca_head_of_a_student_with_a_wider_embedding(make_trainer, live, wide):
    trainer = make_trainer(student=bert(live.model, 64, 2), teacher=wide, embedding_projection="pca", max_steps=2)
    assert not trainer.objective.embedding_head.weight[:, 48:].any()
    trainer.train()
    assert trainer.objective.embedding_head.weight[:, 48:].any()


def test_training_length_without_a_table_of_positions(make_trainer, live, cache):
    """It is the teacher's unless it is given: the student would take 8,192 tokens, to which no teacher answers."""

    def length(teacher, **fields) -> int:
        student = build_student("deltanet", live.model, position_embedding_type="rotary")
        assert student.max_seq_length == LONG_LENGTH
        return make_trainer(student=student, teacher=teacher, **fields).max_length

    assert length(live) == length(cache) == 64
    assert length(None, cosine_weight=0.0, orthogonality_weight=1.0) == _UNTAUGHT_LENGTH
    assert length(cache, max_length=1024) == 1024
    assert length(live, max_length=100) == 100
    with pytest.raises(ValueError, match=r"max_length=1024.* positions for 128 only.* Lower max_length"):
        length(live, max_length=1024)
    with pytest.raises(ValueError, match="exceeds the student's max_seq_length=8192"):
        length(cache, max_length=10_000)
    assert make_trainer(teacher=live).max_length == 64
