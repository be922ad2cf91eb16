"""Everything that is measured about one model, by the names of the tasks.

`stsb` is STS-B, `int8` the same with the weights rounded to int8, `fidelity` the agreement with the teacher on held-out
texts of every length; the others are the mteb tasks of `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hf_distill.data.stsb import load_stsb
from hf_distill.evaluation.corpus import heldout_texts
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.results import ModelRow
from hf_distill.evaluation.score_cache import ScoreCache, model_fingerprint
from hf_distill.evaluation.speed import int8_copy, measure_speed, model_size
from hf_distill.evaluation.sts import STSEvaluator

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MTEB_TASKS = ("stsbenchmark", "retrieval", "lexnames", "modules")
TASKS = ("stsb", "int8", "fidelity", *MTEB_TASKS)
_SPEED_TEXTS = 40  # in each length bucket


def parse_tasks(names: str | Sequence[str]) -> list[str]:
    """Read a list of tasks.

    Args:
        names (`str` or `Sequence[str]`): names of `TASKS`, separated by commas or as a list; `"all"` means all.

    Returns:
        `list[str]`: distinct names, in the order of `TASKS`.

    Raises:
        ValueError: no names, or an unknown one; the message lists the tasks.
    """
    parts = names.split(",") if isinstance(names, str) else names
    asked = {part.strip() for part in parts if part.strip()}
    if "all" in asked:
        return list(TASKS)
    unknown = sorted(asked - set(TASKS))
    if unknown or not asked:
        what = f"There is no task {', '.join(map(repr, unknown))}" if unknown else "No task is given"
        raise ValueError(f"{what}: choose among {', '.join(TASKS)}, or all.")
    return [task for task in TASKS if task in asked]


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
    return FidelityEvaluator(texts, teacher, dtype=dtype)


def evaluate_model(
    model: SentenceTransformer,
    tasks: str | Sequence[str],
    split: str = "validation",
    dtype: str = "auto",
    fidelity: FidelityEvaluator | None = None,
    cache: ScoreCache | None = None,
) -> dict[str, float]:
    """Score a model on tasks.

    Args:
        model (`SentenceTransformer`): the model.
        tasks (`str` or `Sequence[str]`): names of `TASKS`.
        split (`str`, *optional*, defaults to `"validation"`): `"validation"`, or `"test"` for the chosen model, once.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`; `"float32"` for test scores.
        fidelity (`FidelityEvaluator`, *optional*): comparison with the teacher, from `make_fidelity`; needed for the
            task `fidelity`.
        cache (`ScoreCache`, *optional*): keeps the scores of the mteb tasks.

    Returns:
        `dict[str, float]`: `stsb_spearman`, `stsb_pearson`, `int8_spearman`, `fidelity_cosine`, `fidelity_cosine_1_32` ...,
        `retrieval_ndcg_at_10`, `lexnames_accuracy`, `modules_accuracy` ..., those of the tasks.

    Raises:
        ValueError: an unknown task, or `fidelity` without its evaluator.
    """
    names = parse_tasks(tasks)
    if "fidelity" in names and fidelity is None:
        raise ValueError(
            "The task fidelity compares with a teacher, and none is given. Give --teacher, or leave it out."
        )
    metrics: dict[str, float] = {}
    if "stsb" in names:
        metrics |= STSEvaluator.from_dataset(load_stsb(split), name="stsb", dtype=dtype)(model)
    if "int8" in names:
        metrics |= STSEvaluator.from_dataset(load_stsb(split), name="int8", dtype=dtype)(int8_copy(model))
    if "fidelity" in names:
        metrics |= fidelity(model)
    local = [name for name in names if name in MTEB_TASKS]
    if local:
        from hf_distill.evaluation.tasks import run_tasks  # mteb takes seconds to import

        metrics |= run_tasks(model, local, split=split, dtype=dtype, cache=cache)
    return metrics


def score_models(
    models: Mapping[str, tuple[str, SentenceTransformer]],
    tasks: Mapping[str, str | Sequence[str]],
    dtype: str = "auto",
    cache: ScoreCache | None = None,
) -> dict[str, ModelRow]:
    """Score the models of a report, each on the same tasks.

    Args:
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model), such as
            `{"teacher": ("all-MiniLM-L6-v2", teacher), "student": ("student", student)}`; roles are those of `ModelRow`.
        tasks (`Mapping[str, str | Sequence[str]]`): split to names of `TASKS`, such as
            `{"validation": ["stsb"], "test": ["stsb", "fidelity", "retrieval"]}`. `fidelity` needs a teacher among the
            models and is not measured of the teacher itself; `int8` is measured of the student only.
        dtype (`str`, *optional*, defaults to `"auto"`): precision on validation, see `encode_sorted`. Test scores are
            always computed in float32.
        cache (`ScoreCache`, *optional*): keeps the scores of the mteb tasks.

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
        for role, (_, model) in models.items():
            left_out = {"teacher": {"fidelity", "int8"}, "student": set()}.get(role, {"int8"})
            mine = [name for name in names if name not in left_out]
            if mine:
                rows[role].metrics[split] = evaluate_model(model, mine, split, precision, fidelity, cache)
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
