"""Several runs side by side: one HTML page and one picture with the frontier of quality, size and speed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_distill.evaluation.curves import COLOURS, Figure, png_bytes, save_png, style
from hf_distill.evaluation.html_report import inline, render
from hf_distill.evaluation.report import COSTS, format_number, quality_metrics
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.score_cache import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_distill.evaluation.results import ModelRow

COMPARISON_FILE = "comparison.html"
_TEACHER = "#333333"
# parts of a panel: from a point to its label, the width of a label's character, the height of its line
_LABEL_GAP, _CHARACTER, _LINE = 0.05, 0.0175, 0.06


@dataclass(frozen=True)
class Point:
    """A model in the picture.

    Args:
        label (`str`): its name in the picture: the run's, or the teacher's.
        quality (`float`): the metric.
        size (`float`, *optional*): megabytes in float32.
        speed (`float`, *optional*): tokens a second, or multiples of the teacher's.
        is_teacher (`bool`, *optional*): drawn as what the others are measured by.
    """

    label: str
    quality: float
    size: float | None
    speed: float | None
    is_teacher: bool = False


class Comparison(NamedTuple):
    """What several runs have in common: the split and metric they are compared by, and the unit of their speeds.

    Args:
        split (`str`): `"test"` where every run has it, else `"validation"`.
        metric (`str`): the metric.
        relative (`bool`): speeds are multiples of the one teacher's, each measured in the same minutes.
    """

    split: str
    metric: str
    relative: bool


def compare_runs(
    run_folders: Sequence[str | Path], output: str | Path | None = None, metric: str = "stsb_spearman"
) -> Path:
    """Compare runs in one HTML page with a table and the frontier, and the frontier as a PNG beside it.

    Args:
        run_folders (`Sequence[str | Path]`): folders of at least two runs, each with `results.json`.
        output (`str` or `Path`, *optional*): the page, or a folder for it; by default `comparison.html` in the folder
            that holds the first run. The picture has the same name with `.png`.
        metric (`str`, *optional*, defaults to `"stsb_spearman"`): the quality of the picture. The test split counts
            where every run has it, validation otherwise; the two are never mixed.

    Returns:
        `Path`: the page.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: fewer than two runs, one of them twice, or one without the metric.

    Example:
        >>> compare_runs(["runs/deltanet_minilm", "runs/layers3_minilm"])
        PosixPath('runs/comparison.html')
    """
    folders = [Path(folder) for folder in run_folders]
    runs = read_runs(folders)
    if len(runs) < 2:
        raise ValueError(f"A comparison needs at least two runs; {len(runs)} given. For one run there is report.html.")
    target = folders[0].resolve().parent if output is None else Path(output)
    target = target if target.suffix == ".html" else target / COMPARISON_FILE
    basis = _basis(runs, metric)
    points = _points(runs, basis)
    figure = draw_frontier(points, _quality_label(runs, basis), basis.relative)
    headers, lines = _table(runs, basis)
    text = render(
        "comparison.html.jinja",
        title=f"Comparison of {len(runs)} runs",
        basis=basis,
        runs=runs,
        headers=headers,
        lines=lines,
        picture=inline(png_bytes(figure)),
        notes=_notes(runs, basis),
    )
    save_png(figure, target.with_suffix(".png"))
    write_atomically(target, text)
    return target


def read_runs(folders: Sequence[Path]) -> list[tuple[str, Results]]:
    """Read the results of runs, with names that tell them apart.

    Args:
        folders (`Sequence[Path]`): their folders.

    Returns:
        `list[tuple[str, Results]]`: name of each, the folder's, and its results.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: a folder is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = sorted({folder.name for folder in resolved if resolved.count(folder) > 1})
    if twice:
        raise ValueError(f"The run {', '.join(twice)} is given more than once.")
    shared = os.path.commonpath([folder.parent for folder in resolved]) if len(resolved) > 1 else ""
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):  # runs/a/student and runs/b/student
        names = [folder.relative_to(shared).as_posix() for folder in resolved]
    return [(name, Results.read(folder)) for name, folder in zip(names, folders, strict=True)]


