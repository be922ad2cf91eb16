"""Everything that is measured about one model, by the names of the tasks.

`stsb` is STS-B, `int8` the same with the weights rounded to int8, `embedding_int8` and `embedding_binary` STS-B and
retrieval with the embeddings stored so, `fidelity` the agreement with the teacher on held-out texts of every length;
`stsbenchmark`, `retrieval`, `lexnames` and `modules` are the mteb tasks of `tasks.py`. Any other name is one of mteb's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.data.stsb import load_stsb
from hf_distill.evaluation.corpus import heldout_texts, retrieval_passages
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.results import ModelRow
from hf_distill.evaluation.score_cache import ScoreCache, library_versions, model_fingerprint
from hf_distill.evaluation.speed import int8_copy, measure_speed, model_size
from hf_distill.evaluation.sts import STSEvaluator
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MTEB_TASKS = ("stsbenchmark", "retrieval", "lexnames", "modules")
EMBEDDING_TASKS = ("embedding_int8", "embedding_binary")
TASKS = ("stsb", "int8", *EMBEDDING_TASKS, "fidelity", *MTEB_TASKS)
_NOT_FOR = {
    "teacher": {"fidelity", "int8"},
    "untrained": {"int8", *EMBEDDING_TASKS},
    "control": {"int8", *EMBEDDING_TASKS},
}
_SPEED_TEXTS = 40  # in each length bucket


def parse_tasks(names: str | Sequence[str]) -> list[str]:
    """Read a list of tasks.

    Args:
        names (`str` or `Sequence[str]`): names of `TASKS` or of mteb's tasks (`STSBenchmark`, with capitals as mteb
            has them), separated by commas or as a list; `"all"` means all of `TASKS`.

    Returns:
        `list[str]`: distinct names, in the order of `TASKS`, then mteb's as given.

    Raises:
        ValueError: no names, or an unknown one; the message lists the tasks.
    """
    parts = names.split(",") if isinstance(names, str) else names
    asked = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not asked:
        raise ValueError(f"No task is given: choose among {', '.join(TASKS)}, or all, or name tasks of mteb.")
    others = [name for name in asked if name not in (*TASKS, "all")]
    if others:
        from hf_distill.evaluation.mteb_runs import check_names  # mteb takes seconds to import

        try:
            check_names(others)
        except ValueError as error:
            raise ValueError(
                f"There is no task {', '.join(map(repr, sorted(others)))}: choose among {', '.join(TASKS)}, or all. "
                f"Other names are mteb's, and {error}"
            ) from error
    return [task for task in TASKS if task in asked or "all" in asked] + others


def task_of(metric: str) -> str:
    """Find the task that a metric belongs to.

    Args:
        metric (`str`): `"stsb_spearman"` for instance.

    Returns:
        `str`: its task, `"stsb"`.

    Raises:
        ValueError: no task has such a metric.
    """
    found = [task for task in TASKS if metric.startswith(f"{task}_")]
    if not found:
        raise ValueError(f"No task has the metric {metric!r}: it must begin with one of {', '.join(TASKS)} and _.")
    return found[0]


def mteb_names(tasks: Sequence[str]) -> list[str]:
    """List the tasks that are mteb's own, whose data come from the Hub."""
    return [task for task in tasks if task not in TASKS]


def check_data(tasks: Sequence[str], split: str) -> None:
    """Load the data of the tasks that need the Hub, so that what is missing is said before anything is computed.

    Args:
        tasks (`Sequence[str]`): names of tasks, from `parse_tasks`.
        split (`str`): `"validation"` or `"test"`.

    Raises:
        ValueError: a task of mteb has no such split.
        ConnectionError: data that cannot be had; the message names the tasks that need none.
    """
    if mteb_names(tasks):
        from hf_distill.evaluation import mteb_runs

        mteb_runs.check_data(mteb_names(tasks), split)


