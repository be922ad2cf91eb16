"""Scores of mteb's tasks under their official ids: found by mteb's registry, written by mteb's own writer."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from hf_distill.evaluation.results import ModelRow, Results

MTEB_PREFIX = "mteb_"
"""Metrics of mteb's tasks are called `mteb_<task>_<main score>`."""


class OfficialScore(NamedTuple):
    """The main score of a task of mteb.

    Args:
        task (`str`): its name.
        dataset (`str`): its data set on the Hub.
        revision (`str`): of the data set.
        split (`str`): the split that mteb calls its test.
        subsets (`tuple[str, ...]`): its languages or parts; the score is their mean.
        metric (`str`): name of the main score.
        value (`float`): the score, 0 to 1.
    """

    task: str
    dataset: str
    revision: str
    split: str
    subsets: tuple[str, ...]
    metric: str
    value: float


def official_scores(row: ModelRow) -> list[OfficialScore]:
    """Find the test scores of a model on tasks of mteb.

    Args:
        row (`ModelRow`): the model.

    Returns:
        `list[OfficialScore]`: in the order of the results; mteb is only imported if there are any.

    Raises:
        ValueError: a metric is called like one of mteb's, but mteb has no such task.
        ImportError: mteb is needed and missing.
    """
    found = {
        key: value
        for key, value in row.metrics.get("test", {}).items()
        if key.startswith(MTEB_PREFIX) and "[" not in key  # one language is not the official score
    }
    return [_official_score(key, value) for key, value in found.items()]


def _official_score(key: str, value: float) -> OfficialScore:
    """Take a metric's name apart: task names and scores may both hold underscores."""
    parts = key.removeprefix(MTEB_PREFIX).split("_")
    for cut in range(1, len(parts)):
        name, metric = "_".join(parts[:cut]), "_".join(parts[cut:])
        metadata = _metadata(name)
        if metadata is not None and metadata.main_score == metric:
            splits = list(metadata.eval_splits)
            split = "test" if "test" in splits else splits[0]
            path, revision = metadata.dataset["path"], metadata.dataset["revision"]
            return OfficialScore(name, path, revision, split, tuple(metadata.hf_subsets), metric, value)
    raise ValueError(
        f"The metric {key!r} is called like one of mteb's, but mteb has no task and main score of that name. Update mteb, "
        "or evaluate the run again."
    )


def _metadata(name: str) -> Any:
    """Look a task up in mteb's registry; None if there is no such task."""
    if importlib.util.find_spec("mteb") is None:
        raise ImportError(
            "The results of mteb's tasks are written by mteb, which is missing. Install it: pip install 'mteb>=2.20,<3'"
        )
    from hf_distill.evaluation.isolation import contained

    with contained("mteb"):
        import mteb

        try:
            return mteb.get_task(name).metadata
        except KeyError:
            return None


def entries_by_mteb(task: str, split: str, scores: Mapping[str, float], results: Results) -> list[EvalResultEntry]:
    """Hand scores back to mteb, which knows the task's data set, revision and ids.

    Args:
        task (`str`): its name.
        split (`str`): its split.
        scores (`Mapping[str, float]`): what mteb calls its scores, the main score first.
        results (`Results`): when and with which version they were computed.

    Returns:
        `list[EvalResultEntry]`: for a task of several subsets the overall entry alone, since only their mean is known.
    """
    metadata = _metadata(task)
    from hf_distill.evaluation.isolation import contained

    with contained("mteb"):
        from mteb.results import TaskResult

        main = next(iter(scores.values()))
        languages = [language for group in metadata.hf_subsets_to_langscripts.values() for language in group]
        subset = {"languages": languages, "main_score": main, **scores}
        result = TaskResult(
            dataset_revision=metadata.dataset["revision"],
            task_name=task,
            mteb_version=results.versions.get("mteb"),
            scores={split: [{"hf_subset": name, **subset} for name in metadata.hf_subsets]},
            evaluation_time=None,
            date=datetime.fromisoformat(results.created),
        )
        entries = parse_eval_result_entries([entry.to_dict() for entry in result._to_hf_benchmark_result().root])
    return entries if len(metadata.hf_subsets) == 1 else [entry for entry in entries if entry.task_id == task]


__all__ = ["MTEB_PREFIX", "OfficialScore", "entries_by_mteb", "official_scores"]
