"""Everything that is measured about one model, by the names of the tasks.

`stsb` is STS-B, `int8` the same with the weights rounded to int8, `embedding_int8` and `embedding_binary` STS-B and
retrieval with the embeddings stored so, `fidelity` the agreement with the teacher on held-out texts of every length;
`stsbenchmark`, `retrieval`, `lexnames` and `modules` are the mteb tasks of `tasks.py`. The Turkish tasks are `stsb_tr`
and `bitext`, see `turkish.py`. Any other name is one of mteb's; `mteb_tur` stands for all of its Turkish tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_distill.data.stsb import load_stsb
from hf_distill.evaluation.corpus import heldout_texts, retrieval_passages
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.paired import pair_similarities
from hf_distill.evaluation.results import ModelRow
from hf_distill.evaluation.score_cache import ScoreCache, library_versions, model_fingerprint
from hf_distill.evaluation.speed import int8_copy, measure_speed, model_size
from hf_distill.evaluation.sts import STSEvaluator
from hf_distill.evaluation.tokenizer_stats import tokenizer_stats
from hf_distill.evaluation.turkish import TURKISH_TASKS, turkish_evaluators
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

MTEB_TASKS = ("stsbenchmark", "retrieval", "lexnames", "modules")
EMBEDDING_TASKS = ("embedding_int8", "embedding_binary")
TASKS = ("stsb", "int8", *EMBEDDING_TASKS, "fidelity", *MTEB_TASKS)
_LOCAL_TASKS = (*TASKS, *TURKISH_TASKS)
_LANGUAGE = re.compile(r"mteb_([a-z]{3})")
_NOT_FOR = {
    "teacher": {"fidelity", "int8"},
    "untrained": {"int8", *EMBEDDING_TASKS},
    "control": {"int8", *EMBEDDING_TASKS},
}
_SPEED_TEXTS = 40  # in each length bucket


def parse_tasks(names: str | Sequence[str]) -> list[str]:
    """Read a list of tasks.

    Args:
        names (`str` or `Sequence[str]`): names of `TASKS`, of `TURKISH_TASKS` or of mteb's tasks (`STSBenchmark`, with
            capitals as mteb has them), separated by commas or as a list; `"all"` means all of `TASKS`, `"mteb_tur"` all
            of mteb's Turkish ones, and so for other languages of ISO 639-3.

    Returns:
        `list[str]`: distinct names, in the order of `TASKS` and `TURKISH_TASKS`, then mteb's as given.

    Raises:
        ValueError: no names, or an unknown one; the message lists the tasks. Or mteb, which knows the other names, is
            missing.
    """
    parts = names.split(",") if isinstance(names, str) else names
    asked = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not asked:
        raise ValueError(f"No task is given: choose among {', '.join(_LOCAL_TASKS)}, or all, or name tasks of mteb.")
    others = [name for name in asked if name not in (*_LOCAL_TASKS, "all")]
    if others:
        _require_mteb()
        from hf_distill.evaluation.mteb_runs import check_names, language_tasks  # mteb takes seconds to import

        languages = {name: found[1] for name in others if (found := _LANGUAGE.fullmatch(name))}
        try:
            lists = [language_tasks(languages[name]) if name in languages else [name] for name in others]
            others = list(dict.fromkeys(task for tasks in lists for task in tasks))
            check_names(others)
        except ValueError as error:
            raise ValueError(
                f"There is no task {', '.join(map(repr, sorted(others)))}: choose among {', '.join(_LOCAL_TASKS)}, or all. "
                f"Other names are mteb's, and {error}"
            ) from error
    return [task for task in _LOCAL_TASKS if task in asked or ("all" in asked and task in TASKS)] + others


def task_of(metric: str) -> str:
    """Find the task that a metric belongs to.

    Args:
        metric (`str`): `"stsb_spearman"` for instance.

    Returns:
        `str`: its task, `"stsb"`.

    Raises:
        ValueError: no task has such a metric.
    """
    found = [task for task in _LOCAL_TASKS if metric.startswith(f"{task}_")]
    if not found:
        raise ValueError(
            f"No task has the metric {metric!r}: it must begin with one of {', '.join(_LOCAL_TASKS)} and _."
        )
    return max(found, key=len)  # stsb_tr_spearman is not of stsb


def mteb_names(tasks: Sequence[str]) -> list[str]:
    """List the tasks that are mteb's own, whose data come from the Hub."""
    return [task for task in tasks if task not in _LOCAL_TASKS]


