"""Weighted sums of terms and weight schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.losses import weight_at, weighted_sum


def test_weighted_sum_and_its_gradient():
    a, b = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    total = weighted_sum({"cosine": a, "gram": b * b}, {"cosine": 0.5, "gram": 2.0, "hidden": 0.0})
    total.backward()
    assert total.item() == 19
    assert (a.grad.item(), b.grad.item()) == (0.5, 12.0)


def test_a_term_of_weight_zero_stays_in_the_graph():
    a = torch.tensor(2.0, requires_grad=True)
    weighted_sum({"cosine": a}, {"cosine": 0.0}).backward()
    assert a.grad.item() == 0


def test_weighted_sum_names_what_does_not_fit():
    term = torch.tensor(1.0)
    with pytest.raises(KeyError, match=r"no weight for the loss terms \['gram'\].*\['cosine'\]"):
        weighted_sum({"cosine": term, "gram": term}, {"cosine": 1.0})
    with pytest.raises(KeyError, match=r"\['gram'\] have a weight but were not computed; computed: \['cosine'\]"):
        weighted_sum({"cosine": term}, {"cosine": 1.0, "gram": 0.1})
    with pytest.raises(ValueError, match="no loss terms"):
        weighted_sum({}, {})
    with pytest.raises(ValueError, match=r"'cosine' must be a scalar, but has shape \(2,\)"):
        weighted_sum({"cosine": torch.ones(2)}, {"cosine": 1.0})


@given(
    schedule=st.dictionaries(st.integers(0, 1000), st.floats(0, 10), min_size=1, max_size=5),
    step=st.integers(0, 1200),
    text_keys=st.booleans(),
)
def test_schedule_is_piecewise_linear(schedule, step, text_keys):
    steps = sorted(schedule)
    expected = np.interp(step, steps, [schedule[at] for at in steps])
    spec = {str(at) if text_keys else at: weight for at, weight in schedule.items()}
    assert weight_at(spec, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (100, 0.0), (150, 0.5), (200, 1.0), (300, 0.55), (400, 0.1), (9999, 0.1)]
)
def test_schedule_with_warm_up_and_decay(step, expected):
    assert weight_at({"200": 1, "100": 0, "400": 0.1}, step) == pytest.approx(expected)


def test_a_number_is_constant():
    assert weight_at(2, 0) == weight_at(2.0, 10**6) == 2.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "gram_weight: an empty schedule"),
        (-1.0, "gram_weight: a weight must be a finite number >= 0, but is -1.0"),
        (float("nan"), "finite number"),
        (True, "finite number"),
        ("0.5", "finite number"),
        (None, "finite number"),
        ({"0": 1.0, "500": -0.1}, "but is -0.1"),
        ({"0": "much"}, "but is 'much'"),
        ({"soon": 1.0}, "steps must be whole numbers >= 0, but one is 'soon'"),
        ({-5: 1.0}, "whole numbers"),
        ({0.5: 1.0}, "whole numbers"),
        ({True: 1.0}, "whole numbers"),
        ({"0": 1.0, 0: 0.5}, "a step stands twice"),
    ],
)
def test_bad_specifications_are_found_at_step_zero(spec, message):
    with pytest.raises(ValueError, match=message):
        weight_at(spec, 0, name="gram_weight")


def test_negative_steps_are_errors():
    with pytest.raises(ValueError, match="never negative"):
        weight_at(1.0, -1)
