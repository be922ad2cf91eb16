"""Scores in the Hub's two formats: the `model-index` of the card, and `.eval_results/*.yaml`.

A task that mteb knows goes out under its official id, through mteb's own writer. A task of this project goes out under
`hf_distill/<task>`, with a note that it is no public benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.score_cache import write_atomically
from hf_distill.hub.official import entries_by_mteb, official_scores

EVAL_RESULTS_FOLDER = ".eval_results"
SPLITS = ("test", "validation")


@dataclass(frozen=True)
class Measured:
    """A metric of a task.

    Args:
        keys (`tuple[str, ...]`): its names in `Results`, the first that is there counts.
        type (`str`): what mteb calls it, `"cosine_spearman"`.
        name (`str`): what people call it.
    """

    keys: tuple[str, ...]
    type: str
    name: str


@dataclass(frozen=True)
class Task:
    """A task as the Hub is told of it; the first metric is its score.

    Args:
        id (`str`): what mteb calls it; also the name of its file.
        name (`str`): what people call it.
        dataset (`str`): id of its data set; `hf_distill/...` for a task of this project.
        kind (`str`): the Hub's name for this kind of task.
        metrics (`tuple[Measured, ...]`): its metrics.
        texts (`str`, *optional*): of a task of this project, what it is made of.
    """

    id: str
    name: str
    dataset: str
    kind: str
    metrics: tuple[Measured, ...]
    texts: str = ""

    @property
    def is_official(self) -> bool:
        """Whether others measure the same task under this id."""
        return not self.dataset.startswith("hf_distill/")

    def scores(self, row: ModelRow, split: str) -> list[tuple[Measured, float]]:
        """List the metrics that a model has.

        Args:
            row (`ModelRow`): the model.
            split (`str`): the split.

        Returns:
            `list[tuple[Measured, float]]`: metric and value; empty where its score is missing.
        """
        known, found = row.metrics.get(split, {}), []
        for metric in self.metrics:
            key = next((key for key in metric.keys if key in known), None)
            if key is None and metric is self.metrics[0]:
                return []
            if key is not None:
                found.append((metric, known[key]))
        return found


_SPEARMAN = Measured(("stsbenchmark_spearman", "stsb_spearman"), "cosine_spearman", "Spearman, cosine")
_PEARSON = Measured(("stsbenchmark_pearson", "stsb_pearson"), "cosine_pearson", "Pearson, cosine")
TASKS = (
    Task("STSBenchmark", "STSBenchmark", "mteb/stsbenchmark-sts", "sentence-similarity", (_SPEARMAN, _PEARSON)),
    Task(
        "HfdStdlibRetrieval",
        "Python's documentation, retrieval",
        "hf_distill/HfdStdlibRetrieval",
        "text-retrieval",
        (Measured(("retrieval_ndcg_at_10",), "ndcg_at_10", "nDCG@10"),),
        "the documentation of Python {python}",
    ),
    Task(
        "HfdLexnameClassification",
        "Fields of WordNet's nouns, classification",
        "hf_distill/HfdLexnameClassification",
        "text-classification",
        (Measured(("lexnames_accuracy",), "accuracy", "accuracy"),),
        "held-out nouns of WordNet",
    ),
    Task(
        "HfdModuleClassification",
        "Families of Python's modules, classification",
        "hf_distill/HfdModuleClassification",
        "text-classification",
        (Measured(("modules_accuracy",), "accuracy", "accuracy"),),
        "the documentation of Python {python}",
    ),
)


def student_row(results: Results) -> ModelRow:
    """Find the student's row.

    Args:
        results (`Results`): the results.

    Returns:
        `ModelRow`: the row.

    Raises:
        ValueError: there is none.
    """
    row = results.row("student")
    if row is None:
        raise ValueError(
            f"The results of {results.run!r} have no row of the student (only {[r.role for r in results.rows]}), so there "
            "is nothing to publish. Evaluate the run: accelerate launch recipes/evaluate_student.py --run RUN --test"
        )
    return row


def published_split(task: Task, row: ModelRow) -> str | None:
    """Choose the split that is published: the test split, or validation where test was not read.

    Args:
        task (`Task`): the task.
        row (`ModelRow`): the student.

    Returns:
        `str` or `None`: None where the task was not measured at all.
    """
    return next((split for split in SPLITS if task.scores(row, split)), None)


def eval_results(results: Results) -> list[EvalResult]:
    """Write the student's scores for the card's `model-index`, in full precision.

    Args:
        results (`Results`): the results.

    Returns:
        `list[EvalResult]`: one entry a task and metric.

    Raises:
        ValueError: the results have no row of the student.
    """
    row, entries = student_row(results), []
    for task in TASKS:
        split = published_split(task, row)
        for metric, value in task.scores(row, split) if split else ():
            entries.append(
                EvalResult(
                    task_type=task.kind,
                    dataset_type=task.dataset if task.is_official else task.id,  # no link to what is not there
                    dataset_name=task.name if task.is_official else f"{task.name} (local task)",
                    dataset_split=split,
                    metric_type=metric.type,
                    metric_name=metric.name,
                    metric_value=float(value),
                )
            )
    written = {task.id for task in TASKS if task.scores(row, "test")}
    for score in official_scores(row):
        if score.task not in written:
            entries.append(
                EvalResult(
                    task_type="mteb",
                    dataset_type=score.dataset,
                    dataset_name=score.task,
                    dataset_split=score.split,
                    metric_type=score.metric,
                    metric_value=float(score.value),
                )
            )
    return entries


def eval_result_entries(results: Results) -> list[EvalResultEntry]:
    """Write the student's scores for `.eval_results`, in per cent as mteb does.

    Only test scores go out: this is what leaderboards read.

    Args:
        results (`Results`): the results.

    Returns:
        `list[EvalResultEntry]`: entries of all tasks.

    Raises:
        ValueError: the results have no row of the student, or name a task that mteb does not have.
    """
    return [entry for entries in _entries(results).values() for entry in entries]


def write_eval_results(folder: str | Path, results: Results) -> list[Path]:
    """Write `.eval_results/<task>.yaml` into a model's folder, one file a task, and drop those of other tasks.

    Args:
        folder (`str` or `Path`): the model's folder.
        results (`Results`): the results.

    Returns:
        `list[Path]`: the files; none where no test score was measured.

    Raises:
        ValueError: see `eval_result_entries`; nothing is written then.
    """
    target = Path(folder) / EVAL_RESULTS_FOLDER
    texts = {
        target / f"{task}.yaml": yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        for task, entries in _entries(results).items()
    }
    for old in set(target.glob("*.yaml")) - set(texts):  # a score of other weights
        old.unlink()
    for path, text in texts.items():
        write_atomically(path, text)
    return list(texts)


def _entries(results: Results) -> dict[str, list[EvalResultEntry]]:
    """Make the entries of every task."""
    row, entries = student_row(results), {}
    for task in TASKS:
        scores = task.scores(row, "test")
        if not scores:
            continue
        if task.is_official and scores[0][0].keys[0] in row.metrics["test"]:  # else it is our own evaluator's
            named = {metric.type: value for metric, value in scores}
            entries[task.id] = entries_by_mteb(task.id, "test", named, results)
        else:
            entries[task.id] = _own_entries(task, scores, results)
    for score in official_scores(row):
        entries[score.task] = entries_by_mteb(score.task, score.split, {score.metric: score.value}, results)
    return entries


def _own_entries(task: Task, scores: list[tuple[Measured, float]], results: Results) -> list[EvalResultEntry]:
    """Write the score of a task that mteb has not run, saying so."""
    metric, value = scores[0]
    notes = f"{metric.name}, by hf_distill's own evaluator in float32"
    if not task.is_official:
        texts = task.texts.format(python=results.versions.get("python", ""))
        notes = f"{metric.name} in float32. A local task of hf_distill on {texts}, no public benchmark"
    task_id = f"{task.id}_default_test" if task.is_official else task.id
    return [
        EvalResultEntry(
            dataset_id=task.dataset,
            task_id=task_id,
            value=round(100 * value, 5),
            date=results.created[:10],
            notes=notes,
        )
    ]


__all__ = [
    "EVAL_RESULTS_FOLDER",
    "TASKS",
    "eval_result_entries",
    "eval_results",
    "published_split",
    "student_row",
    "write_eval_results",
]
