"""What a card says of a student's scores: the table, its headline, its notes, and what was not measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hf_distill.data.length import BUCKETS
from hf_distill.evaluation.results import ROLES, ModelRow, Results
from hf_distill.hub.markdown import cell, markdown_table, number, percent
from hf_distill.hub.official import MTEB_PREFIX

_STSB = ("stsbenchmark_spearman", "stsb_spearman")
_QUALITY = {"STSBenchmark": _STSB, "STSb-TR": ("stsb_tr_spearman",)}
_HEADERS = {"teacher": "teacher", "student": "student", "untrained": "untrained", "control": "random init"}
_SPLIT_TITLES = {"test": "test", "validation": "validation (chose the checkpoint)"}
_SHORT = re.compile(r"_\d+_\d+$|_pearson$|_pair_rho")


class Line(NamedTuple):
    """A line of the score table.

    Args:
        label (`str`): what is measured; a leading space for a part of the line above.
        keys (`tuple[str, ...]`): its names in `Results`, the first that a model has counts.
        divisor (`tuple[str, ...]`): the teacher's metric that the student's is divided by; empty for none.
    """

    label: str
    keys: tuple[str, ...]
    divisor: tuple[str, ...] = ()


def _with_buckets(label: str, key: str, compared: bool) -> list[Line]:
    """Make the line of a metric and one for each length of text."""
    keys = [(key, label), *((f"{key}_{low}_{high}", f" {low}–{high} tokens") for low, high in BUCKETS)]
    return [Line(name, (metric,), (metric,) if compared else ()) for metric, name in keys]


_LINES = [
    Line("STSBenchmark, Spearman", _STSB, _STSB),
    Line(" with int8 weights", ("int8_spearman",), _STSB),
    Line(" with int8 vectors", ("embedding_int8_spearman",), _STSB),
    Line(" with binary vectors", ("embedding_binary_spearman",), _STSB),
    *_with_buckets("Retrieval in Python's documentation, nDCG@10", "retrieval_ndcg_at_10", compared=True),
    Line(" with int8 vectors", ("embedding_int8_ndcg_at_10",), ("retrieval_ndcg_at_10",)),
    Line(" with binary vectors", ("embedding_binary_ndcg_at_10",), ("retrieval_ndcg_at_10",)),
    Line("12 fields of WordNet's nouns, accuracy", ("lexnames_accuracy",), ("lexnames_accuracy",)),
    Line("13 families of Python's modules, accuracy", ("modules_accuracy",), ("modules_accuracy",)),
    Line("STSb-TR, Spearman", ("stsb_tr_spearman",), ("stsb_tr_spearman",)),
    Line(" Pearson", ("stsb_tr_pearson",), ("stsb_tr_pearson",)),
    Line("Turkish to English glosses, recall@1", ("bitext_recall_at_1",), ("bitext_recall_at_1",)),
    *_with_buckets("Cosine to the teacher's vectors", "fidelity_cosine", compared=False),
]
_COSTS = [
    ("size", "parameters", "parameters"),
    ("size", "mb_fp32", "MB in float32"),
    ("size", "mb_int8", "MB with int8 weights"),
    ("speed", "texts_per_second", "texts/s"),
    ("speed", "tokens_per_second", "tokens/s"),
    ("speed", "latency_p50_ms", "ms for one text, median"),
    ("speed", "peak_memory_mb", "MB of memory at most"),
]


def _value(row: ModelRow | None, split: str, keys: Sequence[str]) -> float | None:
    """Look a metric up under the first of its names that is there."""
    known = row.metrics.get(split, {}) if row else {}
    return next((known[key] for key in keys if key in known), None)


def _lines(results: Results, split: str) -> list[Line]:
    """List what a split's part of the table shows; metrics without a title of their own come last."""
    student = results.row("student")
    known = student.metrics.get(split, {}) if student else {}
    titled = {key for line in _LINES for key in line.keys}
    others = [key for key in known if key not in titled and not _SHORT.search(key)]
    lines = [line for line in _LINES if any(key in known for key in line.keys)]
    if split == "validation" and "test" in (student.metrics if student else {}):  # then it only says what chose
        lines, others = [line for line in lines if line.keys == _STSB], []
    return lines + [Line(_name(key), (key,), (key,)) for key in others]


