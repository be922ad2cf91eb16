"""The picture of a run on one page: quality, lengths and costs beside the teacher's, and the curves of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.data.length import BUCKETS
from hf_distill.evaluation.curves import COLOURS, Figure, curve_panels, draw_panel, save_png, style
from hf_distill.evaluation.report import ROLE_TITLES, format_number, quality_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hf_distill.evaluation.results import Results

ROLE_LOOKS = {
    "teacher": {"color": "#333333", "marker": "D"},
    "student": {"color": COLOURS[0], "marker": "o"},
    "untrained": {"color": COLOURS[4], "marker": "s"},
    "control": {"color": COLOURS[6], "marker": "X"},
}
_COSTS = [
    ("size", "parameters", "parameters"),
    ("size", "mb_int8", "MB in int8"),
    ("speed", "tokens_per_second", "tokens/s"),
    ("speed", "latency_p50_ms", "latency p50, ms"),
    ("speed", "latency_p95_ms", "latency p95, ms"),
    ("speed", "peak_memory_mb", "peak memory, MB"),
]


def draw_overview(results: Results, log_history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the overview of a run, two panels wide, so that it stays legible in a card.

    Args:
        results (`Results`): the results.
        log_history (`Sequence[Mapping]`): the trainer's log, for the curves; may be empty.

    Returns:
        `Figure` or `None`: panels for what there is; None where there is nothing to draw.
    """
    panels: list[Callable[[Axes], None]] = []
    split = "test" if any("test" in row.metrics for row in results.rows) else "validation"
    shares = _shares(results, split)
    if shares:
        panels.append(lambda axis: _draw_quality(axis, shares, split))
    lengths = _by_length(results, split)
    if lengths:
        panels.append(lambda axis: _draw_lengths(axis, *lengths, split))
    costs = _ratios(results)
    if costs:
        panels.append(lambda axis: _draw_costs(axis, costs))
    reference = {
        ROLE_TITLES[row.role]: row.metrics.get("validation", {}) for row in results.rows if row.role != "student"
    }
    for panel in curve_panels(log_history):
        panels.append(lambda axis, panel=panel: draw_panel(axis, panel, log_history, reference, results.selected_step))
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    with style():
        figure = Figure(figsize=(10, 4.1 * rows + 0.3), dpi=140, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
        axes = figure.subplots(rows, 2, squeeze=False).flat
        for axis, draw in zip(axes, panels, strict=False):
            draw(axis)
        for axis in list(figure.axes)[len(panels) :]:
            axis.remove()
        figure.suptitle(results.run, fontsize=14)
    return figure


def plot_overview(results: Results, log_history: Sequence[Mapping[str, Any]], path: str | Path) -> Path | None:
    """Write the overview of a run as a PNG, see `draw_overview`; None where there is nothing to draw."""
    figure = draw_overview(results, log_history)
    return None if figure is None else save_png(figure, path)


def _shares(results: Results, split: str) -> list[tuple[str, dict[str, float]]]:
    """List the metrics that have a teacher's value, with each model's share of it in per cent."""
    found = []
    for metric, label, divisor in quality_metrics(results, split):
        shares = {
            row.role: results.retained(metric, split, row.role, divisor)
            for row in results.rows
            if row.role != "teacher"
        }
        shares = {role: 100 * share for role, share in shares.items() if share is not None}
        if "student" in shares:
            found.append((label, shares))
    return found


def _draw_quality(axis: Axes, shares: list[tuple[str, dict[str, float]]], split: str) -> None:
    """Draw a line of dots for each metric; what lies far to the left is named at the edge."""
    near = [value for _, models in shares for role, value in models.items() if role == "student" or value > 85]
    left, right = min(*near, 98) - 1.5, max(*near, 100)
    right += 0.12 * (right - left)  # for the numbers
    for row, (_, models) in enumerate(shares):
        outside = [f"{ROLE_TITLES[role]} {value:.0f}" for role, value in models.items() if value < left]
        for role, value in models.items():
            if value >= left:
                axis.plot(value, row, linestyle="none", markersize=8, label=ROLE_TITLES[role], **ROLE_LOOKS[role])
        axis.annotate(
            f"{models['student']:.1f}",
            (models["student"], row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            size=9.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
        if outside:
            where = {"x": left + 0.01 * (right - left), "y": row + 0.33}
            axis.text(s=f"◂ {', '.join(outside)}", va="center", size=8.5, color="#555555", **where)
    axis.axvline(100, color=ROLE_LOOKS["teacher"]["color"], linestyle="--", linewidth=1.2, label="teacher")
    axis.set_xlim(left, right)
    axis.set_ylim(len(shares) - 0.5, -0.7)
    axis.set_yticks(range(len(shares)), [label.strip() for label, _ in shares], size=10)
    axis.set_xlabel(f"% of the teacher's score, {split}")
    axis.set_title("Quality")
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))  # one of each label
    axis.legend(handles.values(), handles.keys(), loc="upper center", bbox_to_anchor=(0.42, -0.17), ncols=3)


def _by_length(results: Results, split: str) -> tuple[str, dict[str, list[float]]] | None:
    """Find a metric per length bucket: retrieval of teacher and student, or closeness to the teacher."""
    for metric, label in (
        ("retrieval_ndcg_at_10", "retrieval nDCG@10"),
        ("fidelity_cosine", "cosine to the teacher"),
    ):
        names = [f"{metric}_{low}_{high}" for low, high in BUCKETS]
        values = {
            row.role: [row.metrics[split][name] for name in names]
            for row in results.rows
            if all(name in row.metrics.get(split, {}) for name in names)
        }
        if "student" in values:
            return label, values
    return None


def _draw_lengths(axis: Axes, label: str, values: dict[str, list[float]], split: str) -> None:
    """Draw bars for each length bucket, one a model."""
    width = 0.8 / len(values)
    for number, (role, heights) in enumerate(values.items()):
        places = np.arange(len(heights)) + (number - (len(values) - 1) / 2) * width
        bars = axis.bar(places, heights, width * 0.92, color=ROLE_LOOKS[role]["color"], label=ROLE_TITLES[role])
        axis.bar_label(bars, fmt="%.3f", padding=2, size=9 if len(values) < 3 else 7.5)
    axis.set_xticks(range(len(BUCKETS)), [f"{low}–{high}" for low, high in BUCKETS])
    axis.set_xlabel("tokens of the text")
    axis.set_ylabel(f"{label}, {split}")
    axis.set_title("By length")
    axis.grid(axis="x", visible=False)
    axis.margins(y=0.12)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)


