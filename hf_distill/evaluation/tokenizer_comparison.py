"""The table of the tokenizer experiment: six students, their teacher and themselves before training, from run folders.

```python
compare_tokenizers(sorted(Path("runs/tokenizers").glob("*-seed*")), "runs/tokenizers")
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_distill.evaluation.hashed_json import read_hashed, write_hashed
from hf_distill.evaluation.score_cache import write_atomically
from hf_distill.evaluation.tokenizer_students import TokenizerStudent, read_students
from hf_distill.evaluation.tokenizer_table import (
    TokenizerComparison,
    comparison_markdown,
    comparison_notes,
    tokenizers_of,
)
from hf_distill.evaluation.tokenizer_verdicts import tokenizer_differences, verdicts

logger = logging.get_logger(__name__)

SCHEMA_VERSION = 1
TABLE_FILE, VALUES_FILE = "tokenizers.md", "tokenizers.json"
CURVES_FILE, BARS_FILE = "tokenizers_curves.png", "tokenizers_bars.png"
_AGAIN = "Delete it and make it again: compare_tokenizers, or the recipe without --only."


def compare_tokenizers(run_folders: Sequence[str | Path], output: str | Path) -> dict[str, Path]:
    """Write the table, its values and its figures.

    Args:
        run_folders (`Sequence[str | Path]`): folders of finished runs, several seeds of a student or one; students that
            are not there yet are simply no rows.
        output (`str` or `Path`): folder of the files.

    Returns:
        `dict[str, Path]`: `"table"` (Markdown), `"values"` (JSON with a hash of its content), and with matplotlib
        `"curves"` and `"bars"`.

    Raises:
        FileNotFoundError: a folder lacks a file.
        ValueError: the runs do not belong into one table; names the run.
    """
    students = read_students(run_folders)
    comparison = TokenizerComparison(students, tokenizer_differences(students), verdicts(students))
    output = Path(output)
    files = {"table": output / TABLE_FILE, "values": output / VALUES_FILE}
    try:
        from hf_distill.evaluation.curves import save_png
        from hf_distill.evaluation.tokenizer_figures import draw_bars, draw_learning_curves

        curves = draw_learning_curves(students)
        if curves is not None:
            files["curves"] = save_png(curves, output / CURVES_FILE)
        files["bars"] = save_png(draw_bars(students), output / BARS_FILE)
    except ImportError as error:
        logger.warning("No figures were drawn: %s", error)
    write_hashed(files["values"], comparison_values(comparison))
    pictures = [files[name].name for name in ("bars", "curves") if name in files]
    write_atomically(files["table"], comparison_markdown(comparison, pictures))
    return files


def read_comparison(path: str | Path) -> dict[str, Any]:
    """Read the values of a table back.

    Args:
        path (`str` or `Path`): `tokenizers.json`, or its folder.

    Returns:
        `dict`: the values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: edited since it was written, damaged, or of another version.
    """
    path = Path(path)
    path = path / VALUES_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no table at {path}. Make it: compare_tokenizers, or the recipe.")
    return read_hashed(path, SCHEMA_VERSION, _AGAIN)


def comparison_values(comparison: TokenizerComparison) -> dict[str, Any]:
    """List everything behind table and figures as JSON values.

    Args:
        comparison (`TokenizerComparison`): the experiment.

    Returns:
        `dict`: teacher, students with their spreads and curves, tokenizers, differences, verdicts and notes.
    """
    first = comparison.students[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": next(iter(first.runs.values())).results.versions,
        "teacher": dataclasses.asdict(comparison.teacher),
        "students": [_student_values(student) for student in comparison.students],
        "tokenizers": [dataclasses.asdict(stats) for stats in tokenizers_of(comparison)],
        "differences": [dataclasses.asdict(difference) for difference in comparison.differences],
        "verdicts": [dataclasses.asdict(found) | {"distance": found.distance} for found in comparison.verdicts],
        "notes": comparison_notes(comparison),
    }


def _student_values(student: TokenizerStudent) -> dict[str, Any]:
    """List what is known of a student."""
    runs = list(student.runs.values())
    names = sorted(
        {name for run in runs for role in ("student", "untrained") for name in run.row(role).metrics["test"]}
    )
    shown = {
        role: {name: found._asdict() for name in names if (found := student.metric(role, name)) is not None}
        for role in ("untrained", "student")
    }
    spent = {
        name: found._asdict() for name in ("tokens", "texts", "steps", "minutes") if (found := student.cost(name))
    }
    share = student.share()
    curves = {
        str(seed): {
            part: [None if value != value else value for value in getattr(curve, part).tolist()]
            for part in curve._fields
        }
        for seed, curve in student.curves().items()
    }  # JSON has no NaN, which is the only value that differs from itself
    return {
        "name": student.name,
        "tokenizer": student.tokenizer,
        "source": student.source,
        "seeds": list(student.runs),
        "runs": [run.folder.resolve().name for run in runs],
        "parameters": runs[0].row("student").size.parameters if runs[0].row("student").size else None,
        "texts_per_second": [
            run.row("student").speed.texts_per_second if run.row("student").speed else None for run in runs
        ],
        "test": shown,
        "share_of_teacher": share._asdict() if share else None,
        "spent": spent,
        "validation_curves": curves,
    }


__all__ = ["TABLE_FILE", "VALUES_FILE", "compare_tokenizers", "comparison_values", "read_comparison"]
