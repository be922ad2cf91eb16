"""The students of the tokenizer experiment, read from their run folders: {tokenizers} × {clones and random weights}.

A student is a tokenizer and a source of weights; its runs differ in their seed only. All runs have one teacher.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_distill.evaluation.checkpoints import RECIPE_FILE, read_log_history, series
from hf_distill.evaluation.paired import PairScores, pearson
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.seeds import Spread, require_one_configuration, spread
from hf_distill.evaluation.tokenizer_stats import TokenizerStats

PEARSON, SPEARMAN = "stsb_tr_pearson", "stsb_tr_spearman"
RANDOM = "random-init"
_ROLES = ("teacher", "student", "untrained")
_CUTS = ("num_layers", "hidden_size", "intermediate_size")
_AGAIN = "Run its recipe again, it goes on from there, or leave the run out."


class Start(NamedTuple):
    """What a student starts with, as the `recipe.json` of its run has it.

    Args:
        tokenizer (`str`): name of its tokenizer.
        source (`str`): name of its backbone, `"random-init"` for random weights.
        backbone (`str`): the model whose weights or shape it has, and what was cut out of it.
    """

    tokenizer: str
    source: str
    backbone: str


class Run(NamedTuple):
    """A finished run.

    Args:
        folder (`Path`): its folder.
        results (`Results`): what it measured.
        pairs (`PairScores`): its models' similarities on the test pairs.
        start (`Start`): which student it is of.
    """

    folder: Path
    results: Results
    pairs: PairScores
    start: Start

    def row(self, role: str) -> ModelRow:
        """Return the row of a role; `read_students` made sure that it is there."""
        row = self.results.row(role)
        assert row is not None
        return row


class Curve(NamedTuple):
    """Validation scores of a run while it was trained.

    Args:
        tokens (`np.ndarray`): tokens learned from before each score.
        texts (`np.ndarray`): texts learned from before each score.
        values (`np.ndarray`): the scores.
    """

    tokens: np.ndarray
    texts: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class TokenizerStudent:
    """A student of the experiment.

    Args:
        tokenizer (`str`): name of its tokenizer.
        source (`str`): name of its backbone, whose weights it started from; `"random-init"` for random weights.
        runs (`dict[int, Run]`): seed to run, in the order of the seeds.
    """

    tokenizer: str
    source: str
    runs: dict[int, Run]

    @property
    def name(self) -> str:
        """Name of the student, as the origin of the experiment names them: `mft-random-init`."""
        return f"{self.tokenizer}-{self.source}"

    @property
    def is_clone(self) -> bool:
        """Whether it started from a trained model's weights."""
        return self.source != RANDOM

    @property
    def stats(self) -> TokenizerStats:
        """How its tokenizer cuts held-out text."""
        stats = next(iter(self.runs.values())).row("student").tokenizer
        assert stats is not None
        return stats

    def metric(self, role: str, name: str, split: str = "test") -> Spread | None:
        """Average a metric over the seeds.

        Args:
            role (`str`): `"teacher"`, `"student"` or `"untrained"`.
            name (`str`): the metric.
            split (`str`, *optional*, defaults to `"test"`): its split.

        Returns:
            `Spread` or `None`: None where no run has it.
        """
        return self.fact(lambda run: run.row(role).metrics.get(split, {}).get(name))

    def share(self, name: str = PEARSON, role: str = "student") -> Spread | None:
        """Divide a test metric by the teacher's, in each run, and average that; 1.0 is the teacher's quality."""
        return self.fact(lambda run: run.results.retained(name, "test", role))

    def fact(self, read: Callable[[Run], float | None]) -> Spread | None:
        """Average over the seeds what a function reads of a run; None where it reads nothing."""
        values = [value for run in self.runs.values() if (value := read(run)) is not None]
        return spread(values) if values else None

    def cost(self, name: str) -> Spread | None:
        """Add up `"tokens"`, `"texts"`, `"steps"` or `"minutes"` over the stages of training, and average over seeds."""
        return self.fact(lambda run: _spent(run.results, name))

    def similarities(self, role: str, seeds: Sequence[int]) -> np.ndarray:
        """Stack the similarities of the test pairs, `(S, N)`, of some seeds."""
        return np.array([self.runs[seed].pairs.similarities[role] for seed in seeds])

    def curves(self, metric: str = PEARSON) -> dict[int, Curve]:
        """Read the validation curve of each seed; a run without a log is left out."""
        found = {seed: learning_curve(run, metric) for seed, run in self.runs.items()}
        return {seed: curve for seed, curve in found.items() if len(curve.values)}


def _spent(results: Results, name: str) -> float | None:
    """Add up what the stages of training took; a control, which is another student, does not count."""
    stages = results.training.stages if results.training else []
    values = [getattr(stage, name) for stage in stages if stage.name != "control"]
    return None if not values or None in values else float(sum(values))


def learning_curve(run: Run, metric: str = PEARSON) -> Curve:
    """Read the validation scores of a run over the tokens and texts that it had learned from.

    Tokens are those that the trainer counted (`include_num_input_tokens_seen="non_padding"`); where it did not, those
    of the whole run are shared out evenly over its steps, as the texts are.

    Args:
        run (`Run`): the run.
        metric (`str`, *optional*): validation metric.

    Returns:
        `Curve`: empty where nothing was logged.
    """
    log = read_log_history(run.folder)
    steps, values = series(log, f"eval_{metric}")
    counted, tokens = series([entry for entry in log if f"eval_{metric}" in entry], "num_input_tokens_seen")
    every = _spent(run.results, "steps")
    texts, total = (_spent(run.results, name) for name in ("texts", "tokens"))
    if len(counted) != len(steps):
        tokens = steps * (total / every) if total and every else np.full(len(steps), np.nan)
    seen = steps * (texts / every) if texts and every else np.full(len(steps), np.nan)
    return Curve(tokens, seen, values)


