"""The objective: one student forward for all terms, heads it owns, and terms that mean what the losses mean."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer, models

from hf_distill.data.collators import DistillCollator
from hf_distill.losses import embedding as E
from hf_distill.losses.hidden import hidden_state_loss, pca_projection
from hf_distill.models.deltanet import HfdDeltaNetModel
from hf_distill.trainers.objective import DistillObjective, ProjectionHead, student_encoder

ALL = ("cosine", "l2", "gram", "rkd_distance", "rkd_angle", "spearman", "ranking", "contrastive", "hidden")


@pytest.fixture(scope="module")
def batch(live, tiny_texts):
    """Eight pairs with the live teacher's answer."""
    rows = [{"anchor": a, "positive": b} for a, b in zip(tiny_texts[0:16:2], tiny_texts[1:16:2], strict=True)]
    inputs = DistillCollator(live.model.tokenizer, 64)(rows)
    signal = live.forward(inputs["input_ids"], inputs["attention_mask"])
    return {**inputs, "teacher_embedding": signal.embedding, "teacher_hidden_states": signal.hidden_states}


@pytest.fixture
def deltanet(live, tmp_path):
    """A delta rule student with a fast and a slow memory, from the teacher's weights."""
    encoder = HfdDeltaNetModel.from_teacher(live.encoder, mixer="delta_flip", memory="two_decay")
    encoder.save_pretrained(tmp_path)
    live.model.tokenizer.save_pretrained(tmp_path)
    transformer = models.Transformer(str(tmp_path), max_seq_length=64)
    return SentenceTransformer(modules=[transformer, models.Pooling(32, "mean"), models.Normalize()], device="cpu")


def weights(*terms: str) -> dict[str, float]:
    return dict.fromkeys(terms, 1.0)


def test_all_terms_share_one_student_forward(student, batch, config):
    args = config(**{f"{term}_weight": 1.0 for term in ALL})
    objective = DistillObjective(student, args, teacher_width=32, teacher_layers=[0, 1], teacher_hidden_width=32)
    calls = []
    student_encoder(student).embeddings.register_forward_hook(lambda *_: calls.append(1))
    result = objective(batch, weights(*ALL))
    assert len(calls) == 1
    assert set(result) == {"loss", *ALL}
    total = sum(result[term] for term in ALL)
    assert result["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert not any(result[term].requires_grad for term in ALL)
    result["loss"].backward()
    grads = [p.grad for n, p in student.named_parameters() if "pooler" not in n]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    assert student_encoder(student).config.output_hidden_states is False, "the student's config must stay untouched"


def test_terms_equal_the_losses_on_the_students_own_output(student, batch, config):
    objective = DistillObjective(
        student, config(hidden_weight=1.0), teacher_width=32, teacher_layers=[1, 0], teacher_hidden_width=32
    )
    with torch.no_grad():
        result = objective(batch, {"cosine": 2.0, "hidden": 0.5, "gram": 3.0, "contrastive": 1.0, "spearman": 0.0})
        out = student({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]})
        hidden = student_encoder(student)(
            batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    embedding, teacher = out["sentence_embedding"], batch["teacher_embedding"]
    expected = {
        "cosine": E.cosine_loss(embedding, teacher),
        "gram": E.gram_loss(embedding, teacher),
        "contrastive": E.contrastive_loss(embedding[0::2], embedding[1::2], 20.0, 0.1),
        "hidden": sum(
            hidden_state_loss(hidden[i + 1], batch["teacher_hidden_states"][t + 1], batch["attention_mask"])
            for i, t in enumerate((1, 0))
        )
        / 2,
    }
    assert set(result) == {"loss", *expected}
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value.item(), abs=1e-6), name
    total = 2 * expected["cosine"] + 0.5 * expected["hidden"] + 3 * expected["gram"] + expected["contrastive"]
    assert result["loss"].item() == pytest.approx(total.item(), abs=1e-5)


