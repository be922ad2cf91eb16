"""The warning about updates that bf16 parameters round away."""

from __future__ import annotations

import logging

import pytest
import torch

from hf_distill.trainers.precision import LostUpdates


def guard(trainer) -> LostUpdates:
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, LostUpdates))


def test_bf16_parameters_are_warned_about_once_and_with_numbers(make_trainer, student, caplog):
    trainer = make_trainer(student=student.to(torch.bfloat16), learning_rate=5e-5, max_steps=4, warmup_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    warnings = [record.getMessage() for record in caplog.records if "did not move" in record.getMessage()]
    assert len(warnings) == 1
    share = guard(trainer).share
    assert 0.3 < share <= 1.0
    for part in (f"{share:.0%} of", "in step 2", "bfloat16", "2.5e-05", "bf16 autocast", "model.float()"):
        assert part in warnings[0]


def test_the_share_is_that_of_the_rounding(make_trainer, student):
    """Adam's first step is the learning rate, whatever the gradient: what it moves can be computed."""
    student.to(torch.bfloat16)
    trainer = make_trainer(student=student, learning_rate=1e-3, max_steps=1, max_grad_norm=0)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    trainer.train()
    lost = total = 0
    for name, value in before.items():
        if "word" in name or "position" in name or "token_type" in name or "pooler" in name:
            continue
        near = torch.minimum((value.float() + 1e-3).bfloat16() - value, value - (value.float() - 1e-3).bfloat16())
        lost += int((near == 0).sum())
        total += value.numel()
    assert guard(trainer).share == pytest.approx(lost / total, abs=0.15)


def test_float32_parameters_under_autocast_are_not_measured(make_trainer, caplog):
    trainer = make_trainer(bf16=True, learning_rate=1e-7, max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
    assert guard(trainer).share is None
    assert "did not move" not in caplog.text
