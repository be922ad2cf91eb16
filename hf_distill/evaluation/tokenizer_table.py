"""The tokenizer experiment in Markdown: main table, bars, tokenizers against each other, retrieval, tokenizers, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hf_distill.evaluation.bitext import CANDIDATES
from hf_distill.evaluation.report import format_number
from hf_distill.evaluation.results import ModelRow
from hf_distill.evaluation.seeds import Spread
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.evaluation.tokenizer_students import PEARSON, SPEARMAN, Run, TokenizerStudent
from hf_distill.evaluation.tokenizer_verdicts import TokenizerDifference, Verdict
from hf_distill.hub.markdown import cell, command_block, markdown_table
from hf_distill.hub.official import MTEB_PREFIX

_RECALL = "bitext_recall_at_1"
_BITEXT = {
    "recall@1": _RECALL,
    "recall@10": "bitext_recall_at_10",
    "MRR@10": "bitext_mrr_at_10",
    "nDCG@10": "bitext_ndcg_at_10",
    "recall@1, own English": "bitext_own_recall_at_1",
}
_HEADER = [
    *("model", "tokenizer", "source", "parameters", "untrained P / S", "trained P / S", "% of teacher"),
    *("TR→EN recall@1", "tokens a word", "mean length", "tokens seen", "minutes", "texts/s", "seeds"),
]
_VERSIONS = ("python", "torch", "transformers", "sentence-transformers")
_AFTER_RECALL = _HEADER.index("TR→EN recall@1") + 1


@dataclass(frozen=True)
class TokenizerComparison:
    """The experiment, read and judged.

    Args:
        students (`list[TokenizerStudent]`): the students.
        differences (`list[TokenizerDifference]`): the tokenizers against each other.
        verdicts (`list[Verdict]`): the bars.
    """

    students: list[TokenizerStudent]
    differences: list[TokenizerDifference]
    verdicts: list[Verdict]

    @property
    def teacher(self) -> ModelRow:
        """The teacher's row, of the first run: all runs have one teacher."""
        return next(iter(self.students[0].runs.values())).row("teacher")


def comparison_markdown(comparison: TokenizerComparison, pictures: Sequence[str] = ()) -> str:
    """Write the experiment in Markdown: main table, bars, tokenizers against each other, retrieval, notes, commands.

    Args:
        comparison (`TokenizerComparison`): the experiment.
        pictures (`Sequence[str]`, *optional*): files of figures beside it.

    Returns:
        `str`: Markdown.
    """
    parts = [
        "# Tokenizers compared",
        _main_table(comparison),
        *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures),
        "## Bars",
        "\n".join(f"* {verdict.sentence()}" for verdict in comparison.verdicts),
    ]
    if comparison.differences:
        header = ["source", "tokenizers", "points of Pearson", "95 % interval", "sd over seeds", "seeds"]
        rows = [_difference_row(difference) for difference in comparison.differences]
        parts += ["## Tokenizer against tokenizer", markdown_table(header, rows, left=2)]
    retrieval = _retrieval_table(comparison)
    if retrieval:
        parts += ["## Turkish to English retrieval", retrieval]
    parts += ["## Tokenizers", _tokenizer_table(comparison), "## Notes"]
    parts.append("\n".join(f"* {note}" for note in comparison_notes(comparison)))
    runs = [run for student in comparison.students for run in student.runs.values()]
    commands = [command_block(command) for command in dict.fromkeys(run.results.command for run in runs) if command]
    parts += ["## Commands", *commands] if commands else []
    return "\n\n".join(parts) + "\n"


def _main_table(comparison: TokenizerComparison) -> str:
    """Write the main table, with a column of mteb's tasks where they were run."""
    students, header, rows = comparison.students, list(_HEADER), _main_rows(comparison)
    tasks = _mteb_metrics(students)
    if tasks:
        known = (found for student in students if (found := _mteb(student, "teacher", tasks)))
        means = [_first(next(known, None))]
        means += [_mteb(student, role, tasks) for student in students for role in ("student", "untrained")]
        header.insert(_AFTER_RECALL, f"mteb ({len(tasks)} task{'s' if len(tasks) > 1 else ''})")
        for row, mean in zip(rows, means, strict=True):
            row.insert(_AFTER_RECALL, _points(mean))
    return markdown_table(header, rows, left=3)


def _mteb_metrics(students: Sequence[TokenizerStudent]) -> list[str]:
    """List mteb's metrics that every student with any has, so that the means compare."""
    rows = [run.row("student") for student in students for run in student.runs.values()]
    names = [{name for name in row.metrics["test"] if name.startswith(MTEB_PREFIX)} for row in rows]
    return sorted(set.intersection(*filter(None, names))) if any(names) else []


def _mteb(student: TokenizerStudent, role: str, metrics: Sequence[str]) -> Spread | None:
    """Average mteb's metrics in each run, and over the seeds; None where no run has them."""

    def mean(run: Run) -> float | None:
        known = run.row(role).metrics.get("test", {})
        return fmean(known[name] for name in metrics) if set(metrics) <= known.keys() else None

    return student.fact(mean)


