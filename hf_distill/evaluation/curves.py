"""The curves of a run: its loss terms and its validation scores over the steps."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("The pictures need matplotlib. Install the extra: pip install 'hf_distill[plot]'") from error

from hf_distill.evaluation.checkpoints import series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
Panel = tuple[Callable[..., None], list[str]]
_CHOSEN = "chosen checkpoint"
_BUCKET_LABELS = {"1_32": "1–32 tokens", "33_128": "33–128 tokens", "129_256": "129–256 tokens"}


def plot_curves(
    log_history: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str = "",
    reference: Mapping[str, Mapping[str, float]] | None = None,
    selected_step: int | None = None,
) -> Path:
    """Draw loss terms, validation similarity and fidelity per length bucket, side by side, as a PNG.

    Args:
        log_history (`Sequence[Mapping]`): the trainer's log, `read_log_history(run)`.
        path (`str` or `Path`): the PNG; written atomically.
        title (`str`, *optional*): of the figure.
        reference (`Mapping`, *optional*): horizontal lines, label to metrics:
            `{"teacher": {"stsb_spearman": 0.867}, "untrained": {"stsb_spearman": 0.41}}`.
        selected_step (`int`, *optional*): step of the chosen checkpoint, marked in every panel of scores.

    Returns:
        `Path`: the PNG.

    Raises:
        ValueError: the log holds neither a loss nor a score.
    """
    panels = curve_panels(log_history)
    if not panels:
        raise ValueError("The log holds no loss and no score: set logging_steps and eval_steps, or skip the curves.")
    with style():
        figure = Figure(figsize=(4.2 * len(panels), 4.1), dpi=160, layout="constrained")
        for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_panel(axis, panel, log_history, reference or {}, selected_step)
        if title:
            figure.suptitle(title, fontsize=13)
        return save_png(figure, path)


def curve_panels(log_history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Find what a log has curves of.

    Args:
        log_history (`Sequence[Mapping]`): the trainer's log.

    Returns:
        `list`: at most three panels for `draw_panel`: loss terms, validation similarity, closeness to the teacher by
        length.
    """
    keys = sorted({key for entry in log_history for key in entry})
    terms = [key for key in keys if key.startswith("loss/")]
    losses = (["loss"] if "loss" in keys and len(terms) != 1 else []) + terms
    similarity = [key for key in keys if key.startswith("eval_") and key.endswith("_spearman")]
    fidelity = [key for key in keys if key.startswith("eval_") and _bucket(key) is not None]
    cosines = [key for key in fidelity if "_cosine_" in key] or fidelity  # pair_rho where there is no cosine
    found = [(_draw_losses, losses), (_draw_similarity, similarity), (_draw_fidelity, cosines)]
    return [(draw, chosen) for draw, chosen in found if chosen]