def _name(key: str) -> str:
    """Name a metric that has no title of its own; those of mteb by task and score."""
    task, found, score = key.removeprefix(MTEB_PREFIX).partition("_")
    return f"{cell(task)} (mteb), {cell(score)}" if found and key.startswith(MTEB_PREFIX) else f"`{cell(key)}`"


def score_table(results: Results) -> str:
    """Write the table of a card: a line for each measure, a column for each model.

    Args:
        results (`Results`): the results.

    Returns:
        `str`: Markdown.
    """
    rows = sorted(results.rows, key=lambda row: ROLES.index(row.role))
    table: list[list[str]] = []
    for split in ("test", "validation"):
        lines = _lines(results, split)
        if lines:
            table.append([f"**{_SPLIT_TITLES[split]}**", *[""] * (len(rows) + 1)])
        for line in lines:
            values = [_value(row, split, line.keys) for row in rows]
            student = _value(results.row("student"), split, line.keys)
            teacher = _value(results.row("teacher"), split, line.divisor)
            kept = percent(student / teacher) if student is not None and teacher else ""
            table.append([_label(line.label), *("" if v is None else f"{v:.4f}" for v in values), kept])
    table += _cost_rows(rows)
    return markdown_table(["", *(_HEADERS[row.role] for row in rows), "% retained"], table)


def _label(label: str) -> str:
    """Indent a part of the line above."""
    return "&nbsp;&nbsp;" + label.strip() if label.startswith(" ") else label


def _cost_rows(rows: Sequence[ModelRow]) -> list[list[str]]:
    """Write size and speed; untrained student and control are as large and as fast as the student."""
    table = []
    for part, name, label in _COSTS:
        if name == "tokens_per_second" and not _one_tokenizer(rows):
            continue
        facts = [getattr(row, part) if row.role in ("teacher", "student") else None for row in rows]
        values = [None if fact is None else getattr(fact, name) for fact in facts]
        if all(value is None for value in values):
            continue
        of_role = dict(zip((row.role for row in rows), values, strict=True))
        student, teacher = of_role.get("student"), of_role.get("teacher")
        ratio = f"{student / teacher:.2f}×" if student is not None and teacher else ""
        table.append([label, *("" if value is None else number(float(value)) for value in values), ratio])
    return [["**size and speed**", *[""] * (len(rows) + 1)], *table] if table else []


def _one_tokenizer(rows: Sequence[ModelRow]) -> bool:
    """Tell whether all models count in the same tokens, as far as that is known."""
    return len({row.tokenizer.name for row in rows if row.tokenizer}) < 2


def headline(results: Results) -> list[str]:
    """Say the essential in a few lines: quality, size, speed, cost.

    Args:
        results (`Results`): the results.

    Returns:
        `list[str]`: Markdown.
    """
    student, teacher, lines = results.row("student"), results.row("teacher"), []
    for name, keys in _QUALITY.items():
        split = "test" if _value(student, "test", keys) is not None else "validation"
        score, full = _value(student, split, keys), _value(teacher, split, keys)
        if score is not None:
            of = f", {percent(score / full)} % of its teacher's {full:.4f}" if full else ""
            lines.append(f"**Quality**: {score:.4f} Spearman on {name}'s {split} split{of}.")
    if student and student.size:
        size = student.size
        lines.append(
            f"**Size**: {number(size.parameters)} parameters, {number(size.mb_fp32)} MB in float32, "
            f"{number(size.mb_int8)} MB with int8 weights."
        )
    if student and student.speed:
        lines.append(_speed(student, teacher))
    return [*lines, cost] if (cost := _cost(results)) else lines


def _speed(student: ModelRow, teacher: ModelRow | None) -> str:
    """Say how fast the student is beside its teacher; in texts, where their tokens are not the same."""
    rows = [row for row in (student, teacher) if row is not None]
    name, unit = ("tokens_per_second", "tokens/s") if _one_tokenizer(rows) else ("texts_per_second", "texts/s")
    own = getattr(student.speed, name)
    text = f"**Speed**: {number(own)} {unit} in {student.speed.dtype} on {cell(student.speed.hardware)}"
    if teacher and teacher.speed:
        full = getattr(teacher.speed, name)
        ratio = own / full
        word = "faster than" if ratio > 1.03 else "slower than" if ratio < 0.97 else "as fast as"
        text += f"; {word} its teacher there ({number(full)} {unit}, {ratio:.2f}×)"
    return text + "."