def _main_rows(comparison: TokenizerComparison) -> list[list[str]]:
    """Make the rows of the main table: the teacher, then every student with itself before training below."""
    teacher, first = comparison.teacher, comparison.students[0]
    rows = [
        [
            f"{cell(teacher.name.rpartition('/')[2])} (teacher)",
            *_tokenizer_cells(teacher.tokenizer)[:1],
            "",
            format_number(teacher.size.parameters) if teacher.size else "",
            "",
            _both(first, "teacher"),
            "100.0",
            _points(_first(first.metric("teacher", _RECALL))),
            *_tokenizer_cells(teacher.tokenizer)[1:],
            *("", ""),
            _rate(first, "teacher"),
            "",
        ]
    ]
    for student in comparison.students:
        size = student.fact(lambda run: run.row("student").size and run.row("student").size.parameters)
        tokens, minutes = student.cost("tokens"), student.cost("minutes")
        name, per_word, length = _tokenizer_cells(student.stats)
        rows.append(
            [
                cell(student.name),
                name,
                cell(student.source),
                format_number(size.mean) if size else "",
                _both(student, "untrained"),
                f"**{_both(student, 'student')}**",
                _percent(student.share()),
                _points(student.metric("student", _RECALL)),
                *(per_word, length),
                format_number(tokens.mean) if tokens else "",
                f"{minutes.mean:.1f}" if minutes else "",
                _rate(student, "student"),
                str(len(student.runs)),
            ]
        )
        untrained = [_percent(student.share(role="untrained")), _points(student.metric("untrained", _RECALL))]
        rows.append(
            ["&nbsp;&nbsp;&nbsp;untrained", "", "", "", _both(student, "untrained"), "", *untrained, *[""] * 6]
        )
    return rows


def _points(found: Spread | None, digits: int = 2) -> str:
    """Write a metric × 100 with its deviation over seeds; empty where it is not known."""
    if found is None:
        return ""
    return f"{100 * found.mean:.{digits}f}" + (
        f" ± {100 * found.deviation:.{digits}f}" if len(found.values) > 1 else ""
    )


def _first(found: Spread | None) -> Spread | None:
    """Leave the first run's value: the teacher is one model, whatever the seeds."""
    return None if found is None else Spread(found.values[0], 0.0, found.values[:1])


def _percent(found: Spread | None) -> str:
    """Write a share of the teacher's metric in per cent."""
    return _points(found, 1)


def _both(student: TokenizerStudent, role: str) -> str:
    """Write Pearson and Spearman of a model of the test split."""
    both = [student.metric(role, metric) for metric in (PEARSON, SPEARMAN)]
    return " / ".join(_points(_first(found) if role == "teacher" else found) for found in both)


def _rate(student: TokenizerStudent, role: str) -> str:
    """Write the texts a second of a model."""
    found = student.fact(lambda run: run.row(role).speed and run.row(role).speed.texts_per_second)
    return format_number(found.mean) if found else ""


def _tokenizer_cells(stats: TokenizerStats | None) -> list[str]:
    """Write name, tokens a word and mean length of a tokenizer."""
    return (
        ["", "", ""]
        if stats is None
        else [cell(stats.name), f"{stats.tokens_per_word:.2f}", f"{stats.mean_length:.1f}"]
    )


def _difference_row(found: TokenizerDifference) -> list[str]:
    """Write one comparison of two tokenizers."""
    points = found.points
    return [
        cell(found.source),
        f"{cell(found.first)} − {cell(found.second)}",
        f"{points.mean:+.2f}",
        f"{points.low:+.2f} to {points.high:+.2f}",
        f"{points.deviation:.2f}" if points.seeds > 1 else "",
        str(points.seeds),
    ]


def _retrieval_table(comparison: TokenizerComparison) -> str:
    """Write all scores of retrieval: the teacher, every student, itself before training; empty where there are none."""
    known = {
        label: key for label, key in _BITEXT.items() if any(s.metric("student", key) for s in comparison.students)
    }
    teacher = [comparison.students[0].metric("teacher", key) for key in known.values()]
    rows = [["teacher", *(_points(_first(found)) for found in teacher)]]
    for student in comparison.students:
        for title, role in ((cell(student.name), "student"), ("&nbsp;&nbsp;&nbsp;untrained", "untrained")):
            rows.append([title, *(_points(student.metric(role, key)) for key in known.values())])
    return markdown_table(["model", *known], rows) if known else ""


def tokenizers_of(comparison: TokenizerComparison) -> list[TokenizerStats]:
    """List the tokenizers.

    Args:
        comparison (`TokenizerComparison`): the experiment.

    Returns:
        `list[TokenizerStats]`: the teacher's first, each once.
    """
    found = [stats for stats in [comparison.teacher.tokenizer, *(s.stats for s in comparison.students)] if stats]
    return list({stats.name: stats for stats in reversed(found)}.values())[::-1]