def read_students(run_folders: Sequence[str | Path]) -> list[TokenizerStudent]:
    """Read the runs of the experiment and group them by student.

    Args:
        run_folders (`Sequence[str | Path]`): folders with `results.json` and `similarities.json`, at least one.

    Returns:
        `list[TokenizerStudent]`: tokenizers and sources in the order of the folders, random weights last.

    Raises:
        FileNotFoundError: a folder lacks a file.
        ValueError: a run lacks what the table shows, has another teacher or other test pairs than the first, or is there
            twice, or two sources have one name; names the run.
    """
    if not run_folders:
        raise ValueError("No runs are given. Train the students first, or give their folders.")
    runs = [_read_run(Path(folder)) for folder in run_folders]
    first = runs[0]
    grouped: dict[tuple[str, str], dict[int, Run]] = {}
    sources: dict[str, Run] = {}
    for run in runs:
        same = sources.setdefault(run.start.source, run)
        if run.start.backbone != same.start.backbone:
            raise ValueError(
                f"The source {run.start.source!r} is {run.start.backbone} in {run.folder}, but {same.start.backbone} in "
                f"{same.folder}. Give runs of one experiment."
            )
        if run.row("teacher").fingerprint != first.row("teacher").fingerprint:
            raise ValueError(f"{run.folder} has another teacher than {first.folder}: their scores do not compare.")
        if run.pairs.scores != first.pairs.scores:
            raise ValueError(f"{run.folder} was scored on other test pairs than {first.folder}. {_AGAIN}")
        seeds = grouped.setdefault(run.start[:2], {})
        seed = run.results.seed
        if seed is None:
            raise ValueError(f"{run.folder} does not say its seed. {_AGAIN}")
        if seed in seeds:
            raise ValueError(f"{run.folder} and {seeds[seed].folder} are one student with one seed, {seed}: give one.")
        seeds[seed] = run
    students = []
    for (tokenizer, source), seeds in grouped.items():
        if len(seeds) > 1:
            require_one_configuration([run.folder for run in seeds.values()], [run.results for run in seeds.values()])
        students.append(TokenizerStudent(tokenizer, source, dict(sorted(seeds.items()))))
    tokenizers, starts = (list(dict.fromkeys(getattr(s, part) for s in students)) for part in ("tokenizer", "source"))
    return sorted(students, key=lambda s: (tokenizers.index(s.tokenizer), not s.is_clone, starts.index(s.source)))


def _read_run(folder: Path) -> Run:
    """Read a run and check that it has all that the table shows."""
    results = Results.read(folder)
    lacking = [role for role in _ROLES if results.row(role) is None]
    if lacking:
        raise ValueError(f"{folder} has no row of the {' and the '.join(lacking)}. {_AGAIN}")
    if results.training is None:
        raise ValueError(f"{folder} does not say how its student was trained (`training` is empty). {_AGAIN}")
    run = Run(folder, results, PairScores.read(folder), _read_start(folder))
    for role in _ROLES:
        row = run.row(role)
        if row.tokenizer is None:
            raise ValueError(
                f"{folder} lacks the statistics of the {role}'s tokenizer (suite.add_tokenizers). {_AGAIN}"
            )
        for metric in (PEARSON, SPEARMAN):
            if metric not in row.metrics.get("test", {}):
                raise ValueError(f"{folder} lacks the {role}'s test {metric}. {_AGAIN}")
        _require_same_model(run, role)
    return run


def _require_same_model(run: Run, role: str) -> None:
    """Refuse similarities of other weights than those that the results are of."""
    row, pairs = run.row(role), run.pairs
    other = pairs.fingerprints.get(role) != row.fingerprint or role not in pairs.similarities
    if not other:
        again = pearson(np.array(pairs.scores), np.array([pairs.similarities[role]]))[0]
        other = abs(again - row.metrics["test"][PEARSON]) > 1e-6
    if other:
        raise ValueError(f"{run.folder}: similarities.json is not of the {role} in results.json. {_AGAIN}")


def _read_start(folder: Path) -> Start:
    """Read which student a run is of.

    A student is called `<tokenizer>-<backbone>`. The model's own name would not do: two models can be folders of one name.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {RECIPE_FILE} in {folder}. {_AGAIN}")
    recipe = json.loads(path.read_text(encoding="utf-8"))
    lacking = [name for name in ("name", "tokenizer", "model", "random") if recipe.get(name) is None]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it is of no tokenizer experiment. Leave the run out.")
    source = RANDOM if recipe["random"] else recipe["name"].removeprefix(f"{recipe['tokenizer']}-")
    cuts = [f"{name} {recipe[name]}" for name in _CUTS if recipe.get(name) is not None]
    return Start(recipe["tokenizer"], source, recipe["model"] + (f" with {', '.join(cuts)}" if cuts else ""))


__all__ = [
    "PEARSON",
    "RANDOM",
    "SPEARMAN",
    "Curve",
    "Run",
    "Start",
    "TokenizerStudent",
    "learning_curve",
    "read_students",
]
