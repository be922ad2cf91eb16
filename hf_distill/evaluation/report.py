"""The report of a run: one table for the terminal and for Markdown, the README of the run folder, and the picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.utils import logging

from hf_distill.data.length import BUCKETS
from hf_distill.evaluation.checkpoints import MODEL_FOLDER, read_log_history
from hf_distill.evaluation.results import ROLES, ModelRow, Results
from hf_distill.evaluation.score_cache import write_atomically
from hf_distill.hub.own_code import OwnCode, own_code

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.get_logger(__name__)

README_FILE = "README.md"
CURVES_FILE = "curves.png"
ROLE_TITLES = {
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
    ("embedding_int8_spearman", "  int8 vectors, 4× smaller", "stsb_spearman"),
    ("embedding_binary_spearman", "  binary vectors, 32×", "stsb_spearman"),
    ("stsbenchmark_spearman", "STSBenchmark (mteb)", "stsbenchmark_spearman"),
    ("retrieval_ndcg_at_10", "retrieval nDCG@10", "retrieval_ndcg_at_10"),
    *(
        (f"retrieval_ndcg_at_10{suffix}", f"  {label}", f"retrieval_ndcg_at_10{suffix}")
        for suffix, label in _BUCKET_SUFFIXES
    ),
    ("embedding_int8_ndcg_at_10", "  int8 vectors, 4× smaller", "retrieval_ndcg_at_10"),
    ("embedding_binary_ndcg_at_10", "  binary vectors, 32×", "retrieval_ndcg_at_10"),
    ("lexnames_accuracy", "lexname accuracy", "lexnames_accuracy"),
    ("modules_accuracy", "module accuracy", "modules_accuracy"),
    ("stsb_tr_spearman", "STSb-TR Spearman", "stsb_tr_spearman"),
    ("stsb_tr_pearson", "STSb-TR Pearson", "stsb_tr_pearson"),
    ("bitext_recall_at_1", "TR→EN recall@1", "bitext_recall_at_1"),
    ("bitext_recall_at_10", "  recall@10", ""),
    ("bitext_mrr_at_10", "  MRR@10", ""),
    ("bitext_ndcg_at_10", "  nDCG@10", ""),
    ("bitext_own_recall_at_1", "  recall@1, own English", ""),
    ("fidelity_cosine", "cosine to teacher", ""),
    *((f"fidelity_cosine{suffix}", f"  {label}", "") for suffix, label in _BUCKET_SUFFIXES),
    ("fidelity_pair_rho", "pair-rho to teacher", ""),
    *((f"fidelity_pair_rho{suffix}", f"  {label}", "") for suffix, label in _BUCKET_SUFFIXES),
]
COSTS: list[tuple[str, str, str]] = [
    ("size", "parameters", "parameters"),
    ("size", "mb_fp32", "MB float32"),
    ("size", "mb_int8", "MB int8"),
    ("speed", "texts_per_second", "texts/s"),
    ("speed", "tokens_per_second", "tokens/s"),
    ("speed", "latency_p50_ms", "latency p50, ms"),
    ("speed", "latency_p95_ms", "latency p95, ms"),
    ("speed", "peak_memory_mb", "peak memory, MB"),
    ("tokenizer", "tokens_per_word", "tokens a word"),
    ("tokenizer", "mean_length", "mean length, tokens"),
]
_MTEB = re.compile(r"mteb_(?P<task>.+?)_(?P<score>[a-z0-9]+(?:_[a-z0-9]+)*)")

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
        metrics = [
            metric for metric in [*_METRICS, *_mteb_metrics(rows, split)] if _is_shown(results, split, metric[0])
        ]
        lines = [_metric_line(results, rows, split, *metric) for metric in metrics]
        mean = results.mean_retained(split)
        if mean is not None:
            shares = [results.mean_retained(split, row.role) if row.role != "teacher" else None for row in rows]
            cells = ["" if share is None else f"{100 * share:.1f} %" for share in shares]
            lines.append(Line("mean of teacher's", cells, f"{100 * mean:.1f}"))
        sections.append((split, [line for line in lines if line]))
    sections.append(("size and speed", [line for line in (_cost_line(rows, *cost) for cost in COSTS) if line]))
    return rows, [(title, lines) for title, lines in sections if lines]


def quality_metrics(results: Results, split: str) -> list[tuple[str, str, str]]:
    """List the metrics that are compared with the teacher's, one a task.

    Args:
        results (`Results`): the results.
        split (`str`): `"test"` or `"validation"`.

    Returns:
        `list[tuple[str, str, str]]`: metric, what the table calls it, and the teacher's metric that divides it.
    """
    labels = {"int8_spearman": "STS-B, int8 weights"} | {
        f"embedding_{precision}_{metric}": f"{task}, {precision} vectors"
        for precision in ("int8", "binary")
        for metric, task in (("spearman", "STS-B"), ("ndcg_at_10", "retrieval"))
    }
    parts = tuple(suffix for suffix, _ in _BUCKET_SUFFIXES)
    return [
        (metric, labels.get(metric, label.strip()), divisor)
        for metric, label, divisor in [*_METRICS, *_mteb_metrics(results.rows, split)]
        if divisor and not metric.endswith((*parts, "_pearson")) and metric != "stsbenchmark_spearman"
    ]


def _mteb_metrics(rows: Sequence[ModelRow], split: str) -> list[tuple[str, str, str]]:
    """List the metrics of mteb's tasks by name, `mteb_<task>_<score>`, as `_METRICS` lists the others."""
    names = dict.fromkeys(name for row in rows for name in row.metrics.get(split, {}))
    return [(name, found["task"], name) for name in names if (found := _MTEB.fullmatch(name))]


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
    values = [None if fact is None else getattr(fact, name) for fact in facts]
    if all(value is None for value in values):
        return None
    of_role = dict(zip([row.role for row in rows], values, strict=True))
    student, teacher = of_role.get("student"), of_role.get("teacher")
    ratio = f"{student / teacher:.2f}×" if student is not None and teacher else ""
    return Line(label, ["" if value is None else format_number(value) for value in values], ratio)


