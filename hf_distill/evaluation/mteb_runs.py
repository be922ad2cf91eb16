"""Any task of mteb by its name, with the results in mteb's own cache layout: what is there is not computed again.

`tasks.py` has the tasks that need no network. Here the data come from the Hub, except STSBenchmark's, which is read
from the installed package where there is one. The results of a model lie where `mteb.ResultCache` puts them,
`results/<model>/<revision>/<task>.json`, with the hash of the model for its revision, so mteb's own tools read them.
A task of several languages is limited to one of them by its code: `MassiveIntentClassification[tur]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distill.data.stsb import REMEDY, package_folder
from hf_distill.evaluation.isolation import contained
from hf_distill.evaluation.score_cache import model_fingerprint
from hf_distill.evaluation.tasks import TASKS, SortedEncoder, make_task, mteb

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)

MTEB_FOLDER = "mteb"
"""Folder of a run that holds mteb's results."""
PREFIX = "mteb_"
_LOCAL = ("stsb", *TASKS)
_LIMITED = re.compile(r"(?P<task>[^\[\]]+)\[(?P<language>[a-z]{3})\]")


def check_names(names: Sequence[str]) -> None:
    """Refuse names that mteb does not know.

    Args:
        names (`Sequence[str]`): `"STSBenchmark"`, `"Banking77Classification"` ...

    Raises:
        ValueError: one of them is no task of mteb; says which name is near.
    """
    for name in names:
        _bare_task(name)


def language_tasks(language: str) -> list[str]:
    """List mteb's text tasks in a language.

    Args:
        language (`str`): its code of three letters (ISO 639-3), `"tur"`.

    Returns:
        `list[str]`: names; a task of several languages is limited to this one, `"MassiveIntentClassification[tur]"`.
        Aggregates, private data and tasks that a newer one supersedes are left out.

    Raises:
        ValueError: mteb has no such language, or no task in it.
    """
    with contained("mteb"):
        try:
            tasks = mteb.get_tasks(
                languages=[language], modalities=["text"], exclusive_modality_filter=True, exclude_aggregate=True
            )
        except ValueError as error:
            raise ValueError(f"mteb does not know the language {language!r}: {error}") from error
        names = [task.metadata.name + (f"[{language}]" if len(task.metadata.languages) > 1 else "") for task in tasks]
    if not names:
        raise ValueError(
            f"mteb has no text task in the language {language!r}; give its code of three letters, as 'tur'."
        )
    return names


def _bare_task(name: str) -> Any:
    """Make a task of mteb without its data."""
    limited = _LIMITED.fullmatch(name)
    with contained("mteb"):
        try:
            if limited:
                return mteb.get_task(limited["task"], languages=[limited["language"]])
            return mteb.get_task(name)
        except KeyError as error:
            hint = str(error.args[0]).removeprefix("KeyError: ")
            raise ValueError(f"mteb has no such task: {hint} Its names are those of its documentation.") from error


def _is_local(name: str) -> bool:
    """Tell whether the task's data are installed here."""
    return name == "STSBenchmark" and package_folder() is not None


def _split_of(task: Any, split: str) -> list[str]:
    """Find the splits of a task that stand for validation or test."""
    name, own = task.metadata.name, list(task.metadata.eval_splits)
    if split == "test":
        return ["test"] if "test" in own else own  # MSMARCO's figure, for instance, is that of its dev split
    held_out = [part for part in own if part in ("validation", "dev")]
    if "test" in own and held_out:
        return held_out[:1]
    if _is_local(name):
        return ["validation"]
    raise ValueError(
        f"mteb's task {name} has no validation split, only {', '.join(own)}, which is read once, for the chosen "
        "checkpoint: give --test, or leave the task out."
    )