def _basis(runs: Sequence[tuple[str, Results]], metric: str) -> Comparison:
    """Find what the runs can be compared by."""
    lacking = {
        split: [name for name, results in runs if metric not in _metrics(results.row("student"), split)]
        for split in ("test", "validation")
    }
    split = next((split for split, names in lacking.items() if not names), None)
    if split is None:
        found = "; ".join(f"{split} is missing in {', '.join(names)}" for split, names in lacking.items())
        raise ValueError(
            f"These runs cannot be compared by {metric}: {found}. Evaluate them "
            f"(recipes/evaluate_student.py --run {lacking['validation'][0]}), or choose another metric."
        )
    rows = [(results.row("teacher"), results.row("student")) for _, results in runs]
    fingerprints = {teacher.fingerprint for teacher, _ in rows if teacher}
    measured = all(teacher and teacher.speed and student and student.speed for teacher, student in rows)
    return Comparison(split, metric, measured and len(fingerprints) == 1)


def _metrics(row: ModelRow | None, split: str) -> dict[str, float]:
    """Look up a model's metrics; none without the model."""
    return row.metrics.get(split, {}) if row else {}


def _points(runs: Sequence[tuple[str, Results]], basis: Comparison) -> list[Point]:
    """Place the students, and each teacher once; relative speeds put the teacher at one."""
    points, teachers = [], {}
    for name, results in runs:
        student, teacher = results.row("student"), results.row("teacher")
        speed = student.speed.tokens_per_second if student.speed else None
        if basis.relative:
            speed /= teacher.speed.tokens_per_second
        quality = student.metrics[basis.split][basis.metric]
        points.append(Point(name, quality, student.size.mb_fp32 if student.size else None, speed))
        if basis.metric in _metrics(teacher, basis.split):
            speed = 1.0 if basis.relative else teacher.speed.tokens_per_second if teacher.speed else None
            label = f"{teacher.name.rpartition('/')[2]} (teacher)"
            size = teacher.size.mb_fp32 if teacher.size else None
            teachers[teacher.fingerprint] = Point(label, teacher.metrics[basis.split][basis.metric], size, speed, True)
    return points + list(teachers.values())