def draw_panel(
    axis: Axes,
    panel: Panel,
    log_history: Sequence[Mapping[str, Any]],
    reference: Mapping[str, Mapping[str, float]],
    selected_step: int | None,
) -> None:
    """Draw one panel of `curve_panels`.

    Args:
        axis (`Axes`): where to.
        panel (`tuple`): what.
        log_history (`Sequence[Mapping]`): the trainer's log.
        reference (`Mapping`): horizontal lines, see `plot_curves`.
        selected_step (`int`, *optional*): step of the chosen checkpoint.
    """
    draw, keys = panel
    draw(axis, log_history, keys, reference, selected_step)
    axis.set_xlabel("optimiser step")
    axis.margins(x=0.02)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the reports."""
    with matplotlib.rc_context(_STYLE):
        yield


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as a PNG on white, which is legible on a dark page too."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG, atomically.

    Args:
        figure (`Figure`): the figure.
        path (`str` or `Path`): the file; its folder is made.

    Returns:
        `Path`: the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    temporary.write_bytes(png_bytes(figure))
    os.replace(temporary, path)
    return path


def _bucket(key: str) -> str | None:
    """Find the length bucket that a metric is of."""
    return next(
        (bucket for bucket in _BUCKET_LABELS if key.endswith(("cosine_" + bucket, "pair_rho_" + bucket))), None
    )


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Average over a window of a twentieth of the run, centred, so that the ends keep their place."""
    width = max(1, len(values) // 20) | 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _draw_losses(axis: Axes, log: Sequence[Mapping[str, Any]], keys: list[str], *_: Any) -> None:
    """Draw the terms: what was logged faintly, its moving average on top, on a logarithmic scale if all are positive."""
    positive = True
    for colour, key in zip(COLOURS * 2, keys, strict=False):
        steps, values = series(log, key)
        positive &= bool((values > 0).all())
        label = "weighted sum" if key == "loss" else key.removeprefix("loss/").replace("_", " ")
        if len(values) > 20:
            axis.plot(steps, values, color=colour, alpha=0.35, linewidth=0.9)
        axis.plot(steps, _smoothed(values), color=colour, linewidth=1.6, label=label)
    if positive:
        axis.set_yscale("log")
    axis.set_title("Training loss")
    axis.set_ylabel("loss (log scale)" if positive else "loss")
    _legend_below(axis)


def _draw_similarity(
    axis: Axes,
    log: Sequence[Mapping[str, Any]],
    keys: list[str],
    reference: Mapping[str, Mapping[str, float]],
    selected_step: int | None,
) -> None:
    """Draw validation Spearman with the reference models as horizontal lines."""
    for colour, key in zip(COLOURS, keys, strict=False):
        steps, values = series(log, key)
        axis.plot(steps, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label="student")
        _mark_selected(axis, steps, values, selected_step, colour)
    name = keys[0].removeprefix("eval_")
    lines = {label: metrics[name] for label, metrics in reference.items() if name in metrics}
    scores = np.concatenate([series(log, key)[1] for key in keys])
    room = max(float(np.ptp(scores)), 0.02)
    for style, (label, value) in zip(("--", ":", "-.", (0, (1, 4))), lines.items(), strict=False):
        look = {"color": "#333333", "linestyle": style, "linewidth": 1.2}
        if scores.min() - room <= value <= scores.max() + room:
            axis.axhline(value, label=f"{label} {value:.4f}", **look)
        else:  # a line far off would flatten the curve: say where it is
            axis.plot([], [], label=f"{label} {value:.4f} ({'below' if value < scores.min() else 'above'})", **look)
    titles = {"stsb_spearman": "STS-B validation", "stsb_tr_spearman": "STSb-TR validation"}
    axis.set_title(titles.get(name, name.removesuffix("_spearman")))
    axis.set_ylabel("Spearman correlation")
    _legend_below(axis)


def _draw_fidelity(
    axis: Axes, log: Sequence[Mapping[str, Any]], keys: list[str], _: Any, selected_step: int | None
) -> None:
    """Draw the agreement with the teacher per length bucket."""
    ordered = sorted(keys, key=lambda key: list(_BUCKET_LABELS).index(_bucket(key) or ""))
    for colour, key in zip(COLOURS, ordered, strict=False):
        steps, values = series(log, key)
        axis.plot(steps, values, color=colour, marker="o", markersize=3.5, label=_BUCKET_LABELS[_bucket(key) or ""])
        _mark_selected(axis, steps, values, selected_step, colour)
    cosine = "_cosine_" in ordered[0]
    axis.set_title("Held-out text, by length")
    axis.set_ylabel("cosine to the teacher" if cosine else "rank correlation with\nthe teacher's similarities")
    _legend_below(axis)


def _mark_selected(axis: Axes, steps: np.ndarray, values: np.ndarray, selected: int | None, colour: str) -> None:
    """Put a star on the chosen checkpoint, and name it once in the legend."""
    found = np.flatnonzero(steps == selected) if selected is not None else []
    if len(found):
        named = any(label == _CHOSEN for label in axis.get_legend_handles_labels()[1])
        style = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": "none", "zorder": 5}
        axis.plot(steps[found], values[found], color=colour, label=None if named else _CHOSEN, **style)


def _legend_below(axis: Axes) -> None:
    """Put the legend under the axis, where it hides no line."""
    count = len(axis.get_legend_handles_labels()[1])
    columns = 3 if count > 6 else 2
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, columnspacing=1.2, handlelength=1.6)
