"""One configuration over several seeds: mean, spread and number of runs of what was measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_distill.evaluation.checkpoints import RECIPE_FILE
from hf_distill.evaluation.report import quality_metrics
from hf_distill.evaluation.results import Results

_LENGTHS = ("1_32", "33_128", "129_256")
_TRAINING = "training."


class Spread(NamedTuple):
    """A metric over several runs.

    Args:
        mean (`float`): its mean.
        deviation (`float`): its standard deviation over the runs, with `n - 1`; 0 for one run.
        values (`list[float]`): its values, in the order of the runs.
    """

    mean: float
    deviation: float
    values: list[float]


def spread(values: Sequence[float]) -> Spread:
    """Average a metric over runs.

    Args:
        values (`Sequence[float]`): its values, at least one.

    Returns:
        `Spread`: mean, standard deviation and the values.
    """
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), deviation, list(values))


def summarise_seeds(run_folders: Sequence[str | Path], split: str = "test") -> str:
    """Average the runs of one configuration over their seeds, as a table in Markdown.

    Args:
        run_folders (`Sequence[str | Path]`): folders of at least two runs that differ in nothing but their seed.
        split (`str`, *optional*, defaults to `"test"`): `"test"` or `"validation"`.

    Returns:
        `str`: a line for each metric with the teacher's value, the student's mean ± standard deviation, its least and
        greatest, what share of the teacher's the mean is, and the number of runs that have it.

    Raises:
        FileNotFoundError: a folder holds no results.
        ValueError: fewer than two runs, runs of different configurations or teachers, or two of one seed.

    Example:
        >>> print(summarise_seeds(["runs/seed1", "runs/seed2", "runs/seed3"]))
        | test | teacher | student, mean ± sd | least – greatest | % retained | n |
        |:--|--:|--:|--:|--:|--:|
        | STS-B Spearman | 0.8203 | 0.8189 ± 0.0012 | 0.8177 – 0.8201 | 99.8 | 3 |
    """
    folders = [Path(folder) for folder in run_folders]
    if len(folders) < 2:
        raise ValueError(f"A spread needs at least two runs; {len(folders)} given.")
    runs = [Results.read(folder) for folder in folders]
    require_one_configuration(folders, runs)
    lines = [f"| {split} | teacher | student, mean ± sd | least – greatest | % retained | n |", "|:--|" + "--:|" * 5]
    for metric, label in _metrics(runs, split):
        values = [value for results in runs if (value := _value(results, "student", split, metric)) is not None]
        if not values:
            continue
        found, full = spread(values), _value(runs[0], "teacher", split, metric)
        share = f"{100 * found.mean / full:.1f}" if full else ""
        cells = [
            label,
            "" if full is None else f"{full:.4f}",
            f"{found.mean:.4f}" + (f" ± {found.deviation:.4f}" if len(values) > 1 else ""),
            f"{min(values):.4f} – {max(values):.4f}",
            share,
            str(len(values)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if len(lines) == 2:
        raise ValueError(f"None of these runs has {split} scores. Evaluate them, or give split='validation'.")
    return "\n".join(lines)


def _metrics(runs: Sequence[Results], split: str) -> list[tuple[str, str]]:
    """List what is averaged: a metric a task, with those of the length buckets, and the closeness to the teacher."""
    listed = list(
        dict.fromkeys((name, label) for results in runs for name, label, _ in quality_metrics(results, split))
    )
    lengths = [(bucket, f"{bucket.replace('_', '–')} tokens") for bucket in _LENGTHS]
    for name, title in (("retrieval_ndcg_at_10", "retrieval nDCG@10"), ("fidelity_cosine", "cosine to the teacher")):
        whole = [] if name.startswith("retrieval") else [(name, title)]
        parts = whole + [(f"{name}_{bucket}", f"&nbsp;&nbsp;&nbsp;{label}") for bucket, label in lengths]
        place = next((index + 1 for index, (metric, _) in enumerate(listed) if metric == name), len(listed))
        listed[place:place] = parts
    return listed


def _value(results: Results, role: str, split: str, metric: str) -> float | None:
    """Look up a metric; the teacher's full-precision value stands beside the student's quantised one."""
    row = results.row(role)
    values = row.metrics.get(split, {}) if row else {}
    full = {name: divisor for name, _, divisor in quality_metrics(results, split)}
    return values.get(full.get(metric, metric) if role == "teacher" else metric)


def require_one_configuration(folders: Sequence[Path], runs: Sequence[Results]) -> None:
    """Refuse runs that are not one configuration with several seeds.

    Args:
        folders (`Sequence[Path]`): folders of the runs, with their `recipe.json`.
        runs (`Sequence[Results]`): their results.

    Raises:
        ValueError: two of one seed, different teachers, or a field of the recipe that differs; names it.
    """
    seeds = [results.seed for results in runs]
    twice = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(
            f"Two of these runs have the seed {', '.join(twice)}: a spread over seeds needs different ones."
        )
    teachers = {row.fingerprint for results in runs if (row := results.row("teacher"))}
    if len(teachers) > 1:
        raise ValueError("These runs have different teachers, so their means would mix two things.")
    recipes = [_recipe(folder, results) for folder, results in zip(folders, runs, strict=True)]
    for folder, recipe in zip(folders[1:], recipes[1:], strict=True):
        # a training field that one side lacks is one that an older version did not write down
        names = [name for name in {*recipe, *recipes[0]} if not name.startswith(_TRAINING)]
        names += [name for name in recipe.keys() & recipes[0].keys() if name.startswith(_TRAINING)]
        differing = [name for name in sorted(names) if recipe.get(name) != recipes[0].get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{folder.name} is of another configuration than {folders[0].name}: {name} is {recipe.get(name)!r} "
                f"there and {recipes[0].get(name)!r} here. Give runs that differ in their seed only."
            )


def _recipe(folder: Path, results: Results) -> dict[str, Any]:
    """Read what a run was asked for, without its seed, and its loss terms, of which a recipe names the active ones only."""
    path = folder / RECIPE_FILE
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    values.pop("control_minutes", None)  # another model's, trained after the student
    training = values.pop("training", {}) | ({"losses": results.training.losses} if results.training else {})
    return values | {f"{_TRAINING}{name}": value for name, value in training.items() if name != "seed"}


__all__ = ["Spread", "require_one_configuration", "spread", "summarise_seeds"]