def check_data(tasks: Sequence[str], split: str, stsb_tr_folder: str | Path | None = None) -> None:
    """Load mteb and the data of the tasks that need them, so that what is missing is said before anything is computed.

    Args:
        tasks (`Sequence[str]`): names of tasks, from `parse_tasks`.
        split (`str`): `"validation"` or `"test"`.
        stsb_tr_folder (`str` or `Path`, *optional*): where the files of STSb-TR are.

    Raises:
        ValueError: a task of mteb has no such split, or mteb is missing; the message names the remedy.
        ConnectionError: data that cannot be had; the message names the tasks that need none.
    """
    if set(tasks) & {*MTEB_TASKS, *mteb_names(tasks)}:
        _require_mteb()
    turkish_evaluators([task for task in tasks if task in TURKISH_TASKS], split, folder=stsb_tr_folder)
    if mteb_names(tasks):
        from hf_distill.evaluation import mteb_runs

        mteb_runs.check_data(mteb_names(tasks), split)


def _require_mteb() -> None:
    """Import what needs mteb, with an error that every recipe shows as one line.

    Raises:
        ValueError: mteb is missing or too old; the message names the remedy.
    """
    try:
        import hf_distill.evaluation.tasks  # noqa: F401
    except ImportError as error:
        raise ValueError(str(error)) from error


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
    turkish: Mapping[str, SentenceEvaluator] | None = None,
    fingerprint: str | None = None,
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
        turkish (`Mapping[str, SentenceEvaluator]`, *optional*): what `turkish_evaluators` made for this split; needed for
            the tasks `stsb_tr` and `bitext`.
        fingerprint (`str`, *optional*): the hash of the model, where it is known: a large vocabulary takes seconds.

    Returns:
        `dict[str, float]`: `stsb_spearman`, `stsb_pearson`, `int8_spearman`, `embedding_int8_spearman`,
        `fidelity_cosine`, `fidelity_cosine_1_32` ..., `retrieval_ndcg_at_10`, `lexnames_accuracy`, `modules_accuracy` ...,
        `stsb_tr_pearson`, `bitext_recall_at_1` ..., `mteb_<task>_<score>`, those of the tasks.

    Raises:
        ValueError: an unknown task, or `fidelity` or a Turkish task without its evaluator.
    """
    names = parse_tasks(tasks)
    if "fidelity" in names and fidelity is None:
        raise ValueError(
            "The task fidelity compares with a teacher, and none is given. Give --teacher, or leave it out."
        )
    evaluators: dict[str, SentenceEvaluator] = {**(turkish or {}), **({"fidelity": fidelity} if fidelity else {})}
    lacking = [name for name in names if name in TURKISH_TASKS and name not in evaluators]
    if lacking:
        raise ValueError(
            f"The task {lacking[0]} needs its evaluator: turkish=turkish_evaluators([{lacking[0]!r}], {split!r})."
        )

    metrics: dict[str, float] = {}
    fingerprint = fingerprint or (model_fingerprint(model) if cache else "")
    for group in _groups(names):
        if cache is None:
            metrics |= _measure(model, group, split, dtype, evaluators)
            continue
        key = {
            "task": "+".join(group),
            "split": split,
            "dtype": best_dtype(model.device) if dtype == "auto" else dtype,
            "model": fingerprint,
            "data": _digest(group[0], split, evaluators),
            "versions": library_versions(),
        }
        metrics |= cache.get_or_compute(key, partial(_measure, model, group, split, dtype, evaluators))
    if "stsb_tr" in names:  # the similarity of each pair is kept, not only the correlation: see paired.py
        scored = evaluators["stsb_tr"]
        correlations = scored.correlations(pair_similarities(model, scored, cache, fingerprint))
        metrics |= {f"stsb_tr_{metric}": value for metric, value in correlations.items()}
    local = [name for name in names if name in MTEB_TASKS]
    if local:
        from hf_distill.evaluation.tasks import run_tasks  # mteb takes seconds to import

        metrics |= run_tasks(model, local, split, dtype, cache, fingerprint)
    if mteb_names(names):
        from hf_distill.evaluation.mteb_runs import run_mteb_tasks

        metrics |= run_mteb_tasks(model, mteb_names(names), *(mteb or (None, "model")), split)
    return metrics


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Put together what is measured in one go, of the tasks that are not mteb's: the embeddings are encoded once."""
    alone = [[name] for name in names if name in ("stsb", "int8", "fidelity", "bitext")]
    embeddings = [name for name in names if name in EMBEDDING_TASKS]
    return alone + ([embeddings] if embeddings else [])


