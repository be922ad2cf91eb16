"""The report of a run as one HTML file that needs nothing besides itself, and its overview as a PNG.

Tables, notes and command come from `results.json`, the curves from the trainer's log in the newest checkpoint.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import hf_distill
from hf_distill.evaluation.checkpoints import read_log_history
from hf_distill.evaluation.curves import png_bytes
from hf_distill.evaluation.overview import draw_overview
from hf_distill.evaluation.report import footnotes, format_number, table_headers, table_lines
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.score_cache import write_atomically

if TYPE_CHECKING:
    from hf_distill.evaluation.training_summary import Origin, TrainingSummary

REPORT_FILE = "report.html"
OVERVIEW_FILE = "overview.png"


def render(template: str, **values: Any) -> str:
    """Fill one of the templates beside this file.

    Args:
        template (`str`): its name, `"run.html.jinja"`.
        **values: what it shows; texts are escaped, and a name that is missing is an error.

    Returns:
        `str`: the page.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(version=hf_distill.__version__, **values)


def inline(png: bytes) -> str:
    """Encode a picture for a page that carries it in itself."""
    return base64.b64encode(png).decode("ascii")


def write_html_report(run_folder: str | Path, log_history: Sequence[Mapping[str, Any]] | None = None) -> Path:
    """Write the report of a run: `report.html`, and its overview as `overview.png`.

    Args:
        run_folder (`str` or `Path`): the folder of a run, with `results.json`.
        log_history (`Sequence[Mapping]`, *optional*): the trainer's log; read from the newest checkpoint if not given.
            Without one the report has no curves.

    Returns:
        `Path`: the report.

    Raises:
        FileNotFoundError: there is no such folder, or no results in it.
        ValueError: the results are damaged, edited, or of another version.
        ImportError: matplotlib is missing; raised when this module is imported.

    Example:
        >>> write_html_report("runs/deltanet_minilm")
        PosixPath('runs/deltanet_minilm/report.html')
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no run folder {folder}. Give the output_dir of a training run.")
    results = Results.read(folder)
    log = read_log_history(folder) if log_history is None else log_history
    figure = draw_overview(results, log)
    picture = None if figure is None else png_bytes(figure)
    text = page(results, log, picture)
    if picture is not None:
        temporary = folder / f".{OVERVIEW_FILE}"
        temporary.write_bytes(picture)
        temporary.replace(folder / OVERVIEW_FILE)
    write_atomically(folder / REPORT_FILE, text)
    return folder / REPORT_FILE


def page(results: Results, log_history: Sequence[Mapping[str, Any]], picture: bytes | None) -> str:
    """Render the report of a run.

    Args:
        results (`Results`): the results.
        log_history (`Sequence[Mapping]`): the trainer's log.
        picture (`bytes`, *optional*): the overview, a PNG.

    Returns:
        `str`: HTML.
    """
    rows, sections = table_lines(results)
    names, scores = _checkpoint_scores(results, log_history)
    return render(
        "run.html.jinja",
        results=results,
        summary=_summary(results),
        tiles=_tiles(results),
        picture=inline(picture) if picture else "",
        headers=table_headers(rows),
        sections=sections,
        student=next((place for place, row in enumerate(rows) if row.role == "student"), -1),
        notes=footnotes(results),
        choice=_choice(results),
        score_names=names,
        scores=scores,
        facts=_facts(results),
        not_measured=results.training.not_measured if results.training else [],
    )


def _summary(results: Results) -> str:
    """Say in a sentence or two what the run is."""
    student, teacher = results.row("student"), results.row("teacher")
    if student is None:
        return "This run has no student's scores yet."
    size = f", {format_number(student.size.parameters)} parameters" if student.size else ""
    text = f"A student ({student.name}{size})" + (f" distilled from {teacher.name}." if teacher else ".")
    if "test" in student.metrics:
        return f"{text} Test scores are of the chosen checkpoint, read once after it was chosen on validation."
    return f"{text} Scores are of validation; the test split has not been read."


def _tiles(results: Results) -> list[tuple[str, str]]:
    """Choose the four figures that a reader looks for first."""
    student, teacher = results.row("student"), results.row("teacher")
    split = "test" if student and "test" in student.metrics else "validation"
    tiles = []
    for metric, label in (("stsb_spearman", "STS-B"), ("retrieval_ndcg_at_10", "retrieval")):
        share = results.retained(metric, split)
        if share is not None and student is not None:
            tiles.append(
                (f"{100 * share:.1f} %", f"of the teacher's {label}, {split} ({student.metrics[split][metric]:.4f})")
            )
    if student and teacher and student.speed and teacher.speed:
        ratio = student.speed.tokens_per_second / teacher.speed.tokens_per_second
        tiles.append((f"{ratio:.2f}×", f"the teacher's tokens/s ({student.speed.dtype})"))
    if student and student.size:
        tiles.append((f"{student.size.mb_int8:.0f} MB", f"in int8, {student.size.mb_fp32:.0f} MB in float32"))
    return tiles


def _choice(results: Results) -> str:
    """Say how the checkpoint was chosen."""
    if results.selected_step is None:
        return "The results do not say which checkpoint became the model."
    if not results.selected_by:
        return f"The model is the last checkpoint, step {results.selected_step:,}; nothing was chosen by a score."
    metric = results.selected_by.removeprefix("validation ")
    return (
        f"The model is the checkpoint of step {results.selected_step:,}, the best by {metric} on validation. The test "
        "split is no part of that choice."
    )


def _checkpoint_scores(
    results: Results, log_history: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[tuple[int, dict[str, float]]]]:
    """List the validation scores of the checkpoints: those that were scored afterwards, else those of the training."""
    if results.checkpoints:
        scores = {score.step: dict(score.metrics) for score in results.checkpoints}
    else:
        logged = [entry for entry in log_history if "step" in entry and any(key.startswith("eval_") for key in entry)]
        scores = {entry["step"]: {key.removeprefix("eval_"): entry[key] for key in entry} for entry in logged}
    metric = results.selected_by.removeprefix("validation ")
    found = {name for values in scores.values() for name in values}
    wanted = [metric, "stsb_spearman", "fidelity_cosine", "fidelity_pair_rho", "retrieval_ndcg_at_10"]
    names = list(dict.fromkeys(name for name in wanted if name in found))
    return names, sorted(scores.items()) if names else []


def _facts(results: Results) -> list[tuple[str, str]]:
    """List how the run was made."""
    training = _training_facts(results.training) if results.training else []
    facts = [
        ("command", results.command),
        ("seed", "" if results.seed is None else str(results.seed)),
        *training,
        ("time", "" if results.minutes is None else f"{results.minutes:.1f} minutes in all"),
        ("date", results.created),
        ("versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
    ]
    return [(name, value) for name, value in facts if value]


def _training_facts(training: TrainingSummary) -> list[tuple[str, str]]:
    """List what the training summary adds."""

    def named(origin: Origin) -> str:
        pinned = origin.revision or (f"sha256 {origin.sha256[:12]}" if origin.sha256 else "")
        return ", ".join(part for part in (origin.name, pinned, origin.license, origin.note) if part)

    stages = [
        f"{stage.name}: {stage.steps:,} steps, {stage.minutes:.1f} minutes"
        + (f", {stage.texts:,} texts" if stage.texts else "")
        + (f", {stage.tokens:,} tokens" if stage.tokens else "")
        for stage in training.stages
    ]
    sources = [
        f"{source.name} (weight {source.weight:g}" + (f", {source.rows:,} rows)" if source.rows is not None else ")")
        for source in training.sources
    ]
    settings = ", ".join(f"{name} {value}" for name, value in training.settings.items())
    return [
        ("teacher", named(training.teacher)),
        ("starts from", named(training.init_from) if training.init_from else "random weights"),
        ("student", f"{training.student} ({settings})" if settings else training.student),
        ("loss", ", ".join(f"{term} {weight}" for term, weight in training.losses.items())),
        ("text", f"{training.texts:,} rows; {training.overlap_removed:,} removed for overlap. {', '.join(sources)}"),
        ("batch", training.batch),
        ("learning rate", f"{training.learning_rate:g}"),
        ("stages", "; ".join(stages)),
        ("hardware", training.hardware),
    ]


__all__ = ["OVERVIEW_FILE", "REPORT_FILE", "inline", "page", "render", "write_html_report"]
