"""What a run measured, as `results.json`: a versioned schema, written atomically and read back with checks.

The file carries a hash of its own content. A figure that was changed by hand is refused when it is read back, so that
what a model card shows is what was measured.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hf_distill.evaluation.hashed_json import read_hashed, write_hashed
from hf_distill.evaluation.speed import ModelSize, ModelSpeed
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.evaluation.training_summary import TrainingSummary
from hf_distill.hardware import package_versions

SCHEMA_VERSION = 2
RESULTS_FILE = "results.json"
_AGAIN = "Delete it and evaluate the run again: accelerate launch recipes/evaluate_student.py --run RUN --test"
ROLES = ("teacher", "student", "untrained", "control")
_HEADLINES = ("stsb_spearman", "retrieval_ndcg_at_10", "lexnames_accuracy", "modules_accuracy")


@dataclass
class ModelRow:
    """One model of the table.

    Args:
        role (`str`): `"teacher"`, `"student"`, `"untrained"` (the student before any step) or `"control"` (trained
            from random weights).
        name (`str`): what to call it, a Hub id for instance; of an absolute path only the last part is kept.
        note (`str`, *optional*): what a reader must know, the control's number of steps for instance.
        size (`ModelSize`, *optional*): parameters and megabytes.
        speed (`ModelSpeed`, *optional*): throughput and latency.
        metrics (`dict[str, dict[str, float]]`, *optional*): split to metric to value,
            `{"test": {"stsb_spearman": 0.82}}`.
        fingerprint (`str`, *optional*): hash of the model, so that scores of two models never share a row.
        tokenizer (`TokenizerStats`, *optional*): how its tokenizer cuts held-out text.
    """

    role: str
    name: str
    note: str = ""
    size: ModelSize | None = None
    speed: ModelSpeed | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    fingerprint: str = ""
    tokenizer: TokenizerStats | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"A model's role cannot be {self.role!r}: choose one of {', '.join(ROLES)}.")
        if Path(self.name).is_absolute():
            self.name = Path(self.name).name


@dataclass
class CheckpointScore:
    """A checkpoint and its validation scores.

    Args:
        step (`int`): optimiser step.
        metrics (`dict[str, float]`): validation metric to value.
    """

    step: int
    metrics: dict[str, float]


def _versions() -> dict[str, str]:
    """Name the versions of Python, whose documentation is evaluated on, and of the libraries."""
    return {"python": platform.python_version(), **package_versions()}


@dataclass
class Results:
    """Everything a report needs.

    Args:
        run (`str`): name of the run; no local path.
        rows (`list[ModelRow]`): the models, at most one of a role.
        selected_step (`int`, *optional*): step of the checkpoint that became the model.
        selected_by (`str`, *optional*): the validation metric that chose it.
        checkpoints (`list[CheckpointScore]`, *optional*): validation scores of all checkpoints that were scored.
        command (`str`, *optional*): the command line, see `command_line`.
        seed (`int`, *optional*): random seed of the run.
        minutes (`float`, *optional*): wall-clock time of the run.
        notes (`list[str]`, *optional*): sentences for the reader, such as the number of texts removed for overlap.
        versions (`dict[str, str]`, *optional*): of Python and the libraries; those installed by default.
        created (`str`, *optional*): date and time in UTC, ISO 8601; now by default.
        training (`TrainingSummary`, *optional*): teacher, data, loss terms and cost of the run.
        schema_version (`int`, *optional*): version of this schema.

    Raises:
        ValueError: two rows of one role, or a metric that is no finite number.
    """

    run: str
    rows: list[ModelRow] = field(default_factory=list)
    selected_step: int | None = None
    selected_by: str = ""
    checkpoints: list[CheckpointScore] = field(default_factory=list)
    command: str = ""
    seed: int | None = None
    minutes: float | None = None
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=_versions)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    training: TrainingSummary | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Refuse what a table could not show."""
        roles = [row.role for row in self.rows]
        twice = sorted({role for role in roles if roles.count(role) > 1})
        if twice:
            raise ValueError(f"Results hold more than one row for {', '.join(twice)}; keep one of a role.")
        for row in self.rows:
            for split, metrics in row.metrics.items():
                for name, value in metrics.items():
                    if not math.isfinite(value):
                        raise ValueError(
                            f"{row.role}'s {split} {name} is {value}; leave a metric out that has no value."
                        )

    def row(self, role: str) -> ModelRow | None:
        """Find the row of a role; None if there is none."""
        return next((row for row in self.rows if row.role == role), None)

    def put(self, row: ModelRow) -> None:
        """Add a row, or replace the one of its role; rows keep the order of `ROLES`.

        What the old row has and the new one lacks stays, if both are of the very same model (`fingerprint`).
        """
        old = self.row(row.role)
        if old is not None and row.fingerprint and old.fingerprint == row.fingerprint:
            row.size, row.speed = row.size or old.size, row.speed or old.speed
            row.tokenizer = row.tokenizer or old.tokenizer
            splits = {*old.metrics, *row.metrics}
            row.metrics = {split: old.metrics.get(split, {}) | row.metrics.get(split, {}) for split in splits}
        rows = [other for other in self.rows if other.role != row.role]
        self.rows = sorted([*rows, row], key=lambda entry: ROLES.index(entry.role))

    def put_session(self, rows: Iterable[ModelRow]) -> None:
        """Put the rows of one evaluation; where it measured speed, no row keeps that of an earlier one.

        Models are only measured against each other within a session: another day the machine is busier.

        Args:
            rows (`Iterable[ModelRow]`): what was measured together.
        """
        rows = list(rows)
        if any(row.speed for row in rows):
            for old in self.rows:
                old.speed = None
        for row in rows:
            self.put(row)

    def retained(
        self, metric: str, split: str = "test", role: str = "student", divisor: str | None = None
    ) -> float | None:
        """Divide a model's metric by the teacher's.

        Args:
            metric (`str`): its name, `"stsb_spearman"` for instance.
            split (`str`, *optional*, defaults to `"test"`): its split.
            role (`str`, *optional*, defaults to `"student"`): the model's role.
            divisor (`str`, *optional*): the teacher's metric, where it has another name.

        Returns:
            `float` or `None`: 1.0 is the teacher's quality; None where either lacks the metric or the teacher has 0.
        """
        model, teacher = self.row(role), self.row("teacher")
        value = model.metrics.get(split, {}).get(metric) if model else None
        full = teacher.metrics.get(split, {}).get(divisor or metric) if teacher else None
        return None if value is None or not full else value / full

    def mean_retained(self, split: str = "test", role: str = "student") -> float | None:
        """Average `retained` over STS-B, retrieval and the classifications; None with fewer than two of them."""
        parts = [self.retained(metric, split, role) for metric in _HEADLINES]
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if len(known) > 1 else None

    def write(self, path: str | Path) -> Path:
        """Write the results as JSON, atomically, with a hash of their content.

        Args:
            path (`str` or `Path`): a file, or a folder in which it is named `results.json`.

        Returns:
            `Path`: the file.
        """
        self._check()
        path = Path(path)
        path = path / RESULTS_FILE if path.is_dir() or not path.suffix else path
        write_hashed(path, dataclasses.asdict(self))
        return path

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Read results back.

        Args:
            path (`str` or `Path`): the file, or the folder that holds `results.json`.

        Returns:
            `Results`: equal to what was written.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not JSON, another version of the schema, edited since it was written, or fields that are
                missing or unknown.
        """
        path = Path(path)
        path = path / RESULTS_FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"There are no results at {path}. Train or evaluate the run first.")
        values = read_hashed(path, SCHEMA_VERSION, _AGAIN)
        try:
            values["rows"] = [_row(row) for row in values["rows"]]
            values["checkpoints"] = [CheckpointScore(**score) for score in values["checkpoints"]]
            training = values.get("training")
            values["training"] = TrainingSummary.from_dict(training) if training else None
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} lacks a field or has an unknown one ({error}). {_AGAIN}") from error


def _row(values: dict[str, Any]) -> ModelRow:
    """Make a row of its JSON object."""
    size = ModelSize(**values["size"]) if values.get("size") else None
    speed = ModelSpeed(**values["speed"]) if values.get("speed") else None
    tokenizer = TokenizerStats(**values["tokenizer"]) if values.get("tokenizer") else None
    return ModelRow(**{**values, "size": size, "speed": speed, "tokenizer": tokenizer})


# The folders of absolute paths; addresses stay, and so does where a shipped config lies in the project.
_FOLDERS = re.compile(r"(?<![\w:/.~])/(?:(?:[^\s/\"']+/)*?(?=recipes/configs/)|(?:[^\s/\"']+/)+)")


def command_line(script: str, arguments: Sequence[str]) -> str:
    """Write the command of a run for its report, without local paths.

    Args:
        script (`str`): the recipe, `recipes/embedding_distill.py` for instance.
        arguments (`Sequence[str]`): its arguments, `sys.argv[1:]`; an absolute path is cut to its last part, that of a
            shipped config to `recipes/configs/…`, also inside an argument.

    Returns:
        `str`: the line to type, quoted for a shell.
    """
    shown = (_FOLDERS.sub("", argument) for argument in arguments)
    return " ".join(["accelerate launch", script, *map(shlex.quote, shown)])