def make_fidelity(
    teacher: SentenceTransformer, split: str, dtype: str = "auto", per_bucket: int = 200
) -> FidelityEvaluator:
    """Make the comparison with a teacher on held-out texts of every length; the teacher is run once, here.

    Args:
        teacher (`SentenceTransformer`): the teacher; its tokenizer counts the tokens.
        split (`str`): `"validation"` or `"test"`.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`.
        per_bucket (`int`, *optional*, defaults to 200): texts in each length bucket.

    Returns:
        `FidelityEvaluator`: the evaluator, for any number of students.
    """
    limit = teacher.max_seq_length if isinstance(teacher.max_seq_length, int) else 256
    texts = heldout_texts(teacher.tokenizer, split, per_bucket, max_length=min(limit, 256))
    return FidelityEvaluator(texts, teacher, dtype=dtype, split=split)


def evaluate_model(
    model: SentenceTransformer,
    tasks: str | Sequence[str],
    split: str = "validation",
    dtype: str = "auto",
    fidelity: FidelityEvaluator | None = None,
    cache: ScoreCache | None = None,
    mteb: tuple[str | Path, str] | None = None,
) -> dict[str, float]:
    """Score a model on tasks.

    Args:
        model (`SentenceTransformer`): the model.
        tasks (`str` or `Sequence[str]`): names of `TASKS` or of mteb's tasks.
        split (`str`, *optional*, defaults to `"validation"`): `"validation"`, or `"test"` for the chosen model, once.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`; `"float32"` for test scores.
        fidelity (`FidelityEvaluator`, *optional*): comparison with the teacher, from `make_fidelity`; needed for the
            task `fidelity`.
        cache (`ScoreCache`, *optional*): keeps the scores; `shared_scores(run)` shares them between runs.
        mteb (`tuple[str | Path, str]`, *optional*): folder for the results of mteb's tasks and what they call the model;
            those tasks are always computed in float32.

    Returns:
        `dict[str, float]`: `stsb_spearman`, `stsb_pearson`, `int8_spearman`, `embedding_int8_spearman`,
        `fidelity_cosine`, `fidelity_cosine_1_32` ..., `retrieval_ndcg_at_10`, `lexnames_accuracy`, `modules_accuracy` ...,
        `mteb_<task>_<score>`, those of the tasks.

    Raises:
        ValueError: an unknown task, or `fidelity` without its evaluator.
    """
    names = parse_tasks(tasks)
    if "fidelity" in names and fidelity is None:
        raise ValueError(
            "The task fidelity compares with a teacher, and none is given. Give --teacher, or leave it out."
        )

    metrics: dict[str, float] = {}
    fingerprint = model_fingerprint(model) if cache else ""
    for group in _groups(names):
        if cache is None:
            metrics |= _measure(model, group, split, dtype, fidelity)
            continue
        key = {
            "task": "+".join(group),
            "split": split,
            "dtype": best_dtype(model.device) if dtype == "auto" else dtype,
            "model": fingerprint,
            "data": _digest(group[0], split, fidelity),
            "versions": library_versions(),
        }
        metrics |= cache.get_or_compute(key, partial(_measure, model, group, split, dtype, fidelity))
    local = [name for name in names if name in MTEB_TASKS]
    if local:
        from hf_distill.evaluation.tasks import run_tasks  # mteb takes seconds to import

        metrics |= run_tasks(model, local, split=split, dtype=dtype, cache=cache)
    if mteb_names(names):
        from hf_distill.evaluation.mteb_runs import run_mteb_tasks

        metrics |= run_mteb_tasks(model, mteb_names(names), *(mteb or (None, "model")), split)
    return metrics


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Put together what is measured in one go, of the tasks that are not mteb's: the embeddings are encoded once."""
    alone = [[name] for name in names if name in ("stsb", "int8", "fidelity")]
    embeddings = [name for name in names if name in EMBEDDING_TASKS]
    return alone + ([embeddings] if embeddings else [])


