"""The report of a run: one table for the terminal and for Markdown, the README of the run folder, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.utils import logging

from hf_distill.data.length import BUCKETS
from hf_distill.evaluation.checkpoints import MODEL_FOLDER, read_log_history
from hf_distill.evaluation.results import ROLES, ModelRow, Results
from hf_distill.evaluation.score_cache import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.get_logger(__name__)

README_FILE = "README.md"
CURVES_FILE = "curves.png"
_ROLE_TITLES = {
    "teacher": "teacher",
    "student": "student",
    "untrained": "untrained",
    "control": "random init",
}
_BUCKET_SUFFIXES = [(f"_{low}_{high}", f"{low}–{high} tokens") for low, high in BUCKETS]
# Metric, what the table calls it, and by which of the teacher's metrics it is divided, if that says something.
_METRICS: list[tuple[str, str, str]] = [
    ("stsb_spearman", "STS-B Spearman", "stsb_spearman"),
    ("stsb_pearson", "STS-B Pearson", "stsb_pearson"),
    ("int8_spearman", "  Spearman with int8", "stsb_spearman"),
    ("stsbenchmark_spearman", "STSBenchmark (mteb)", "stsbenchmark_spearman"),
    ("retrieval_ndcg_at_10", "retrieval nDCG@10", "retrieval_ndcg_at_10"),
    *(
        (f"retrieval_ndcg_at_10{suffix}", f"  {label}", f"retrieval_ndcg_at_10{suffix}")
        for suffix, label in _BUCKET_SUFFIXES
    ),
    ("lexnames_accuracy", "lexname accuracy", "lexnames_accuracy"),
    ("modules_accuracy", "module accuracy", "modules_accuracy"),
    ("fidelity_cosine", "cosine to teacher", ""),
    *((f"fidelity_cosine{suffix}", f"  {label}", "") for suffix, label in _BUCKET_SUFFIXES),
    ("fidelity_pair_rho", "pair-rho to teacher", ""),
    *((f"fidelity_pair_rho{suffix}", f"  {label}", "") for suffix, label in _BUCKET_SUFFIXES),
]
_COSTS: list[tuple[str, str, str]] = [
    ("size", "parameters", "parameters"),
    ("size", "mb_fp32", "MB float32"),
    ("size", "mb_int8", "MB int8"),
    ("speed", "texts_per_second", "texts/s"),
    ("speed", "tokens_per_second", "tokens/s"),
    ("speed", "latency_p50_ms", "latency p50, ms"),
    ("speed", "latency_p95_ms", "latency p95, ms"),
]


_SOURCES = [
    ("retrieval_", "retrieval finds the passage of Python's documentation that a first sentence belongs to"),
    ("lexnames_", "lexnames are 12 fields of WordNet's nouns"),
    ("modules_", "modules are 13 families of Python's documentation"),
    ("fidelity_", "the teacher is compared on WordNet's definitions and Python's documentation, half each"),
]


class Line(NamedTuple):
    """One line of the table.

    Args:
        label (`str`): what is measured; two leading spaces for a part of the line above.
        values (`list[str]`): one cell a model.
        retained (`str`): the student's value in per cent of the teacher's; a factor for sizes and speeds.
    """

    label: str
    values: list[str]
    retained: str


def table_lines(results: Results) -> tuple[list[ModelRow], list[tuple[str, list[Line]]]]:
    """Lay the results out as a table: a line for each measure, a column for each model.

    Args:
        results (`Results`): the results.

    Returns:
        `tuple`: the models in the order of the columns, and sections (title, lines): test scores, validation scores,
        size and speed. What no model has is left out.
    """
    rows = sorted(results.rows, key=lambda row: ROLES.index(row.role))
    sections = []
    for split in ("test", "validation"):
        lines = [
            _metric_line(results, rows, split, *metric) for metric in _METRICS if _is_shown(results, split, metric[0])
        ]
        mean = results.mean_retained(split)
        if mean is not None:
            shares = [results.mean_retained(split, row.role) if row.role != "teacher" else None for row in rows]
            cells = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
            lines.append(Line("mean of teacher's", cells, f"{100 * mean:.1f}"))
        sections.append((split, [line for line in lines if line]))
    sections.append(("size and speed", [line for line in (_cost_line(rows, *cost) for cost in _COSTS) if line]))
    return rows, [(title, lines) for title, lines in sections if lines]


def _is_shown(results: Results, split: str, metric: str) -> bool:
    """Tell whether a metric adds something: pair-rho per length does so only where there is no cosine."""
    with_cosine = any("fidelity_cosine" in row.metrics.get(split, {}) for row in results.rows)
    return not (with_cosine and metric.startswith("fidelity_pair_rho_"))


def _metric_line(
    results: Results, rows: Sequence[ModelRow], split: str, metric: str, label: str, divisor: str
) -> Line | None:
    """Make the line of a metric; None where no model has it."""
    values = [row.metrics.get(split, {}).get(metric) for row in rows]
    if all(value is None for value in values):
        return None
    retained = results.retained(metric, split, divisor=divisor) if divisor else None
    cells = ["" if value is None else f"{value:.4f}" for value in values]
    return Line(label, cells, "" if retained is None else f"{100 * retained:.1f}")


def _cost_line(rows: Sequence[ModelRow], part: str, name: str, label: str) -> Line | None:
    """Make the line of a size or a speed; None where no model has it."""
    facts = [getattr(row, part) for row in rows]
    values = [None if fact is None else float(getattr(fact, name)) for fact in facts]
    if all(value is None for value in values):
        return None
    of_role = dict(zip([row.role for row in rows], values, strict=True))
    student, teacher = of_role.get("student"), of_role.get("teacher")
    ratio = f"{student / teacher:.2f}×" if student is not None and teacher else ""
    return Line(label, ["" if value is None else _number(value) for value in values], ratio)


def _number(value: float) -> str:
    """Write a number with as many digits as say something."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def _headers(rows: Sequence[ModelRow]) -> list[str]:
    """Title the columns."""
    return ["", *(_ROLE_TITLES[row.role] for row in rows), "% retained"]