def format_number(value: float) -> str:
    """Write a number with as many digits as say something."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def table_headers(rows: Sequence[ModelRow]) -> list[str]:
    """Title the columns of `table_lines`."""
    return ["", *(ROLE_TITLES[row.role] for row in rows), "% retained"]


def markdown_table(results: Results) -> str:
    """Write the table in Markdown.

    Args:
        results (`Results`): the results.

    Returns:
        `str`: the table, with the sections as lines in bold.
    """
    rows, sections = table_lines(results)
    lines = ["| " + " | ".join(table_headers(rows)) + " |", "|:--|" + "--:|" * (len(rows) + 1)]
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
    for number, header in enumerate(table_headers(rows)):
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
    notes = [f"{ROLE_TITLES[row.role]}: {row.name}" + (f" ({row.note})" if row.note else "") for row in results.rows]
    if results.selected_step is not None:
        by = f", chosen by {results.selected_by} among the scored checkpoints" if results.selected_by else ""
        notes.append(f"The model is the checkpoint of step {results.selected_step:,}{by}.")
    if any("test" in row.metrics for row in results.rows):
        notes.append("Test scores were computed once, after that choice, in float32.")
    if any("int8_spearman" in metrics for row in results.rows for metrics in row.metrics.values()):
        notes.append("int8: every matrix rounded to int8 with one scale a row, computed in float32.")
    if any("embedding_" in name for row in results.rows for metrics in row.metrics.values() for name in metrics):
        notes.append(
            "int8 and binary vectors: queries and documents rounded by sentence-transformers' quantize_embeddings and "
            "compared so, nothing scored again in float; in % of the teacher's float32 vectors."
        )
    scored = " ".join(name for row in results.rows for metrics in row.metrics.values() for name in metrics)
    sources = [text for prefix, text in _SOURCES if prefix in scored]
    if sources:
        notes.append(
            f"Held-out texts: {'; '.join(sources)}. None of them is trained on. The documentation is that of Python "
            f"{results.versions.get('python', '')} itself; another version has other texts, so compare models on one."
        )
    if "mteb_" in scored:
        notes.append("A line with the name of a task of mteb is its main score, computed by mteb in float32.")
    if "bitext_" in scored:
        notes.append(
            "TR→EN: a Turkish gloss of WordNet finds the English one of the same synset; the model embeds the Turkish, its "
            "teacher the English, and with *own English* the model both."
        )
    if any(row.tokenizer for row in results.rows):
        notes.append("Tokens a word and lengths are those of held-out text that no tokenizer was trained on.")
    hardware = sorted({f"{row.speed.hardware}, {row.speed.dtype}" for row in results.rows if row.speed})
    if hardware:
        notes.append(f"Speed was measured on {' and '.join(hardware)}, the models taking turns on the same texts.")
    if any(row.speed and row.speed.peak_memory_mb is not None for row in results.rows):
        notes.append("Peak memory is that of the weights and of what encoding these texts needed besides.")
    return notes + results.notes


def readme_text(results: Results, has_curves: bool, code: OwnCode) -> str:
    """Write the README of a run folder.

    Args:
        results (`Results`): the results.
        has_curves (`bool`): whether the picture lies beside it.
        code (`OwnCode`): what the model brings, and what must be installed for it.

    Returns:
        `str`: Markdown with the metadata that the Hub reads.
    """
    trust = ", trust_remote_code=True" if code.files else ""
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
        f"```bash\n{code.install}\n```" if code.install else "",
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
        `dict[str, Path]`: the files, by `"results"`, `"curves"` (where there is a log), `"readme"`, and with matplotlib
        `"html"`, the report on one page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"results": results.write(folder)}
    log = read_log_history(folder) if log_history is None else log_history
    validation = {ROLE_TITLES[row.role]: row.metrics.get("validation", {}) for row in results.rows}
    reference = {title: metrics for title, metrics in validation.items() if title != "student"}
    try:
        from hf_distill.evaluation.curves import plot_curves

        files["curves"] = plot_curves(log, folder / CURVES_FILE, results.run, reference, results.selected_step)
    except (ImportError, ValueError) as error:
        logger.warning("No curves were drawn: %s", error)
    text = readme_text(results, "curves" in files, own_code(folder / MODEL_FOLDER))
    write_atomically(folder / README_FILE, text)
    try:
        from hf_distill.evaluation.html_report import write_html_report

        files["html"] = write_html_report(folder, log)
    except ImportError as error:
        logger.warning("No report.html was written: %s", error)
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
