"""The figures of the tokenizer experiment: the learning curves of all students, and what training gave each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.evaluation.curves import COLOURS, Figure, style
from hf_distill.evaluation.tokenizer_students import PEARSON, TokenizerStudent
from hf_distill.evaluation.tokenizer_verdicts import TEACHER_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_distill.evaluation.seeds import Spread
    from hf_distill.evaluation.tokenizer_students import Curve

_TEACHER = "#333333"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")
_RECALL = "bitext_recall_at_1"


def draw_learning_curves(students: Sequence[TokenizerStudent]) -> Figure | None:
    """Draw validation Pearson over the tokens and over the texts that a student has learned from.

    A colour is a source of weights, a kind of line a tokenizer. Of several seeds their mean is drawn, in a band from
    the least to the greatest.

    Args:
        students (`Sequence[TokenizerStudent]`): the students.

    Returns:
        `Figure` or `None`: one panel or two; None where no run has a log.
    """
    curves = [(student, list(found.values())) for student in students if (found := student.curves())]
    panels = [
        (field, label)
        for field, label in (("tokens", "tokens seen, millions"), ("texts", "texts seen, thousands"))
        if any(np.isfinite(getattr(curve, field)).all() for _, found in curves for curve in found)
    ]
    if not panels:
        return None
    with style():
        figure = Figure(figsize=(5.2 * len(panels), 5.0), dpi=150, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (field, label) in zip(axes, panels, strict=True):
            for student, found in curves:
                _draw_student(axis, students, student, found, field)
            _draw_teacher(axis, students[0].metric("teacher", PEARSON, "validation"), label="teacher")
            axis.set_xlabel(label)
            axis.margins(x=0.02)
        axes[0].set_ylabel("STSb-TR Pearson × 100, validation")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(panels) == 1 else 3)
        figure.suptitle("Learning curves", fontsize=13)
    return figure


def _draw_student(
    axis: Axes, students: Sequence[TokenizerStudent], student: TokenizerStudent, curves: Sequence[Curve], field: str
) -> None:
    """Draw one student's curve, the mean over its seeds on the first one's places."""
    unit = 1e6 if field == "tokens" else 1e3
    places = [getattr(curve, field) for curve in curves]
    if not all(np.isfinite(place).all() for place in places):
        return
    colour, number = _look(students, student)
    # up to where the shortest seed ends: beyond it, its curve would be carried on flat
    shared = places[0][places[0] <= min(place[-1] for place in places) * (1 + 1e-9)]
    values = np.array([np.interp(shared, place, curve.values) for place, curve in zip(places, curves, strict=True)])
    line = {"color": colour, "linestyle": _LINES[number % len(_LINES)], "marker": _MARKERS[number % len(_MARKERS)]}
    axis.plot(shared / unit, 100 * values.mean(axis=0), linewidth=1.7, markersize=3.5, label=student.name, **line)
    if len(values) > 1:
        low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
        axis.fill_between(shared / unit, low, high, color=colour, alpha=0.15, linewidth=0)


def _look(students: Sequence[TokenizerStudent], student: TokenizerStudent) -> tuple[str, int]:
    """Choose the colour of a student's source and the number of its tokenizer."""
    sources = list(dict.fromkeys(other.source for other in students))
    tokenizers = list(dict.fromkeys(other.tokenizer for other in students))
    return COLOURS[sources.index(student.source) % len(COLOURS)], tokenizers.index(student.tokenizer)


def draw_bars(students: Sequence[TokenizerStudent]) -> Figure:
    """Draw test scores before (pale) and after training (full) beside the teacher's line, students of one source together.

    Args:
        students (`Sequence[TokenizerStudent]`): the students.

    Returns:
        `Figure`: Pearson on STSb-TR with the bar of 90 % of the teacher, and recall@1 from Turkish to English where it
        was measured. Whiskers are the standard deviation over seeds.
    """
    sources = list(dict.fromkeys(student.source for student in students))
    students = sorted(students, key=lambda student: (not student.is_clone, sources.index(student.source)))
    panels = [(PEARSON, "STSb-TR Pearson × 100, test", True), (_RECALL, "TR→EN recall@1 × 100, test", False)]
    panels = [panel for panel in panels if all(student.metric("student", panel[0]) for student in students)]
    with style():
        figure = Figure(figsize=(0.8 + 5.4 * len(panels), 5.0), dpi=150, layout="constrained")
        for axis, (metric, label, with_bar) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_bars_of(axis, students, metric)
            teacher = students[0].metric("teacher", metric)
            _draw_teacher(axis, teacher, "teacher")
            if with_bar and teacher is not None:
                height = TEACHER_SHARE * teacher.values[0]
                look = {"color": _TEACHER, "linestyle": ":", "linewidth": 1.2}
                axis.axhline(height, label=f"{TEACHER_SHARE:.0f} % of the teacher, {height:.1f}", **look)
            axis.set_ylabel(label)
            axis.grid(axis="x", visible=False)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, columnspacing=1.2)
        figure.suptitle("Before and after training", fontsize=13)
    return figure


def _draw_bars_of(axis: Axes, students: Sequence[TokenizerStudent], metric: str) -> None:
    """Draw a pale and a full bar for each student, labelled with their heights."""
    width, top = 0.38, 0.0
    for place, student in enumerate(students):
        colour, number = _look(students, student)
        hatch = "" if number == 0 else "//"
        for offset, role, alpha in ((-0.5, "untrained", 0.35), (0.5, "student", 1.0)):
            found = student.metric(role, metric)
            if found is None:
                continue
            height, error = 100 * found.mean, 100 * found.deviation
            look = {"color": colour, "alpha": alpha, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axis.bar(place + offset * width, height, width * 0.94, **look)
            if len(found.values) > 1:
                axis.errorbar(place + offset * width, height, error, color=_TEACHER, capsize=3, linewidth=1.1)
            shown = height + (error if len(found.values) > 1 else 0)
            axis.annotate(
                f"{height:.1f}",
                (place + offset * width, max(shown, 0)),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                size=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4},
                zorder=4,
            )
            top = max(top, shown)
    for label, alpha in (("untrained", 0.35), ("trained", 1.0)):
        axis.bar([0], [0], color=_TEACHER, alpha=alpha, label=label)
    teacher = students[0].metric("teacher", metric)
    axis.set_ylim(top=1.1 * max(top, 100 * teacher.values[0] if teacher else 0.0, 1.0))
    labels = [f"{student.tokenizer}\n{_wrapped(student.source)}" for student in students]
    axis.set_xticks(range(len(students)), labels, size=8.5)


def _wrapped(name: str, width: int = 12) -> str:
    """Break a name at its hyphens, so that six of them fit under a panel."""
    lines = [""]
    for part in name.replace("-", "-\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _draw_teacher(axis: Axes, found: Spread | None, label: str) -> None:
    """Draw the teacher's score as a line across."""
    if found is not None:
        height = 100 * found.values[0]
        axis.axhline(height, color=_TEACHER, linestyle="--", linewidth=1.2, label=f"{label}, {height:.1f}")


__all__ = ["draw_bars", "draw_learning_curves"]