def frontier(points: Sequence[tuple[float, float]], more_is_better: bool) -> list[tuple[float, float]]:
    """Find the points that no other beats in both ways.

    Args:
        points (`Sequence[tuple[float, float]]`): cost or speed, and quality.
        more_is_better (`bool`): for the first number; more quality is always better.

    Returns:
        `list[tuple[float, float]]`: the frontier, from its best quality to its best first number.
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point[1], -point[0] if more_is_better else point[0])):
        if not best or (point[0] > best[-1][0] if more_is_better else point[0] < best[-1][0]):
            best.append(point)
    return best


def draw_frontier(points: Sequence[Point], quality: str, relative: bool) -> Figure:
    """Draw quality against speed and against size, with the points that nothing beats joined by a line.

    Args:
        points (`Sequence[Point]`): the models.
        quality (`str`): label of the quality.
        relative (`bool`): whether speeds are multiples of the teacher's.

    Returns:
        `Figure`: two panels, or one where only size or only speed is known.
    """
    speed = "tokens per second, × the teacher's" if relative else "tokens per second"
    panels = [("speed", f"{speed}  (right is faster)", True), ("size", "MB in float32  (left is smaller)", False)]
    panels = [panel for panel in panels if any(getattr(point, panel[0]) is not None for point in points)]
    with style():
        figure = Figure(figsize=(5.2 * max(len(panels), 1), 4.6), dpi=150, layout="constrained")
        for axis, (field, label, faster) in zip(
            figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
        ):
            known = [point for point in points if getattr(point, field) is not None]
            places = [(getattr(point, field), point.quality) for point in known]
            _draw_points(axis, known, places, frontier(places, faster))
            axis.set_xlabel(label)
            axis.set_ylabel(quality)
    return figure


def _draw_points(
    axis: Axes, points: Sequence[Point], places: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]]
) -> None:
    """Draw one panel: the frontier, the points, and a label beside each that covers no other."""
    axis.plot(*zip(*best, strict=True), color=COLOURS[6], linewidth=1.2, linestyle="--", zorder=1)
    number = 0
    for point, (x, y) in zip(points, places, strict=True):
        look = {"color": _TEACHER, "marker": "*", "markersize": 19, "zorder": 2}  # under a student in the same place
        if not point.is_teacher:
            look = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "markersize": 8.5, "zorder": 3}
            number += 1
        axis.plot(x, y, linestyle="none", markeredgecolor="white", **look)
    horizontal, vertical = (np.array(values) for values in zip(*places, strict=True))
    _set_horizontal_range(axis, points, horizontal)
    height = max(float(np.ptp(vertical)), 0.01)  # a hair's breadth shall look like one
    axis.set_ylim(vertical.min() - 0.35 * height, vertical.max() + 0.35 * height)
    spots = axis.transAxes.inverted().transform(axis.transData.transform(np.column_stack([horizontal, vertical])))
    for point, place, (left, middle, on_right) in zip(points, places, _label_places(points, spots), strict=True):
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
        line["relpos"] = (0, 0.5) if on_right else (1, 0.5)
        axis.annotate(
            point.label,
            place,
            (left, middle),
            textcoords="axes fraction",
            va="center",
            size=9.5,
            color=_TEACHER,
            arrowprops=line,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.3},
        )


def _label_places(points: Sequence[Point], spots: np.ndarray) -> list[tuple[float, float, bool]]:
    """Place each label as near to its point as it covers no point and no other label, in parts of the panel.

    Args:
        points (`Sequence[Point]`): the models.
        spots (`np.ndarray`): where they are, `(N, 2)`.

    Returns:
        `list[tuple[float, float, bool]]`: left end and middle of each label, and whether it is right of its point.
    """
    taken = [(x - 0.02, x + 0.02, y - 0.03, y + 0.03) for x, y in spots]
    chosen: dict[int, tuple[float, float, bool]] = {}
    for index in np.argsort(-spots[:, 1], kind="stable"):
        x, y = spots[index]
        width = len(points[index].label) * _CHARACTER
        offsets = sorted((step * _LINE / 2 for step in range(-16, 17)), key=lambda offset: (abs(offset), -offset))
        for offset, on_right in ((offset, side) for offset in offsets for side in (True, False)):
            left, middle = x + _LABEL_GAP if on_right else x - _LABEL_GAP - width, y + offset
            box = (left, left + width, middle - _LINE / 2, middle + _LINE / 2)
            inside = box[0] > 0 and box[1] < 1.02 and box[2] > 0 and box[3] < 1
            if inside and not any(_overlap(box, other) for other in taken):
                break
        else:
            left, middle, on_right = x + _LABEL_GAP, y, True  # no room: more models than a picture can name
        taken.append((left, left + width, middle - _LINE / 2, middle + _LINE / 2))
        chosen[int(index)] = (left, middle, on_right)
    return [chosen[index] for index in range(len(points))]


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Tell whether two boxes (left, right, bottom, top) overlap."""
    return first[0] < second[1] and second[0] < first[1] and first[2] < second[3] and second[2] < first[3]


