"""Exact resume: N steps = K steps, kill, N - K steps. Same losses, weights, heads and learning rates, on CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer, models
from transformers import TrainerCallback

from hf_distill.models.deltanet import HfdDeltaNetModel


class Kill(TrainerCallback):
    """Ends a run after some steps without a word to anyone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise KeyboardInterrupt


def make_model(folder: str, seed: int, dropout: float = 0.1) -> SentenceTransformer:
    """A narrow student (so that there is a head) with dropout (so that random states matter)."""
    torch.manual_seed(seed)
    base = SentenceTransformer(folder, device="cpu")
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return SentenceTransformer(modules=[base[0], base[1], models.Dense(32, 16), models.Normalize()], device="cpu")


def history(trainer) -> list[dict]:
    keep = ("loss", "loss/cosine", "loss/gram", "grad_norm", "learning_rate")
    return [{key: entry[key] for key in keep} for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("stop", "fields"),
    [
        (5, {}),
        (11, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
        (8, {"token_budget": 160, "per_device_train_batch_size": 8}),
    ],
    ids=["first epoch", "second epoch, accumulated", "token budget"],
)
def test_resume_is_exact(make_trainer, tiny_sentence_transformer, tmp_path, stop, fields):
    fields = {"embedding_projection": "learned", "gram_weight": {"0": 1.0, "9": 0.2}, "max_steps": 13, **fields}
    fields |= {"save_strategy": "steps", "save_steps": stop, "warmup_steps": 2, "weight_decay": 0.01}
    straight = make_trainer(student=make_model(tiny_sentence_transformer, 1), **fields)
    straight.train()
    shutil.rmtree(tmp_path / "run")

    killed = make_trainer(student=make_model(tiny_sentence_transformer, 1), callbacks=[Kill(stop)], **fields)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    torch.manual_seed(99)
    resumed = make_trainer(student=make_model(tiny_sentence_transformer, 7), **fields)
    fresh = resumed.objective.embedding_head.weight.detach().clone()
    assert not torch.equal(fresh, killed.objective.embedding_head.weight) or stop == 0
    resumed.train(resume_from_checkpoint=True)

    assert history(resumed) == history(straight)
    assert len(history(resumed)) == 13
    expected = dict(straight.objective.named_parameters())
    for name, value in resumed.objective.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_resume_of_a_deltanet_student(make_trainer, live, tmp_path):
    """The student's own code is not trusted remote code here, and its checkpoints must load all the same."""

    def build(seed: int) -> SentenceTransformer:
        encoder = HfdDeltaNetModel.from_teacher(live.encoder)
        torch.manual_seed(seed)
        for parameter in encoder.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        folder = tmp_path / f"encoder-{seed}"
        encoder.save_pretrained(folder)
        live.model.tokenizer.save_pretrained(folder)
        transformer = models.Transformer(str(folder), max_seq_length=64)
        return SentenceTransformer(modules=[transformer, models.Pooling(32, "mean"), models.Normalize()], device="cpu")

    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gram_weight": 1.0}
    straight = make_trainer(student=build(1), **fields)
    straight.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = make_trainer(student=build(2), **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = straight.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_checkpoints_of_another_run_are_refused(make_trainer, tiny_sentence_transformer, tmp_path):
    fields = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(**fields).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    with_head = make_trainer(
        student=make_model(tiny_sentence_transformer, 1),
        embedding_projection="learned",
        output_dir=str(tmp_path / "b"),
    )
    with pytest.raises(ValueError, match="another configuration|do not fit this run"):
        with_head.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "distill_state.json").unlink()
    with pytest.raises(FileNotFoundError, match="was not written by EmbeddingDistillTrainer"):
        make_trainer(**fields).train(resume_from_checkpoint=str(checkpoint))