def _measure(
    model: SentenceTransformer, group: Sequence[str], split: str, dtype: str, fidelity: FidelityEvaluator | None
) -> dict[str, float]:
    """Run a group of tasks."""
    name = group[0]
    if name == "fidelity" and fidelity is not None:
        return fidelity(model)
    if name in EMBEDDING_TASKS:
        from hf_distill.evaluation.quantized import quantized_scores

        return quantized_scores(model, [name.removeprefix("embedding_") for name in group], split, dtype)
    scored = int8_copy(model) if name == "int8" else model
    return STSEvaluator.from_dataset(load_stsb(split), name=name, dtype=dtype)(scored)


def _digest(name: str, split: str, fidelity: FidelityEvaluator | None) -> str:
    """Hash what a task is computed from, besides the model."""
    if name == "fidelity" and fidelity is not None:
        content = "\0".join(fidelity.texts).encode("utf-8", "surrogatepass") + fidelity.teacher.tobytes()
    else:
        passages = retrieval_passages(split) if name in EMBEDDING_TASKS else []
        content = json.dumps([load_stsb(split).to_dict(), passages], sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def score_models(
    models: Mapping[str, tuple[str, SentenceTransformer]],
    tasks: Mapping[str, str | Sequence[str]],
    dtype: str = "auto",
    cache: ScoreCache | None = None,
    mteb_folder: str | Path | None = None,
) -> dict[str, ModelRow]:
    """Score the models of a report, each on the same tasks.

    Args:
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model), such as
            `{"teacher": ("all-MiniLM-L6-v2", teacher), "student": ("student", student)}`; roles are those of `ModelRow`.
        tasks (`Mapping[str, str | Sequence[str]]`): split to names of tasks, such as
            `{"validation": ["stsb"], "test": ["stsb", "fidelity", "retrieval"]}`. `fidelity` needs a teacher among the
            models and is not measured of the teacher itself; `int8` is measured of the student only, the embedding tasks
            of teacher and student.
        dtype (`str`, *optional*, defaults to `"auto"`): precision on validation, see `encode_sorted`. Test scores are
            always computed in float32.
        cache (`ScoreCache`, *optional*): keeps the scores; with `shared_scores(run)` another seed does not score the
            same teacher again.
        mteb_folder (`str` or `Path`, *optional*): where mteb keeps the results of its own tasks, `RUN/mteb`.

    Returns:
        `dict[str, ModelRow]`: role to row, with size and metrics.

    Raises:
        ValueError: an unknown task, or `fidelity` without a teacher.
    """
    asked = {split: parse_tasks(names) for split, names in tasks.items()}
    rows = {
        role: ModelRow(role, name, size=model_size(model), fingerprint=model_fingerprint(model))
        for role, (name, model) in models.items()
    }
    for split, names in asked.items():
        precision = "float32" if split == "test" else dtype
        fidelity = None
        if "fidelity" in names and "teacher" in models:
            fidelity = make_fidelity(models["teacher"][1], split, precision)
        for role, (name, model) in models.items():
            mine = [task for task in names if task not in _NOT_FOR.get(role, set())]
            if mine:
                mteb = None if mteb_folder is None else (mteb_folder, name)
                rows[role].metrics[split] = evaluate_model(model, mine, split, precision, fidelity, cache, mteb)
    return rows


def add_speed(
    rows: Mapping[str, ModelRow], models: Mapping[str, tuple[str, SentenceTransformer]], rounds: int = 5
) -> None:
    """Measure the speed of models against each other on held-out texts of all lengths, and enter it into their rows.

    Args:
        rows (`Mapping[str, ModelRow]`): role to row, from `score_models`.
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model).
        rounds (`int`, *optional*, defaults to 5): rounds in which every model encodes all texts.
    """
    first = models["teacher"] if "teacher" in models else next(iter(models.values()))
    texts = heldout_texts(first[1].tokenizer, "validation", _SPEED_TEXTS)
    speeds = measure_speed({role: model for role, (_, model) in models.items()}, texts, rounds)
    for role, speed in speeds.items():
        rows[role].speed = speed