def markdown_table(results: Results) -> str:
    """Write the table in Markdown.

    Args:
        results (`Results`): the results.

    Returns:
        `str`: the table, with the sections as lines in bold.
    """
    rows, sections = table_lines(results)
    lines = ["| " + " | ".join(_headers(rows)) + " |", "|:--|" + "--:|" * (len(rows) + 1)]
    for title, section in sections:
        lines.append(f"| **{title}** |" + " |" * (len(rows) + 1))
        for label, values, retained in section:
            label = "&nbsp;&nbsp;&nbsp;" + label.strip() if label.startswith(" ") else label
            lines.append("| " + " | ".join([label, *values, retained]) + " |")
    return "\n".join(lines)


def rich_table(results: Results) -> Table:
    """Lay the table out for a terminal.

    Args:
        results (`Results`): the results.

    Returns:
        `rich.table.Table`: ready for `rich.console.Console().print`.
    """
    from rich import box
    from rich.table import Table

    rows, sections = table_lines(results)
    table = Table(title=results.run, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for number, header in enumerate(_headers(rows)):
        table.add_column(header, justify="left" if number == 0 else "right", no_wrap=True)
    for title, section in sections:
        table.add_row(f"[bold]{title}[/bold]", *[""] * (len(rows) + 1))
        for label, values, retained in section:
            table.add_row(f" {label}", *values, retained)
        table.add_section()
    return table


def footnotes(results: Results) -> list[str]:
    """Say what a reader must know to believe the table.

    Args:
        results (`Results`): the results.

    Returns:
        `list[str]`: sentences in Markdown.
    """
    notes = [f"{_ROLE_TITLES[row.role]}: {row.name}" + (f" ({row.note})" if row.note else "") for row in results.rows]
    if results.selected_step is not None:
        by = f", chosen by {results.selected_by} among the scored checkpoints" if results.selected_by else ""
        notes.append(f"The model is the checkpoint of step {results.selected_step:,}{by}.")
    if any("test" in row.metrics for row in results.rows):
        notes.append("Test scores were computed once, after that choice, in float32.")
    if any("int8_spearman" in metrics for row in results.rows for metrics in row.metrics.values()):
        notes.append("int8: every matrix rounded to int8 with one scale a row, computed in float32.")
    scored = " ".join(name for row in results.rows for metrics in row.metrics.values() for name in metrics)
    sources = [text for prefix, text in _SOURCES if prefix in scored]
    if sources:
        notes.append(
            f"Held-out texts: {'; '.join(sources)}. None of them is trained on. The documentation is that of Python "
            f"{results.versions.get('python', '')} itself; another version has other texts, so compare models on one."
        )
    hardware = sorted({f"{row.speed.hardware}, {row.speed.dtype}" for row in results.rows if row.speed})
    if hardware:
        notes.append(f"Speed was measured on {' and '.join(hardware)}, the models taking turns on the same texts.")
    return notes + results.notes


def readme_text(results: Results, has_curves: bool, has_code: bool) -> str:
    """Write the README of a run folder.

    Args:
        results (`Results`): the results.
        has_curves (`bool`): whether the picture lies beside it.
        has_code (`bool`): whether the model brings its own modelling code.

    Returns:
        `str`: Markdown with the metadata that the Hub reads.
    """
    trust = ", trust_remote_code=True" if has_code else ""
    facts = [
        ("command", f"`{results.command}`" if results.command else ""),
        ("seed", "" if results.seed is None else str(results.seed)),
        ("time", "" if results.minutes is None else f"{results.minutes:.1f} minutes"),
        ("date", results.created),
        ("versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
    ]
    parts = [
        "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\n"
        "tags:\n- hf_distill\n- knowledge-distillation\n- sentence-transformers\n---",
        f"# {results.run}",
        f"```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{MODEL_FOLDER}"{trust})\n'
        'vectors = model.encode(["A first sentence.", "A second one."])\n```',
        "## Results",
        markdown_table(results),
        "\n".join(f"* {note}" for note in footnotes(results)),
        f"![Loss and validation curves]({CURVES_FILE})" if has_curves else "",
        "## How it was made",
        "\n".join(f"* {name}: {value}" for name, value in facts if value),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_report(
    results: Results, folder: str | Path, log_history: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Path]:
    """Write `results.json`, the curves and the README into a run's folder.

    Args:
        results (`Results`): the results.
        folder (`str` or `Path`): the run's folder.
        log_history (`Sequence[Mapping]`, *optional*): the trainer's log; read from the folder's newest trainer state
            if not given. Without a log, or without matplotlib, there are no curves, and a warning says so.

    Returns:
        `dict[str, Path]`: the files, by `"results"`, `"curves"` (where drawn) and `"readme"`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"results": results.write(folder)}
    log = read_log_history(folder) if log_history is None else log_history
    validation = {_ROLE_TITLES[row.role]: row.metrics.get("validation", {}) for row in results.rows}
    reference = {title: metrics for title, metrics in validation.items() if title != "student"}
    try:
        from hf_distill.evaluation.curves import plot_curves

        files["curves"] = plot_curves(log, folder / CURVES_FILE, results.run, reference, results.selected_step)
    except (ImportError, ValueError) as error:
        logger.warning("No curves were drawn: %s", error)
    has_code = any((folder / MODEL_FOLDER).glob("*.py"))
    write_atomically(folder / README_FILE, readme_text(results, "curves" in files, has_code))
    return files | {"readme": folder / README_FILE}


def print_report(results: Results) -> None:
    """Print the table and its footnotes to the terminal.

    Args:
        results (`Results`): the results.
    """
    from rich.console import Console

    console = Console()
    console.print(rich_table(results))
    for note in footnotes(results):
        console.print(f"• {note}", markup=False, highlight=False)
