"""MixerAlignmentTrainer: the right inputs and targets, only mixers train, all layers in one step."""

from __future__ import annotations

import shutil

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models
from transformers import MPNetConfig, MPNetModel

from hf_distill.losses.hidden import hidden_state_loss
from hf_distill.models.deltanet import HfdDeltaNetModel
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.alignment import AttentionProbe, MixerAlignmentTrainer, attention_output
from hf_distill.trainers.alignment_config import MixerAlignmentConfig


@pytest.fixture
def make_aligner(live, texts, tmp_path):
    def build(student=None, data=None, teacher=live, eval_dataset=None, **fields):
        defaults = {"output_dir": str(tmp_path / "align"), "max_steps": 3, "report_to": "none", "disable_tqdm": True}
        defaults |= {
            "bf16": False,
            "logging_steps": 1,
            "warmup_steps": 0,
            "learning_rate": 1e-2,
            "save_strategy": "no",
        }
        args = MixerAlignmentConfig(**{**defaults, **fields})
        if student is None:
            torch.manual_seed(0)
            student = HfdDeltaNetModel.from_teacher(live.encoder)
        return MixerAlignmentTrainer(student, args, texts if data is None else data, eval_dataset, teacher=teacher)

    return build


def inputs_of(trainer) -> dict:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def count_hooks(teacher) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in teacher.encoder.modules())


def test_probe_sees_what_enters_a_layer_and_what_its_attention_gives(live, tiny_texts):
    tokens = live.model.tokenizer(tiny_texts[:6], padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    hooks = count_hooks(live)
    inputs, outputs = AttentionProbe(live, [1, 0, 1]).record(ids, mask)
    assert count_hooks(live) == hooks, "the teacher must be left as it was"
    with torch.no_grad():
        hidden = live.encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer in (0, 1):
            block = live.encoder.encoder.layer[layer]
            assert torch.allclose(inputs[layer], hidden[layer], atol=1e-6)
            extended = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
            attended = block.attention.self(hidden[layer], extended)[0]
            assert torch.allclose(outputs[layer], block.attention.output.dense(attended), atol=1e-5)


def test_probe_stops_the_teacher_after_the_last_layer_it_needs(live):
    ran = []
    handle = live.encoder.encoder.layer[0].output.register_forward_hook(lambda *_: ran.append(0))
    try:
        AttentionProbe(live, [0]).record(torch.tensor([[2, 60, 3]]), torch.ones(1, 3, dtype=torch.long))
    finally:
        handle.remove()
    assert ran == []


def test_loss_is_the_relative_error_of_each_mixer(make_aligner):
    trainer = make_aligner(layer_reduction="mean")
    inputs = inputs_of(trainer)
    mask = inputs["attention_mask"]
    entering, given = trainer.probe.record(inputs["input_ids"], mask)
    with torch.no_grad():
        expected = [
            hidden_state_loss(layer.mixer(entering[i], mask), given[i], mask)
            for i, layer in enumerate(trainer.model.layers)
        ]
        loss = trainer.compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(sum(expected).item() / 2, rel=1e-6)


def test_only_mixers_train_and_every_layer_learns(make_aligner, texts):
    trainer = make_aligner(max_steps=40, logging_steps=20, eval_dataset=texts)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.evaluate()
    start = trainer.state.log_history[-1]
    trainer.train()
    trainer.evaluate()
    end = trainer.state.log_history[-1]
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all(".mixer." in name for name in changed)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert end["eval_loss"] < 0.8 * start["eval_loss"]
    assert all(end[term] < start[term] for term in ("eval_loss/layer_0", "eval_loss/layer_1"))


def test_no_gradient_crosses_layers(make_aligner):
    trainer = make_aligner()
    inputs = inputs_of(trainer)
    entering, given = trainer.probe.record(inputs["input_ids"], inputs["attention_mask"])
    assert not any(tensor.requires_grad for tensor in (*entering.values(), *given.values()))
    given[1] = given[1] * 5.0
    gradients = []
    for target in (given[1], -given[1]):
        trainer.model.zero_grad()
        trainer.objective(entering, {0: given[0], 1: target}, inputs["attention_mask"])["loss"].backward()
        gradients.append(trainer.model.layers[0].mixer.query.weight.grad.clone())
    assert torch.equal(*gradients)


def test_a_layer_map_picks_its_teacher_layers(make_aligner, live):
    student = HfdDeltaNetModel.from_teacher(live.encoder, num_hidden_layers=1)
    assert student.config.teacher_layers == [1]
    trainer = make_aligner(student)
    assert trainer.probe.layers == [1]
    trainer.train()


def test_resume_is_exact(make_aligner, tmp_path):
    fields = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    straight = make_aligner(**fields)
    straight.train()
    shutil.rmtree(tmp_path / "align" / "checkpoint-6")
    resumed = make_aligner(**fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "align" / "checkpoint-4"))
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    names = {path.name for path in (tmp_path / "align" / "checkpoint-4").iterdir()}
    assert "training_args.bin" not in names
    assert {"training_args.json", "tokenizer.json", "model.safetensors", "config.json"} <= names


def test_mpnet_teachers(tiny_bert, texts, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    encoder = MPNetModel(MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=130, **sizes))
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformer = models.Transformer(str(tmp_path), max_seq_length=64)
    teacher = LiveTeacher(
        SentenceTransformer(modules=[transformer, models.Pooling(32, "mean")], device="cpu"), "float32"
    )
    assert attention_output(teacher.encoder, 1) is teacher.encoder.encoder.layer[1].attention.attn.o
    student = HfdDeltaNetModel.from_teacher(teacher.encoder)
    args = MixerAlignmentConfig(str(tmp_path / "run"), max_steps=2, bf16=False, save_strategy="no", report_to="none")
    assert MixerAlignmentTrainer(student, args, texts, teacher=teacher).train().training_loss > 0


def test_nan_of_the_teacher_is_found_before_the_first_step(make_aligner, tiny_sentence_transformer, live):
    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].attention.output.dense.weight[0, 0] = float("nan")
    student = HfdDeltaNetModel.from_teacher(live.encoder)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trainer = make_aligner(student, teacher=LiveTeacher(model, "float32"), logging_steps=50)
    with pytest.raises(ValueError, match="gives NaN or infinity in the attention of layer 1. Check its weights"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_bad_input(make_aligner, live):
    with pytest.raises(ValueError, match="no rows"):
        make_aligner(data=Dataset.from_dict({"text": []}))
    with pytest.raises(ValueError, match=r"Row 0 .* 9999"):
        make_aligner(data=Dataset.from_dict({"text_input_ids": [[2, 9999]]}))
    with pytest.raises(ValueError, match="teacher=LiveTeacher"):
        make_aligner(teacher=None)
    student = HfdDeltaNetModel.from_teacher(live.encoder)
    student.config.teacher_layers = None
    with pytest.raises(ValueError, match="from_teacher"):
        make_aligner(student)
    student.config.teacher_layers = [0, 9]
    with pytest.raises(ValueError, match="do not fit a teacher of 2 layers"):
        make_aligner(student)