def _set_horizontal_range(axis: Axes, points: Sequence[Point], values: np.ndarray) -> None:
    """Set the range of the horizontal axis, logarithmic if it is wide, with room for every label on its right."""
    wide = values.max() > 4 * values.min() > 0
    along = np.log10(values) if wide else values
    span = max(float(np.ptp(along)), 0.1 if wide else 0.2 * float(values.max()))
    start = along.min() - 0.08 * span
    shares = np.array([0.02 + _LABEL_GAP + len(point.label) * _CHARACTER for point in points])
    end = max((start + (along - start) / (1 - np.minimum(shares, 0.7))).max(), along.max() + 0.08 * span)
    limits = (10.0**start, 10.0**end) if wide else (start, end)
    if wide:
        axis.set_xscale("log")
        ticks = [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        axis.minorticks_off()
    axis.set_xlim(*limits)


def _quality_label(runs: Sequence[tuple[str, Results]], basis: Comparison) -> str:
    """Name the metric as the tables do."""
    labels = {metric: label for metric, label, _ in quality_metrics(runs[0][1], basis.split)}
    return f"{labels.get(basis.metric, basis.metric)}, {basis.split}"


def _table(runs: Sequence[tuple[str, Results]], basis: Comparison) -> tuple[list[str], list[list[str]]]:
    """Lay the runs out as a table: a column each, after the teacher's if there is one for all; a line a measure."""
    students = [results.row("student") for _, results in runs]
    found = [row for _, results in runs if (row := results.row("teacher"))]
    found.sort(key=lambda row: len(_metrics(row, basis.split)))  # of one teacher in several runs the fullest row
    teachers = {row.fingerprint: row for row in found}
    rows = [*(teachers.values() if len(teachers) == 1 else ()), *students]
    headers = ["", *(["teacher"] if len(rows) > len(students) else []), *(name for name, _ in runs)]
    entries = dict.fromkeys(entry for _, results in runs for entry in quality_metrics(results, basis.split))
    lines = []
    for metric, label, _ in entries:
        values = [_metrics(row, basis.split).get(metric) for row in rows]
        lines.append([label, *("" if value is None else f"{value:.4f}" for value in values)])
    blank = [""] * (len(rows) - len(students))
    means = [results.mean_retained(basis.split) for _, results in runs]
    lines.append(["mean % of teacher's", *blank, *("" if mean is None else f"{100 * mean:.1f}" for mean in means)])
    for part, name, label in COSTS:
        facts = [getattr(getattr(row, part), name, None) for row in rows]
        lines.append([label, *("" if fact is None else format_number(fact) for fact in facts)])
    if basis.relative:
        ratios = [
            student.speed.tokens_per_second / results.row("teacher").speed.tokens_per_second
            for student, (_, results) in zip(students, runs, strict=True)
        ]
        lines.append(["tokens/s ÷ its teacher's", *blank, *(f"{ratio:.2f}" for ratio in ratios)])
    lines.append(["seed", *blank, *("" if results.seed is None else str(results.seed) for _, results in runs)])
    return headers, [line for line in lines if any(line[1:])]


def _notes(runs: Sequence[tuple[str, Results]], basis: Comparison) -> list[str]:
    """Say what the comparison rests on."""
    source = "read once a run, after its checkpoint was chosen" if basis.split == "test" else "which chose checkpoints"
    notes = [f"Scores are those of the {basis.split} split, {source}."]
    rows = [results.row("student") for _, results in runs]
    hardware = sorted({f"{row.speed.hardware}, {row.speed.dtype}" for row in rows if row and row.speed})
    if hardware:
        unit = "Each run's speed is divided by its teacher's, measured in turns with it. " if basis.relative else ""
        notes.append(f"{unit}Speeds were measured on {'; '.join(hardware)}.")
    if len(hardware) > 1 and not basis.relative:
        notes.append("The speeds are of different machines or precisions and do not compare.")
    pythons = sorted({results.versions.get("python", "unknown") for _, results in runs})
    if len(pythons) > 1:
        notes.append(f"Retrieval and module texts differ: they are those of Python {', '.join(pythons)}.")
    notes.append("A dashed line joins the models that no other beats in both quality and cost.")
    return notes


__all__ = ["COMPARISON_FILE", "Comparison", "Point", "compare_runs", "draw_frontier", "frontier", "read_runs"]
