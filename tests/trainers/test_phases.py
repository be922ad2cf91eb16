"""A warm-up phase and the training proper as one run: batches, learning rates, what trains, logs, and exact resume."""

from __future__ import annotations

import json
import logging
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers import SchedulerType

from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.phases import PhasedBatchSampler, WarmupPhase, phased_factor, step_factor

PHASES = {"warmup_phase_steps": 3, "gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 1}


def pieces(sampler: PhasedBatchSampler, count: int) -> list[list[int]]:
    """The batches of the first trainer epochs, one after the other."""
    batches = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        piece = list(sampler)
        assert len(piece) == len(sampler)
        batches += piece
    return batches


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_training_proper_has_the_batches_it_would_have_alone(steps, accumulation):
    lengths = [3 + 7 * i % 11 for i in range(22)]  # 5 whole batches of 4 and a short one
    alone, base = (LengthBucketBatchSampler(lengths, 4) for _ in range(2))
    sampler = PhasedBatchSampler(base, steps, accumulation)
    batches = pieces(sampler, 6)
    expected = []
    for epoch in range(2):
        alone.set_epoch(epoch)
        expected += list(alone)
    first = sampler.warmup_batches
    assert first <= steps * accumulation
    assert batches[first : first + 12] == expected
    assert Counter(row for batch in batches[first : first + 6] for row in batch) == Counter(range(22))
    assert batches[:first] != expected[:first], "the warm-up phase has an order of its own"
    sampler.set_epoch(1)
    assert list(sampler) == batches[6:12], "a piece does not depend on the pieces read before"


@pytest.mark.parametrize("budget", [None, 40])
def test_processes_get_equally_many_whole_batches(budget):
    lengths = [3 + 7 * i % 11 for i in range(23)]
    sampler = LengthBucketBatchSampler(lengths, None if budget else 4, token_budget=budget)
    phased = PhasedBatchSampler(sampler, steps=2, processes=2)
    assert len(phased) % 2 == phased.warmup_batches % 2 == 0
    assert len(sampler) - 2 <= len(phased) <= len(sampler)
    if not budget:
        assert {len(batch) for batch in pieces(phased, 3)} == {4}
    with pytest.raises(ValueError, match="fewer whole batches than the 8 processes"):
        PhasedBatchSampler(LengthBucketBatchSampler(lengths, 4), processes=8)


def test_learning_rates_of_both_phases(tmp_path):
    fields = {"warmup_steps": 2, "lr_scheduler_type": "cosine", "learning_rate": 1e-3, "warmup_phase_steps": 4}
    args = EmbeddingDistillConfig(str(tmp_path), **fields, warmup_phase_learning_rate=5e-4)
    factor = phased_factor(args, step_factor(args, 10))
    assert [factor(step) for step in range(4)] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert [factor(step) for step in range(4, 14)] == [step_factor(args, 10)(step) for step in range(10)]
    assert factor(4) == 0.0
    assert factor(6) == 1.0
    args.warmup_phase_scheduler, args.warmup_phase_learning_rate = "constant", None
    assert [phased_factor(args, lambda step: 7.0)(step) for step in (0, 3, 4)] == [1.0, 1.0, 7.0]
    args.lr_scheduler_type = SchedulerType.REDUCE_ON_PLATEAU
    with pytest.raises(ValueError, match="reduce_lr_on_plateau"):
        step_factor(args, 10)


def test_without_a_warmup_phase_nothing_changes(make_trainer):
    plain, phased = make_trainer(max_steps=2), make_trainer(max_steps=2, warmup_phase_steps=1)
    plain.train()
    phased.train()
    assert not any("phase" in entry for entry in plain.state.log_history)
    assert plain.state.max_steps == 2
    assert phased.state.max_steps == phased.state.global_step == 3


def test_the_run_counts_both_phases_and_sees_every_row_once(make_trainer, texts):
    seen = []
    trainer = make_trainer(**PHASES, logging_steps=50, eval_dataset=texts, eval_strategy="steps", eval_steps=2)
    answer = trainer.source.answer
    trainer.source.answer = lambda inputs, *rest: (
        (seen.append((trainer.state.global_step, inputs["input_ids"])) if trainer.model.training else None)
        or answer(inputs, *rest)
    )
    trainer.train()
    assert trainer.state.max_steps == trainer.state.global_step == 3 + 4, "64 rows, 8 a batch, 2 batches a step"
    proper = Counter(tuple(row[row != 0].tolist()) for step, ids in seen if step >= 3 for row in ids)
    assert proper == Counter(tuple(row) for row in trainer.train_dataset["text_input_ids"][:])
    phases = [(entry["step"], entry["phase"]) for entry in trainer.state.log_history if "loss" in entry]
    assert phases == [(3, 1), (7, 2)], "the boundary is logged, whatever logging_steps is"
    evaluated = [(entry["step"], entry["phase"]) for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [(2, 1), (4, 2), (6, 2), (7, 2)]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-3, 1e-3 / 4])


