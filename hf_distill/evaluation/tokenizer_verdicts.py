"""What the tokenizer experiment must show, bar by bar, and how the tokenizers differ with everything else equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from hf_distill.evaluation.paired import Difference, paired_difference
from hf_distill.evaluation.tokenizer_students import PEARSON, TokenizerStudent

GAIN_POINTS = 10.0
"""Points of Pearson (× 100) by which a trained clone must beat itself before training."""
TEACHER_SHARE = 90.0
"""Per cent of the teacher's Pearson that a trained clone must reach."""
_SHOWN_SCORES = 6


@dataclass(frozen=True)
class Verdict:
    """Whether a student clears a bar.

    Args:
        student (`str`): the student.
        bar (`str`): what is asked for, in words.
        unit (`str`): of the numbers: `"points"` or `"%"`.
        value (`float`): what was reached, the mean over the seeds.
        needed (`float`): what was needed.
        met (`bool`): whether it was.
        interval (`tuple[float, float]`, *optional*): 95 % interval of the value over test pairs and seeds.
        curve (`list[tuple[float | None, float]]`, *optional*): where the bar is missed: millions of tokens seen and
            validation Pearson × 100 on the way.
    """

    student: str
    bar: str
    unit: str
    value: float
    needed: float
    met: bool
    interval: tuple[float, float] | None = None
    curve: list[tuple[float | None, float]] | None = None

    @property
    def distance(self) -> float:
        """What lies above the bar, below zero what is missing."""
        return self.value - self.needed

    def sentence(self) -> str:
        """Say it in a line of Markdown."""
        within = "" if self.interval is None else f" (95 %: {self.interval[0]:+.2f} to {self.interval[1]:+.2f})"
        value = f"{self.value:+.2f}" if self.unit == "points" else f"{self.value:.2f}"
        text = f"{self.student}, {self.bar}: {value} {self.unit}{within}"
        if self.met:
            return f"**met** · {text}, {self.distance:.2f} above the bar"
        gap = f"{-self.distance:.2f} below the bar" if self.distance else "not above it"
        way = [
            f"{score:.1f}" if tokens is None else f"{score:.1f} at {tokens:.2f}M" for tokens, score in self.curve or ()
        ]
        curve = f"; validation Pearson over tokens seen: {', '.join(way)}" if way else ""
        return f"**missed** · {text}, {gap}{curve}"


@dataclass(frozen=True)
class TokenizerDifference:
    """Two tokenizers with the same start, compared on the same pairs.

    Args:
        source (`str`): the start that both students share.
        first (`str`): one tokenizer.
        second (`str`): the other.
        points (`Difference`): first minus second in points of Pearson (× 100).
    """

    source: str
    first: str
    second: str
    points: Difference


def verdicts(students: Sequence[TokenizerStudent]) -> list[Verdict]:
    """Judge every student by the bars that are set for it.

    A clone must gain 10 points of test Pearson over itself before training, and reach 90 % of its teacher's; a student
    from random weights must end above itself before training.

    Args:
        students (`Sequence[TokenizerStudent]`): the students.

    Returns:
        `list[Verdict]`: two for each clone, one for each random start.
    """
    found = []
    for student in students:
        gain = _gain(student)
        interval, needed = (gain.low, gain.high), GAIN_POINTS if student.is_clone else 0.0
        met = gain.mean >= needed if student.is_clone else gain.mean > 0
        bar = f"at least {GAIN_POINTS:.0f} points above its untrained self" if student.is_clone else "above untrained"
        curve = None if met else _curve(student)
        found.append(Verdict(student.name, bar, "points", gain.mean, needed, met, interval, curve))
        share = student.share()
        if student.is_clone and share is not None:
            value = 100 * share.mean
            met = value >= TEACHER_SHARE
            bar = f"at least {TEACHER_SHARE:.0f} % of its teacher"
            curve = None if met else _curve(student)
            found.append(Verdict(student.name, bar, "%", value, TEACHER_SHARE, met, None, curve))
    return found


def tokenizer_differences(students: Sequence[TokenizerStudent]) -> list[TokenizerDifference]:
    """Compare tokenizers wherever two students share their start and at least one seed.

    Args:
        students (`Sequence[TokenizerStudent]`): the students.

    Returns:
        `list[TokenizerDifference]`: one for each pair of tokenizers and each source, over the seeds that both have.
    """
    found = []
    for first, second in combinations(students, 2):
        seeds = [seed for seed in first.runs if seed in second.runs]
        if first.source == second.source and seeds:
            points = _points(first, "student", second, "student", seeds)
            found.append(TokenizerDifference(first.source, first.tokenizer, second.tokenizer, points))
    return found


def _gain(student: TokenizerStudent) -> Difference:
    """Compare a student with itself before training."""
    return _points(student, "student", student, "untrained", list(student.runs))


def _points(
    first: TokenizerStudent, role: str, second: TokenizerStudent, other: str, seeds: Sequence[int]
) -> Difference:
    """Subtract the Pearson correlations of two models, × 100."""
    scores = next(iter(first.runs.values())).pairs.scores
    found = paired_difference(scores, first.similarities(role, seeds), second.similarities(other, seeds))
    mean, low, high, deviation = (100 * getattr(found, name) for name in ("mean", "low", "high", "deviation"))
    return Difference(mean, low, high, deviation, found.seeds)


def _curve(student: TokenizerStudent) -> list[tuple[float | None, float]] | None:
    """Pick some validation scores of the first seed, the first and the last among them."""
    curves = student.curves(PEARSON)
    if not curves:
        return None
    curve = next(iter(curves.values()))
    rows = np.unique(np.linspace(0, len(curve.values) - 1, _SHOWN_SCORES).round().astype(int))
    millions = [float(tokens) / 1e6 for tokens in curve.tokens[rows]]
    shown = [None if np.isnan(tokens) else tokens for tokens in millions]
    return list(zip(shown, (100 * curve.values[rows]).tolist(), strict=True))


__all__ = ["GAIN_POINTS", "TEACHER_SHARE", "TokenizerDifference", "Verdict", "tokenizer_differences", "verdicts"]