def _ratios(results: Results) -> list[tuple[str, float, float]]:
    """List the costs that student and teacher both have: label, student's, teacher's."""
    student, teacher = results.row("student"), results.row("teacher")
    found = []
    for part, name, label in _COSTS if student and teacher else ():
        values = [getattr(getattr(row, part), name, None) for row in (student, teacher)]
        if all(values):
            found.append((label, *values))
    return found


def _draw_costs(axis: Axes, costs: list[tuple[str, float, float]]) -> None:
    """Draw the student's costs as multiples of the teacher's, on a logarithmic axis around one."""
    ratios = [student / teacher for _, student, teacher in costs]
    reach = 1.6 * max(2.0, *(max(ratio, 1 / ratio) for ratio in ratios))
    bars = axis.barh(
        range(len(costs)), [ratio - 1 for ratio in ratios], 0.5, left=1, color=ROLE_LOOKS["student"]["color"]
    )
    for bar, ratio in zip(bars, ratios, strict=True):
        end = {"x": ratio * 1.05, "ha": "left"} if ratio >= 1 else {"x": ratio / 1.05, "ha": "right"}
        axis.text(y=bar.get_y() + bar.get_height() / 2, s=f"{ratio:.2f}×", va="center", size=10, **end)
    axis.axvline(1, color=ROLE_LOOKS["teacher"]["color"], linestyle="--", linewidth=1.2)
    axis.set_xscale("log")
    axis.set_xlim(1 / reach, reach)
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / reach <= tick <= reach]
    axis.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(len(costs) - 0.5, -0.5)
    labels = [f"{label}\n{format_number(student)} / {format_number(teacher)}" for label, student, teacher in costs]
    axis.set_yticks(range(len(costs)), labels, size=9.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("student ÷ teacher")
    axis.set_title("Size and speed")


__all__ = ["ROLE_LOOKS", "draw_overview", "plot_overview"]
