"""The clock of a time budget, its learning rate, and the verdict on a run's gain."""

from __future__ import annotations

import pytest
from transformers import TrainerState

from hf_distill.trainers import callbacks
from hf_distill.trainers.callbacks import NoGainError, TimeBudget, gain_summary


class Clock:
    """Every step takes `step_seconds`."""

    def __init__(self, monkeypatch, step_seconds: float) -> None:
        self.now = 0.0
        self.step_seconds = step_seconds
        monkeypatch.setattr(callbacks.time, "monotonic", lambda: self.now)

    def tick(self, inputs, *_):
        self.now += self.step_seconds
        return inputs


@pytest.fixture
def budget_trainer(make_trainer, monkeypatch):
    def build(step_seconds: float, **fields):
        clock = Clock(monkeypatch, step_seconds)
        trainer = make_trainer(**{"max_steps": 1000, "max_minutes": 1.0, "warmup_steps": 0.1, **fields})
        monkeypatch.setattr(trainer.source, "answer", clock.tick)
        return trainer

    return build


def rates(trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_time_budget_stops_saves_and_ends_near_rate_zero(budget_trainer, tmp_path):
    trainer = budget_trainer(3.0, save_strategy="steps", save_steps=1000)
    trainer.train()
    assert trainer.state.global_step == 20
    assert (tmp_path / "run" / "checkpoint-20" / "model.safetensors").is_file()
    lr = rates(trainer)
    assert max(lr) == lr[3] == pytest.approx(1e-3)  # a tenth of the time, and the clock is read after the step
    assert lr == sorted(lr[:4]) + sorted(lr[4:], reverse=True)
    assert lr[-1] < 0.12e-3


def test_steps_lead_when_they_are_faster_than_the_clock(budget_trainer):
    trainer = budget_trainer(0.001, max_steps=10)
    trainer.train()
    assert trainer.state.global_step == 10
    assert rates(trainer)[-1] == pytest.approx(1e-3 / 9, rel=0.01)


def test_without_a_hurry_the_schedule_is_transformers_own(budget_trainer, make_trainer):
    with_budget, without = budget_trainer(0.0, max_steps=10), make_trainer(max_steps=10, warmup_steps=0.1)
    with_budget.train()
    without.train()
    assert rates(with_budget) == pytest.approx(rates(without))


def test_elapsed_time_survives_a_resume(budget_trainer):
    first = budget_trainer(3.0, max_steps=1000, save_strategy="steps", save_steps=5)
    first.add_callback(StopAt(5))
    first.train()
    second = budget_trainer(3.0, max_steps=1000, save_strategy="steps", save_steps=5)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 20
    assert second.clock.seconds() == pytest.approx(60.0)


def test_the_budget_covers_a_warmup_phase(budget_trainer, tmp_path):
    fields = {"warmup_phase_steps": 5, "save_strategy": "steps", "save_steps": 1}
    straight = budget_trainer(3.0, **fields)
    straight.train()
    lr = rates(straight)
    assert straight.state.global_step == 20
    assert lr[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert lr[5] == 0.0, "then the schedule begins, with its own warm-up over a tenth of the 45 seconds left"
    assert lr[8:] == sorted(lr[8:], reverse=True)
    assert lr[-1] < 0.15e-3
    assert straight.clock.phase_began == pytest.approx(15.0)
    for step in (4, 5, 9):
        resumed = budget_trainer(3.0, **fields, output_dir=str(tmp_path / f"from-{step}"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert rates(resumed) == pytest.approx(lr), step


class StopAt(callbacks.TrainerCallback):
    """Interrupts a run after some steps, as a kill does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_all_processes_follow_the_first_clock():
    budget = TimeBudget(max_minutes=2.0, elapsed_seconds=30.0)
    assert budget.seconds() == 30.0
    assert budget.share() == pytest.approx(0.25)
    assert TimeBudget().share() == 0.0


def state(*scores: float) -> TrainerState:
    history = [{"step": 10 * i, "eval_sts_spearman": score} for i, score in enumerate(scores)]
    return TrainerState(log_history=[{"step": 5, "loss": 1.0}, *history])


def test_gain_summary():
    summary = gain_summary(state(0.5, 0.8, 0.7), "sts_spearman", True, control=0.6)
    assert summary.passed
    assert (summary.best, summary.start, summary.control) == (0.8, 0.5, 0.6)
    assert str(summary) == (
        "gain: eval_sts_spearman best 0.8000, start of this stage 0.5000, random-init control 0.6000"
    )
    assert not gain_summary(state(0.5, 0.8), "eval_sts_spearman", True, control=0.9).passed
    assert not gain_summary(state(0.5, 0.4), "sts_spearman", True).passed
    assert gain_summary(state(0.5, 0.4), "sts_spearman", False).passed
    assert not gain_summary(state(0.5), "sts_spearman", True).passed
    assert "NO GAIN" in str(gain_summary(TrainerState(), "sts_spearman", True))


def test_a_gain_beats_the_untrained_student_too():
    """A stage before this one may have been worth it, or have done harm: the start of this stage does not say."""
    summary = gain_summary(state(0.5, 0.8), "sts_spearman", True, untrained=0.7)
    assert summary.passed
    assert "start of this stage 0.5000, untrained 0.7000, random-init control not measured" in str(summary)
    assert not gain_summary(state(0.5, 0.8), "sts_spearman", True, untrained=0.9).passed
    assert gain_summary(state(0.5, 0.4), "sts_spearman", False, untrained=0.45).passed


def test_require_gain_fails_a_run_without_gain(make_trainer, texts):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "require_gain": True}
    fields |= {"metric_for_best_model": "eval_loss", "greater_is_better": False, "eval_dataset": texts}
    trainer = make_trainer(**fields)
    trainer.train()
    summary = trainer.check_gain(control=10.0)
    assert summary.passed
    assert summary.best < summary.start
    idle = make_trainer(**fields, learning_rate=0.0)
    idle.train()
    with pytest.raises(NoGainError, match="NO GAIN"):
        idle.check_gain()