def _measure(
    model: SentenceTransformer,
    group: Sequence[str],
    split: str,
    dtype: str,
    evaluators: Mapping[str, SentenceEvaluator],
) -> dict[str, float]:
    """Run a group of tasks."""
    name = group[0]
    if name in evaluators:
        return evaluators[name](model)
    if name in EMBEDDING_TASKS:
        from hf_distill.evaluation.quantized import quantized_scores

        return quantized_scores(model, [name.removeprefix("embedding_") for name in group], split, dtype)
    scored = int8_copy(model) if name == "int8" else model
    return STSEvaluator.from_dataset(load_stsb(split), name=name, dtype=dtype)(scored)


def _digest(name: str, split: str, evaluators: Mapping[str, SentenceEvaluator]) -> str:
    """Hash what a task is computed from, besides the model."""
    if name == "bitext":
        return evaluators[name].digest()
    if name == "fidelity":
        fidelity = evaluators[name]
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
    stsb_tr_folder: str | Path | None = None,
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
        stsb_tr_folder (`str` or `Path`, *optional*): with the files of STSb-TR, for the task `stsb_tr`; from the Hub by
            default.

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
        fidelity, teacher = None, models["teacher"][1] if "teacher" in models else None
        if "fidelity" in names and teacher is not None:
            fidelity = make_fidelity(teacher, split, precision)
        wanted = [task for task in names if task in TURKISH_TASKS]
        turkish = turkish_evaluators(wanted, split, precision, stsb_tr_folder, teacher)
        for role, (name, model) in models.items():
            mine = [task for task in names if task not in _NOT_FOR.get(role, set())]
            if mine:
                mteb = None if mteb_folder is None else (mteb_folder, name)
                rows[role].metrics[split] = evaluate_model(
                    model, mine, split, precision, fidelity, cache, mteb, turkish, rows[role].fingerprint
                )
    return rows


def add_speed(
    rows: Mapping[str, ModelRow],
    models: Mapping[str, tuple[str, SentenceTransformer]],
    rounds: int = 5,
    texts: Sequence[str] | None = None,
) -> None:
    """Measure the speed of models against each other on held-out texts of all lengths, and enter it into their rows.

    Args:
        rows (`Mapping[str, ModelRow]`): role to row, from `score_models`.
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model).
        rounds (`int`, *optional*, defaults to 5): rounds in which every model encodes all texts.
        texts (`Sequence[str]`, *optional*): what they encode; English texts of all lengths by default.
    """
    if texts is None:
        first = models["teacher"] if "teacher" in models else next(iter(models.values()))
        texts = heldout_texts(first[1].tokenizer, "validation", _SPEED_TEXTS)
    speeds = measure_speed({role: model for role, (_, model) in models.items()}, texts, rounds)
    for role, speed in speeds.items():
        rows[role].speed = speed


def add_tokenizers(
    rows: Mapping[str, ModelRow],
    models: Mapping[str, tuple[str, SentenceTransformer]],
    texts: Sequence[str],
    names: Mapping[str, str],
) -> None:
    """Measure how the models' tokenizers cut held-out text, and enter it into their rows.

    Args:
        rows (`Mapping[str, ModelRow]`): role to row, from `score_models`.
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model).
        texts (`Sequence[str]`): text that neither tokenizer nor model has seen, `tokenizer_texts` for Turkish.
        names (`Mapping[str, str]`): role to the name of its tokenizer; models of one name are measured once.
    """
    measured = {}
    for role, (_, model) in models.items():
        name = names[role]
        measured[name] = measured.get(name) or tokenizer_stats(model.tokenizer, texts, name)
        rows[role].tokenizer = measured[name]
