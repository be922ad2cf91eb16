"""`from_teacher` copies what it says, from every supported architecture, and refuses the rest with a remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.models.deltanet import HfdDeltaNetModel

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
TEACHERS = {
    "bert": (BertModel, BertConfig, 0),
    "roberta": (RobertaModel, RobertaConfig, 2),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, 2),
    "camembert": (CamembertModel, CamembertConfig, 2),
    "mpnet": (MPNetModel, MPNetConfig, 2),
}


def _teacher(name: str, **fields: Any) -> tuple[PreTrainedModel, int]:
    torch.manual_seed(0)
    model_class, config_class, offset = TEACHERS[name]
    model = model_class(config_class(**(SIZES | fields)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), offset


@pytest.mark.parametrize("name", list(TEACHERS))
def test_every_claimed_weight_is_copied(name: str) -> None:
    teacher, offset = _teacher(name)
    student = HfdDeltaNetModel.from_teacher(teacher, conv_size=3, hidden_dropout_prob=0.15)
    assert not student.training
    assert student.config.teacher_layers == [0, 1, 2, 3]
    assert student.config.max_position_embeddings == 40 - offset
    assert student.config.pad_token_id == teacher.config.pad_token_id
    assert (student.config.hidden_dropout_prob, student.config.layer_norm_eps) == (0.15, teacher.config.layer_norm_eps)
    for layer, block in zip(student.layers, teacher.encoder.layer, strict=True):
        attention = block.attention
        if name == "mpnet":
            originals = (attention.attn.q, attention.attn.k, attention.attn.v, attention.attn.o)
            norm = attention.LayerNorm
        else:
            originals = (*(getattr(attention.self, n) for n in ("query", "key", "value")), attention.output.dense)
            norm = attention.output.LayerNorm
        copies = (layer.mixer.query, layer.mixer.key, layer.mixer.value, layer.mixer.output)
        pairs = [*zip(copies, originals, strict=True), (layer.mixer_norm, norm)]
        pairs += [(layer.intermediate, block.intermediate.dense), (layer.output, block.output.dense)]
        for copy, original in [*pairs, (layer.output_norm, block.output.LayerNorm)]:
            assert torch.equal(copy.weight, original.weight)
            assert torch.equal(copy.bias, original.bias)
            assert copy.weight is not original.weight


@pytest.mark.parametrize("name", list(TEACHERS))
def test_embeddings_equal_the_teachers(name: str) -> None:
    """Also the position of the first token, which RoBERTa and MPNet count from the padding id."""
    teacher, _ = _teacher(name)
    student = HfdDeltaNetModel.from_teacher(teacher)
    ids = torch.randint(5, 60, (2, 12))
    ours = student(ids, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(ours, teacher(ids, output_hidden_states=True).hidden_states[0])
    assert (
        student(torch.randint(5, 60, (1, student.config.max_position_embeddings))).last_hidden_state.isfinite().all()
    )


def test_layer_maps() -> None:
    teacher, _ = _teacher("bert")
    assert HfdDeltaNetModel.from_teacher(teacher, 2).config.teacher_layers == [1, 3]
    assert HfdDeltaNetModel.from_teacher(teacher, 3).config.teacher_layers == [0, 1, 3]
    assert HfdDeltaNetModel.from_teacher(teacher, 1).config.teacher_layers == [3]
    deeper = HfdDeltaNetModel.from_teacher(teacher, layer_map=[0, 0, 1, 2, 3])
    assert deeper.config.num_hidden_layers == 5
    assert torch.equal(deeper.layers[1].output.weight, teacher.encoder.layer[0].output.dense.weight)
    student = HfdDeltaNetModel.from_teacher(teacher, 2, layer_map=[2, 0])
    assert torch.equal(student.layers[0].mixer.key.weight, teacher.encoder.layer[2].attention.self.key.weight)
    with pytest.raises(ValueError, match="explicit `layer_map`"):
        HfdDeltaNetModel.from_teacher(teacher, 5)
    with pytest.raises(ValueError, match="from 0 to 3"):
        HfdDeltaNetModel.from_teacher(teacher, layer_map=[0, 4])
    with pytest.raises(ValueError, match="2 entries"):
        HfdDeltaNetModel.from_teacher(teacher, 3, layer_map=[0, 1])


def test_choices_that_leave_weights_out() -> None:
    teacher, _ = _teacher("bert")
    rotary = HfdDeltaNetModel.from_teacher(teacher, position_embedding_type="rotary", max_position_embeddings=4096)
    assert rotary.embeddings.position_embeddings is None
    short = HfdDeltaNetModel.from_teacher(teacher, max_position_embeddings=8)
    assert torch.equal(short.embeddings.position_embeddings.weight, teacher.embeddings.position_embeddings.weight[:8])
    orthogonal = HfdDeltaNetModel.from_teacher(teacher, orthogonal_init=True).layers[0].mixer.query.weight
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(16), atol=1e-5, rtol=0)
    for fields in ({"mixer": "delta_flip", "memory": "joint_residual", "use_flux": True}, {"local_size": 3}):
        student = HfdDeltaNetModel.from_teacher(teacher, **fields)
        assert student(torch.randint(5, 60, (1, 9))).last_hidden_state.isfinite().all()


def test_head_norm_starts_at_the_size_of_the_teachers_answers() -> None:
    teacher, _ = _teacher("bert")
    student = HfdDeltaNetModel.from_teacher(teacher, mixer="delta_flip", use_head_norm=True)
    hidden = student(torch.randint(5, 60, (8, 30)), output_hidden_states=True).hidden_states[1]
    values = student.layers[1].mixer.value(hidden).unflatten(-1, (4, 4)).square().mean((0, 1, 3)).sqrt()
    ratio = student.layers[1].mixer.head_norm[:, 0] / values
    assert (ratio > 0.05).all()
    assert (ratio < 0.5).all()


def test_teacher_is_left_alone() -> None:
    teacher, _ = _teacher("bert")
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    student = HfdDeltaNetModel.from_teacher(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in teacher.state_dict().items())


def test_half_precision_teacher_gives_a_float32_student() -> None:
    teacher, _ = _teacher("bert")
    student = HfdDeltaNetModel.from_teacher(teacher.to(torch.bfloat16))
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_refusals_name_the_remedy() -> None:
    teacher, _ = _teacher("bert")
    with pytest.raises(ValueError, match=r"model\[0\].auto_model"):
        HfdDeltaNetModel.from_teacher(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'distilbert'. Supported: bert"):
        HfdDeltaNetModel.from_teacher(DistilBertModel(DistilBertConfig(dim=16, n_heads=4, n_layers=1, hidden_dim=24)))
    with pytest.raises(ValueError, match="base_model"):
        HfdDeltaNetModel.from_teacher(BertForMaskedLM(teacher.config))
    with pytest.raises(ValueError, match="is_decoder=False"):
        HfdDeltaNetModel.from_teacher(_teacher("bert", is_decoder=True)[0])
    with pytest.raises(ValueError, match="`hidden_size` is fixed"):
        HfdDeltaNetModel.from_teacher(teacher, hidden_size=32)
    with pytest.raises(ValueError, match="40 absolute positions.*'rotary' or 'none'"):
        HfdDeltaNetModel.from_teacher(teacher, max_position_embeddings=80)
    with pytest.raises(ValueError, match="Did you mean `local_size`"):
        HfdDeltaNetModel.from_teacher(teacher, locl_size=3)


def test_untrained_ridge_student_already_resembles_the_real_teacher(teacher_path: str) -> None:
    teacher, tokenizer = AutoModel.from_pretrained(teacher_path).eval(), AutoTokenizer.from_pretrained(teacher_path)
    student = HfdDeltaNetModel.from_teacher(teacher)
    texts = [
        "A man is playing a guitar.",
        "The quick brown fox jumps over the lazy dog.",
        "a person who writes novels or stories",
        "Interest rates were raised by the central bank on Thursday.",
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][:, :, None]
    with torch.no_grad():
        ours, theirs = ((m(**batch).last_hidden_state * mask).sum(1) / mask.sum(1) for m in (student, teacher))
    cosine = torch.cosine_similarity(ours, theirs)
    assert cosine.min() > 0.5
    assert cosine.mean() < 0.99  # it is not the teacher: the attention is gone