def _cost(results: Results) -> str:
    """Say what the run took; the stages are summed over resumed runs, the whole is only known of one that was not."""
    spent = sum(stage.minutes for stage in results.training.stages) if results.training else 0.0
    text = f"**Cost**: {number(spent)} minutes of training on {cell(results.training.hardware)}" if spent else ""
    if results.minutes is None or results.minutes < spent:
        return f"{text}." if text else ""
    whole = f"{number(results.minutes)} minutes for the whole run, evaluation included."
    return f"{text}; {whole}" if text else f"**Cost**: {whole}"


def table_notes(results: Results) -> list[str]:
    """Say what a reader must know to believe the table.

    Args:
        results (`Results`): the results.

    Returns:
        `list[str]`: sentences in Markdown.
    """
    notes, scored = [], {key for row in results.rows for metrics in row.metrics.values() for key in metrics}
    step = results.selected_step
    if step is not None:
        by = f", chosen by `{cell(results.selected_by)}` on validation" if results.selected_by else ""
        notes.append(f"The weights are those of step {step:,}{by}.")
    if any("test" in row.metrics for row in results.rows):
        notes.append("The test split was read once, after that choice, in float32.")
    if _value(results.row("student"), "test", _STSB) is not None:
        notes.append(
            "STSBenchmark is [mteb/stsbenchmark-sts](https://huggingface.co/datasets/mteb/stsbenchmark-sts). Compute it "
            'again: `mteb.evaluate(model, [mteb.get_task("STSBenchmark")])`.'
        )
    if results.row("untrained"):
        notes.append("*untrained* is this student before any step.")
    control = results.row("control")
    if control:
        note = f" ({cell(control.note.removeprefix('random init, '))})" if control.note else ""
        notes.append(f"*random init* is the control: the same student trained from random weights, but shorter{note}.")
    if any(key.startswith(("retrieval_", "modules_", "lexnames_")) for key in scored):
        python = cell(results.versions.get("python", ""))
        notes.append(
            f"Retrieval, fields and families are local tasks on held-out text (the documentation of Python {python}, "
            "WordNet): good for comparing the columns, no public benchmark."
        )
    if any(row.speed for row in results.rows):
        which = "of 1 to 256 tokens" if _one_tokenizer(results.rows) else "that are held out, short and long"
        notes.append(f"Speed was measured on texts {which}, the models taking turns.")
    return notes


def gaps(results: Results) -> list[str]:
    """Say what was not measured: what the run knows of itself, and what its table leaves out.

    Args:
        results (`Results`): the results.

    Returns:
        `list[str]`: sentences.
    """
    training, roles = results.training, {row.role: row for row in results.rows}
    found = list(training.not_measured) if training else ["How it was trained: the run left no record of it."]
    student = roles["student"]
    if not student.metrics.get("test"):
        found.append("The test split. Validation scores flatter a model that was chosen by them.")
    missing = {
        "teacher": "The teacher",
        "untrained": "The student before training",
        "control": "A random-init control",
    }
    found += [f"{title}, on the same texts." for role, title in missing.items() if role not in roles]
    if student.speed is None:
        found.append("Speed.")
    columns: dict[str, list[str]] = {}
    for line in _LINES:
        if unscored := _unscored(line, student, roles):
            columns.setdefault(" and ".join(unscored), []).append(line.label.partition(",")[0])
    return found + [f"For {who}: {'; '.join(labels)}." for who, labels in columns.items()]


def _unscored(line: Line, student: ModelRow, roles: Mapping[str, ModelRow]) -> list[str]:
    """Name the columns that lack a test score that the student has; parts of a line go with it."""
    if line.label.startswith(" ") or _value(student, "test", line.keys) is None:
        return []
    others = [roles[role] for role in ("untrained", "control") if role in roles]
    return [f"*{_HEADERS[row.role]}*" for row in others if _value(row, "test", line.keys) is None]


__all__ = ["gaps", "headline", "score_table", "table_notes"]
