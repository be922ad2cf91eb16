"""Bars and differences: who clears them, by how much, and with which spread."""

from __future__ import annotations

import pytest

from hf_distill.evaluation.tokenizer_students import read_students
from hf_distill.evaluation.tokenizer_verdicts import Verdict, tokenizer_differences, verdicts


def test_every_bar_of_every_student(tokenizer_runs):
    found = verdicts(read_students(tokenizer_runs))
    assert [(verdict.student, verdict.unit, verdict.met) for verdict in found] == [
        ("mft-e5", "points", True),
        ("mft-e5", "%", True),
        ("mft-e5-6layers", "points", False),
        ("mft-e5-6layers", "%", False),
        ("mft-random-init", "points", True),
        ("tabi-e5", "points", True),
        ("tabi-e5", "%", True),
        ("tabi-e5-6layers", "points", True),
        ("tabi-e5-6layers", "%", True),
        ("tabi-random-init", "points", False),
    ]
    gain, share, control = found[2], found[3], found[-1]
    assert (gain.value, gain.needed, gain.distance) == pytest.approx((7.0, 10.0, -3.0))
    assert gain.interval[0] < 7.0 < gain.interval[1]
    assert share.value == pytest.approx(100 * 0.62 / 0.75)
    assert (control.value, control.needed) == pytest.approx((-4.0, 0.0))
    assert [point[0] for point in control.curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert control.curve[-1][1] == pytest.approx(36.0)
    assert found[0].curve is None


def test_sentences(tokenizer_runs):
    found = [verdict.sentence() for verdict in verdicts(read_students(tokenizer_runs))]
    assert found[1] == "**met** · mft-e5, at least 90 % of its teacher: 98.67 %, 8.67 above the bar"
    assert found[2].startswith(
        "**missed** · mft-e5-6layers, at least 10 points above its untrained self: +7.00 points (95 %:"
    )
    assert "3.00 below the bar; validation Pearson over tokens seen: 55.0 at 0.00M, " in found[2]
    assert found[2].endswith("62.0 at 2.00M")
    assert "above untrained: -4.00 points" in found[-1]
    same = Verdict("a", "above untrained", "points", 0.0, 0.0, met=False, curve=[(None, 41.0)])
    assert same.sentence().endswith("+0.00 points, not above it; validation Pearson over tokens seen: 41.0")


def test_a_bar_that_is_just_reached(make_tokenizer_run, tmp_path):
    run = make_tokenizer_run(tmp_path / "a", quality=(0.575, 0.6755))
    assert [verdict.met for verdict in verdicts(read_students([run]))] == [True, True]


def test_tokenizers_with_one_start(tokenizer_runs):
    found = tokenizer_differences(read_students(tokenizer_runs))
    assert [(d.source, d.first, d.second) for d in found] == [
        ("e5", "mft", "tabi"),
        ("e5-6layers", "mft", "tabi"),
        ("random-init", "mft", "tabi"),
    ]
    assert [d.points.mean for d in found] == pytest.approx([2.0, -8.0, 11.0])
    assert all(d.points.low < d.points.mean < d.points.high for d in found)


def test_differences_over_the_seeds_that_both_have(make_tokenizer_run, tmp_path):
    runs = [
        make_tokenizer_run(
            tmp_path / f"{tokenizer}{seed}", tokenizer, seed=seed, quality=(0.4, base + 0.02 * seed * up)
        )
        for tokenizer, base, up, seeds in (("mft", 0.6, 1, (1, 2, 3)), ("tabi", 0.6, 0, (2, 3)))
        for seed in seeds
    ]
    (found,) = tokenizer_differences(read_students(runs))
    assert found.points.seeds == 2
    assert found.points.mean == pytest.approx(5.0)  # of 4 and 6
    assert found.points.deviation == pytest.approx(2**0.5)
    assert tokenizer_differences(read_students([*runs[:1], *runs[3:]])) == []  # no seed in common