def test_memory_terms_of_a_deltanet_student(deltanet, batch, config):
    args = config(orthogonality_weight=1.0, state_decorrelation_weight=1.0)
    objective = DistillObjective(deltanet, args, teacher_width=32)
    calls = []
    student_encoder(deltanet).embeddings.register_forward_hook(lambda *_: calls.append(1))
    result = objective(batch, weights("cosine", "orthogonality", "state_decorrelation"))
    result["loss"].backward()
    assert len(calls) == 1
    assert result["orthogonality"] > 0
    assert 0 < result["state_decorrelation"] <= 1
    assert student_encoder(deltanet).layers[0].mixer.key.weight.grad.abs().sum() > 0


def test_matryoshka_reaches_the_prefix(student, batch, config):
    args = config(matryoshka_dims=[32, 8], cosine_weight=1.0, gram_weight=1.0, contrastive_weight=1.0)
    objective = DistillObjective(student, args, teacher_width=32)
    with torch.no_grad():
        result = objective(batch, weights("cosine", "gram", "contrastive"))
        embedding = student({k: batch[k] for k in ("input_ids", "attention_mask")})["sentence_embedding"]
    teacher = batch["teacher_embedding"]
    full, prefix = E.cosine_loss(embedding, teacher), E.cosine_loss(embedding[:, :8], teacher[:, :8])
    assert result["cosine"].item() == pytest.approx((full + prefix).item() / 2, abs=1e-6)
    gram = E.gram_loss(embedding, teacher) + E.gram_loss(embedding[:, :8], teacher)
    assert result["gram"].item() == pytest.approx(gram.item() / 2, abs=1e-6)
    with pytest.raises(ValueError, match="exceed the student's width"):
        DistillObjective(student, config(matryoshka_dims=[64]), teacher_width=32)


def test_matryoshka_works_with_a_head(student, batch, config):
    args = config(matryoshka_dims=[32, 16], embedding_projection="learned")
    objective = DistillObjective(student, args, teacher_width=48)
    wide = {**batch, "teacher_embedding": torch.nn.functional.pad(batch["teacher_embedding"], (0, 16), value=0.1)}
    objective(wide, weights("cosine"))["loss"].backward()
    assert objective.embedding_head.weight.grad.abs().sum() > 0


def test_widths_that_differ_name_both_remedies(student, config):
    with pytest.raises(ValueError, match=r"project_cache.*embedding_projection='pca'"):
        DistillObjective(student, config(), teacher_width=48)
    args = config(hidden_weight=1.0, hidden_projection="none")
    with pytest.raises(ValueError, match="hidden_projection='pca'"):
        DistillObjective(student, args, teacher_width=32, teacher_layers=[0, 1], teacher_hidden_width=48)
    assert DistillObjective(student, config(cosine_weight=0, gram_weight=1), teacher_width=48).embedding_head is None


def test_heads_are_parameters_and_leave_the_student_clean(student, config):
    args = config(hidden_weight=1.0, embedding_projection="learned")
    objective = DistillObjective(student, args, teacher_width=48, teacher_layers=[0, 1], teacher_hidden_width=48)
    heads = objective.head_state()
    assert len(heads) == 6
    names = dict(objective.named_parameters())
    assert all(name in names for name in heads)
    assert not any("head" in name for name in student.state_dict())
    other = {name: torch.randn_like(value) for name, value in heads.items()}
    objective.load_head_state(other)
    assert all(torch.equal(objective.head_state()[name], other[name]) for name in other)
    with pytest.raises(ValueError, match="do not fit"):
        objective.load_head_state({"embedding_head.weight": torch.zeros(3, 3)})


def test_pca_head_starts_where_the_teachers_vectors_are():
    torch.manual_seed(0)
    samples = torch.randn(200, 8) @ torch.randn(8, 24) + 1.0
    head = ProjectionHead(8, 24)
    components, mean = pca_projection(samples, 8)
    head.set_pca(components, mean)
    coordinates = (samples - mean) @ components.T
    assert torch.allclose(head(coordinates), samples, atol=1e-3)


def test_bad_batches(student, batch, config):
    objective = DistillObjective(student, config(contrastive_weight=1.0), teacher_width=32)
    with pytest.raises(ValueError, match="needs pairs"):
        objective({**batch, "num_columns": 1}, weights("contrastive"))
    with pytest.raises(ValueError, match="always above 0"):
        objective(batch, {"cosine": 0.0})