def load_task(name: str, split: str) -> Any:
    """Make a task of mteb and load its data.

    Args:
        name (`str`): its name in mteb.
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `AbsTask`: ready for `mteb.evaluate`, limited to the split.

    Raises:
        ValueError: no such task, or it has no such split.
        ConnectionError: its data are neither here nor can they be had from the Hub.
    """
    if _is_local(name):
        return make_task("stsbenchmark", split)
    task = _bare_task(name)
    task.filter_eval_splits(_split_of(task, split))
    try:
        with contained("mteb", bars=True):
            task.load_data()
    except OSError as error:  # offline, no such data set, no permission: datasets and huggingface_hub say which
        package = f", or STSBenchmark after: {REMEDY}" if package_folder() is None else ", STSBenchmark"
        raise ConnectionError(
            f"The data of mteb's task {name} ({task.metadata.dataset['path']} on the Hub) cannot be loaded: {error}. Run "
            "the same command where the Hub can be reached (a gated data set needs `hf auth login`), or choose tasks whose "
            f"data are local: {', '.join(_LOCAL)}{package}."
        ) from error
    return task


def check_data(names: Sequence[str], split: str) -> None:
    """Load the data of tasks and let go of them: what is missing is said before anything is computed.

    Args:
        names (`Sequence[str]`): names in mteb.
        split (`str`): `"validation"` or `"test"`.

    Raises:
        ValueError: no such task, or no such split.
        ConnectionError: data that cannot be had.
    """
    for name in names:
        load_task(name, split)


def run_mteb_tasks(
    model: SentenceTransformer,
    names: Sequence[str],
    folder: str | Path | None,
    model_name: str,
    split: str = "test",
    progress: bool = True,
) -> dict[str, float]:
    """Run tasks of mteb on a model, in float32; those whose results are in the folder are read from there.

    Args:
        model (`SentenceTransformer`): the model.
        names (`Sequence[str]`): names in mteb.
        folder (`str` or `Path`, *optional*): where mteb keeps its results, `RUN/mteb`; nothing is kept without.
        model_name (`str`): what mteb calls the model, an id on the Hub; another name becomes `local/<name>`.
        split (`str`, *optional*, defaults to `"test"`): `"test"` is what mteb publishes; `"validation"` where a task has
            it.
        progress (`bool`, *optional*, defaults to `True`): show a bar over the tasks.

    Returns:
        `dict[str, float]`: `mteb_<task>_<main score>`, `{"mteb_STSBenchmark_cosine_spearman": 0.8203}`; for a task of
        several languages the mean over them, as mteb has it.

    Raises:
        ValueError: no such task or split.
        ConnectionError: data that cannot be had; the results of the tasks before it are kept.
    """
    cache = None if folder is None else mteb.ResultCache(Path(folder))
    shown = model_name if "/" in model_name else f"local/{model_name}"
    encoder = SortedEncoder(model, "float32", shown, model_fingerprint(model)[:40])
    metrics = {}
    bar = tqdm(names, desc=f"mteb, {shown}", disable=not progress)
    for name in bar:
        bar.set_postfix_str(name)
        task = _bare_task(name)
        splits = _split_of(task, split)
        task.filter_eval_splits(splits)
        if not _is_known(task, cache, encoder.mteb_model_meta):
            task = load_task(name, split)
        with contained("mteb"):
            result = mteb.evaluate(
                encoder,
                [task],
                cache=cache,
                co2_tracker=False,
                encode_kwargs={"batch_size": 256, "show_progress_bar": False},
                show_progress_bar=False,
            )
        # mteb's files hold six digits: a figure is the one in the file, whether it was computed now or before
        kept = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta) if cache else None
        limited = _LIMITED.fullmatch(name)
        languages = [limited["language"]] if limited else None
        score = (kept or result.task_results[0]).get_score(splits=splits, languages=languages)
        metrics[f"{PREFIX}{name}_{task.metadata.main_score}"] = float(score)
    return metrics


def _is_known(task: Any, cache: Any, meta: Any) -> bool:
    """Tell whether mteb's cache holds all that is asked of a task; a file that was cut off is deleted."""
    if cache is None:
        return False
    try:
        known = cache.load_task_result(task.metadata.name, meta)
    except ValueError as error:  # JSON's and pydantic's
        path = cache.get_task_result_path(task.metadata.name, meta)
        logger.warning("%s is damaged and computed again: %s", path, error)
        path.unlink()
        return False
    return known is not None and not known.get_missing_evaluations(task)