def _tokenizer_table(comparison: TokenizerComparison) -> str:
    """Write what the tokenizers do with held-out text."""
    header = ["tokenizer", "vocabulary", "tokens a word", "mean length", "median", "95th percentile"]
    header += ["unknown %", "exact round trip %", "vocabulary used %", "characters/s"]
    rows = [
        [
            cell(stats.name),
            f"{stats.vocabulary:,}",
            f"{stats.tokens_per_word:.2f}",
            f"{stats.mean_length:.1f}",
            f"{stats.median_length:.0f}",
            f"{stats.p95_length:.0f}",
            f"{100 * stats.unknown_rate:.2f}",
            f"{100 * stats.round_trip:.1f}",
            f"{100 * stats.vocabulary_used:.1f}",
            format_number(stats.characters_per_second),
        ]
        for stats in tokenizers_of(comparison)
    ]
    return markdown_table(header, rows)


def comparison_notes(comparison: TokenizerComparison) -> list[str]:
    """Say what a reader must know to believe the table.

    Args:
        comparison (`TokenizerComparison`): the experiment.

    Returns:
        `list[str]`: sentences in Markdown.
    """
    students = comparison.students
    runs = [run for student in students for run in student.runs.values()]
    several = any(len(student.runs) > 1 for student in students)
    chosen = sorted({run.results.selected_by for run in runs if run.results.selected_by})
    retrieval = [
        f"TR→EN: a Turkish gloss finds the English one of its synset among {CANDIDATES['test']:,} (chance: "
        f"{100 / CANDIDATES['test']:.2f} %). The student embeds the Turkish, the teacher the English; with *own English* the "
        "student both. No student is trained on these glosses."
    ]
    if not students[0].metric("student", _RECALL):
        retrieval = []
    tasks = [name.removeprefix(MTEB_PREFIX) for name in _mteb_metrics(students)]
    mteb = [f"mteb: mean × 100 of the main scores of its tasks: {cell(', '.join(tasks))}."] if tasks else []
    stats = students[0].stats
    notes = [
        f"P / S: Pearson and Spearman × 100 on the {len(runs[0].pairs.scores):,} pairs of STSb-TR's test split, read once "
        "in float32" + (f", by the checkpoint that validation {' or '.join(chosen)} chose." if chosen else "."),
        "% of teacher: of its Pearson.",
        "± is the standard deviation over seeds." if several else "One seed a student: there is no spread over seeds.",
        "95 % intervals resample the test pairs, the same ones for both models, and the seeds.",
        *retrieval,
        *mteb,
        f"Tokens a word and lengths: {stats.texts:,} held-out Turkish texts of {stats.words:,} words; lengths with "
        "special tokens. Characters a second: one text after the other, one thread.",
        *_budget_notes(students),
        *_rate_notes(students),
    ]
    hardware = sorted({run.results.training.hardware for run in runs if run.results.training})
    notes.append(f"Trained on {'; '.join(hardware)}. Minutes are those of training, evaluations included.")
    notes += _time_note(runs)
    seeds = ", ".join(str(seed) for seed in sorted({seed for student in students for seed in student.runs}))
    versions = [
        f"{name} {' and '.join(sorted({run.results.versions.get(name, '?') for run in runs}))}" for name in _VERSIONS
    ]
    return [*notes, f"Seeds: {seeds}. Versions: {', '.join(versions)}."]


def _time_note(runs: Sequence[Run]) -> list[str]:
    """Say how long all runs took together; a run that was interrupted knows the time of its last process only."""
    known = [run.results.minutes for run in runs if run.results.minutes is not None]
    spent = [sum(stage.minutes for stage in run.results.training.stages) for run in runs]
    if len(known) < len(runs):
        return []
    more = "at least " if any(own < part for own, part in zip(known, spent, strict=True)) else ""
    total = sum(map(max, known, spent))
    return [
        f"Training and scoring of all students: {more}{total:.0f} min. Tokenizers, corpus and reports come on top."
    ]


def _rate_notes(students: Sequence[TokenizerStudent]) -> list[str]:
    """Say which students were trained at another learning rate than the others."""
    rates: dict[float, list[str]] = {}
    for student in students:
        for run in student.runs.values():
            names = rates.setdefault(run.results.training.learning_rate, [])
            names += [student.name] if student.name not in names else []
    if len(rates) == 1:
        return []
    shown = [f"{rate:g} for {', '.join(names)}" for rate, names in rates.items()]
    return [f"Highest learning rate: {'; '.join(shown)}."]


def _budget_notes(students: Sequence[TokenizerStudent]) -> list[str]:
    """Say whether students of one tokenizer saw the same number of tokens."""
    notes = []
    for tokenizer in dict.fromkeys(student.tokenizer for student in students):
        seen = {s.name: found.mean for s in students if s.tokenizer == tokenizer and (found := s.cost("tokens"))}
        if len(seen) > 1 and max(seen.values()) > 1.01 * min(seen.values()):
            listed = ", ".join(f"{cell(name)} {format_number(tokens)}" for name, tokens in seen.items())
            notes.append(f"The students of {cell(tokenizer)} did not see equal tokens: {listed}.")
        elif len(seen) > 1:
            notes.append(f"Every student of {cell(tokenizer)} saw {format_number(max(seen.values()))} tokens.")
    return notes


__all__ = ["TokenizerComparison", "comparison_markdown", "comparison_notes", "tokenizers_of"]