@pytest.mark.parametrize("trainable", ["all", "embeddings"])
def test_resume_is_exact_in_both_phases_and_at_the_boundary(make_trainer, tmp_path, trainable):
    fields = {**PHASES, "warmup_phase_trainable": trainable, "weight_decay": 0.1, "warmup_steps": 0.5}
    fields |= {"save_strategy": "steps", "save_steps": 1}
    straight = make_trainer(**fields)
    straight.train()
    expected = dict(straight.objective.named_parameters())
    history = [{k: entry.get(k) for k in KEPT} for entry in straight.state.log_history if "loss" in entry]
    assert len(history) == 7
    for step, phase in ((2, 1), (3, 2), (5, 2)):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        saved = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["WarmupPhase"]
        assert saved == {"args": {"steps": 3}, "attributes": {"phase": phase}}
        torch.manual_seed(step)
        resumed = make_trainer(**fields, output_dir=str(tmp_path / f"from-{step}"))
        resumed.train(resume_from_checkpoint=str(checkpoint))
        again = [{k: entry.get(k) for k in KEPT} for entry in resumed.state.log_history if "loss" in entry]
        assert again == history, f"resumed at {step}"
        for name, value in resumed.objective.named_parameters():
            assert torch.equal(value, expected[name]), (step, name)
        assert optimizer_steps(resumed) == optimizer_steps(straight)
    other = make_trainer(**{**fields, "warmup_phase_steps": 2}, output_dir=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="written with warmup_phase_steps=3, but now it is 2"):
        other.train(resume_from_checkpoint=str(checkpoint))


KEPT = ("step", "loss", "loss/cosine", "grad_norm", "learning_rate", "phase", "epoch")


def optimizer_steps(trainer) -> dict[int, int]:
    """How many steps the optimiser counts for how many parameters."""
    return Counter(int(state["step"]) for state in trainer.optimizer.state.values())


def test_only_the_embeddings_train_in_the_warmup_phase(make_trainer, tmp_path):
    fields = {"warmup_phase_steps": 2, "warmup_phase_trainable": "embeddings", "max_steps": 3, "weight_decay": 0.5}
    trainer = make_trainer(**fields, save_strategy="steps", save_steps=2)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    table = "0.model.embeddings.word_embeddings.weight"
    assert table in before
    norms = []
    clip = trainer._clip_grad_norm
    trainer._clip_grad_norm = lambda model: (
        norms.append([n for n, p in trainer.model.named_parameters() if p.grad is not None]) or clip(model)
    )
    trainer.train()
    assert norms[0] == norms[1] == [table], "clipping sees what trains, and nothing else"
    assert len(norms[2]) > 20
    middle = make_trainer(**fields)
    middle._load_weights(str(tmp_path / "run" / "checkpoint-2"))
    moved = [n for n, value in middle.model.named_parameters() if not torch.equal(value, before[n])]
    assert moved == [table]
    moved = [n for n, value in trainer.model.named_parameters() if not torch.equal(value, before[n])]
    assert len(moved) > 20
    assert optimizer_steps(trainer) == {5: 1, 3: len(moved) - 1}
    with pytest.raises(ValueError, match="would train nothing"):
        make_trainer(**fields, freeze=["word_embeddings"])


def test_the_best_checkpoint_may_lie_in_either_phase(make_trainer, texts):
    fields = {"eval_dataset": texts, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    fields |= {"save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    trainer = make_trainer(**fields, warmup_phase_steps=2, warmup_phase_learning_rate=1e-3, max_steps=2)
    trainer.train()
    assert trainer.state.best_global_step in (3, 4)
    early = make_trainer(
        **fields, warmup_phase_steps=2, warmup_phase_learning_rate=0.01, learning_rate=10, max_steps=2
    )
    early.train()
    assert early.state.best_global_step in (1, 2)
    assert early.evaluate()["eval_loss"] == pytest.approx(early.state.best_metric)


def test_a_stream_goes_on_where_the_warmup_phase_ended(make_trainer, texts):
    trainer = make_trainer(data=texts.to_iterable_dataset(), max_steps=2, warmup_phase_steps=7)
    trainer.train()
    assert trainer.state.global_step == 9
    assert [entry["phase"] for entry in trainer.state.log_history if "loss" in entry] == [1] * 7 + [2] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_phase_steps": -1}, "warmup_phase_steps is -1"),
        ({"warmup_phase_learning_rate": 0.0}, "must be above 0"),
        ({"warmup_phase_scheduler": "cosine"}, "warmup_phase_scheduler must be one of"),
        ({"warmup_phase_trainable": "head"}, "warmup_phase_trainable must be one of"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
    ],
)
def test_config_names_the_fix(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingDistillConfig(str(tmp_path), **fields)


def test_ending_inside_the_warmup_phase_is_said(caplog):
    phase, state = WarmupPhase(5), SimpleNamespace(global_step=0, stateful_callbacks={})
    control = SimpleNamespace(should_log=False)
    phase.on_train_begin(None, state, control)
    state.global_step = 4
    phase.on_step_end(None, state, control)
    with caplog.at_level(logging.WARNING):
        phase.on_train_end(None, state, control)
    assert "ended at step 4, inside the warm-up phase of 5 steps" in caplog.text
    assert not control.should_log
    state.global_step = 5
    phase.on_step_end(None, state, control)
    assert control.should_log
    assert phase.state()["attributes"] == {"phase": 2}
