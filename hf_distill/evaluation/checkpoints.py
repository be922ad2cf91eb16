"""The checkpoints of a run: find them, check that they belong together, load one, make one the run's model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)

MODEL_FOLDER = "model"
STATE_FILE = "trainer_state.json"
RECIPE_FILE = "recipe.json"
# What a checkpoint holds to resume training with: pickles and bookkeeping, nothing that a model needs.
_NOT_MODEL = (
    "*.pt",
    "*.pth",
    "*.bin",
    "*.ckpt",
    "*.pkl",
    STATE_FILE,
    "distill_*",
    "global_step*",
    "latest",
    "zero_to_fp32.py",
    "__pycache__",
)
_VOLATILE = ("_name_or_path", "transformers_version", "__version__", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a saved student.

    Args:
        step (`int`): optimiser step.
        path (`Path`): the folder.
    """

    step: int
    path: Path


def checkpoint_folders(run: str | Path) -> list[Checkpoint]:
    """List the folders `checkpoint-<step>` of a run, whole or not.

    Args:
        run (`str` or `Path`): the run's folder; it need not be there.

    Returns:
        `list[Checkpoint]`: by step; empty where there are none.
    """
    folders = [path for path in Path(run).glob("checkpoint-*") if path.is_dir()]
    steps = {path: path.name.rpartition("-")[2] for path in folders}
    found = [Checkpoint(int(step), path) for path, step in steps.items() if step.isdigit()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def find_checkpoints(run: str | Path) -> list[Checkpoint]:
    """List the complete checkpoints of a run.

    Args:
        run (`str` or `Path`): the run's folder, with sub-folders `checkpoint-<step>`.

    Returns:
        `list[Checkpoint]`: by step, at least one. One that was cut off while it was written is left out with a warning.

    Raises:
        FileNotFoundError: there is no such folder, or no complete checkpoint in it.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {run}. Give the output_dir of a training run.")
    found = []
    for checkpoint in checkpoint_folders(run):
        if (checkpoint.path / "modules.json").is_file() and (checkpoint.path / STATE_FILE).is_file():
            found.append(checkpoint)
        else:
            logger.warning("%s is incomplete (its saving was interrupted) and left out.", checkpoint.path)
    if not found:
        raise FileNotFoundError(
            f"{run} holds no complete checkpoint (a folder checkpoint-<step> with modules.json and {STATE_FILE}). "
            "Train with save_strategy='steps' (recipes/tokenizer_distill.py keeps those of finished students with "
            "--keep_checkpoints only), or give the folder of another run."
        )
    return found


def _configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read what makes the checkpoint's architecture: `modules.json` and every `config.json`, as flat fields."""
    fields: dict[str, Any] = {}
    for path in sorted([checkpoint.path / "modules.json", *checkpoint.path.rglob("config.json")]):
        name = path.relative_to(checkpoint.path).as_posix()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}): the checkpoint is damaged. Delete it.") from error
        values = values if isinstance(values, dict) else {"modules": values}
        fields |= {f"{name}: {key}": value for key, value in values.items() if key not in _VOLATILE}
    return fields


def require_same_config(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints of different students in one run: their scores would not be of one model.

    Args:
        checkpoints (`Sequence[Checkpoint]`): the checkpoints; all are compared with the last.

    Raises:
        ValueError: a checkpoint has another configuration; names it and the fields.
    """
    expected = _configuration(checkpoints[-1])
    for checkpoint in checkpoints[:-1]:
        found = _configuration(checkpoint)
        differing = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{checkpoint.path} is a checkpoint of another config than {checkpoints[-1].path.name}: "
                f"{len(differing)} fields differ, first {name!r} ({found.get(name)!r} against {expected.get(name)!r}). "
                "Move the checkpoints of the other run to a folder of their own."
            )


def read_log_history(run: str | Path) -> list[dict[str, Any]]:
    """Read the log of a run from its newest trainer state.

    Args:
        run (`str` or `Path`): the run's folder, or a checkpoint's.

    Returns:
        `list[dict]`: what the trainer logged, in order, each entry with its `step`; empty where nothing was saved.
    """
    run = Path(run)
    states = [run / STATE_FILE, *(path / STATE_FILE for path in run.glob("checkpoint-*"))]
    histories = [json.loads(path.read_text(encoding="utf-8"))["log_history"] for path in states if path.is_file()]
    return max(histories, key=lambda history: history[-1]["step"] if history else -1, default=[])


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one logged quantity.

    Args:
        log_history (`Sequence[Mapping]`): the trainer's log.
        key (`str`): what to read, `"loss/cosine"` for instance.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: steps and values; of a step that was logged twice (a resumed run) the last.
    """
    points = {entry["step"]: entry[key] for entry in log_history if key in entry and "step" in entry}
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps], dtype=float)


def best_logged(run: str | Path, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Find the checkpoint that the trainer itself held for the best, by its validation metric.

    Args:
        run (`str` or `Path`): the run's folder.
        checkpoints (`Sequence[Checkpoint]`): the run's checkpoints.

    Returns:
        `Checkpoint`: the best one.

    Raises:
        ValueError: the trainer tracked no metric, or the best checkpoint is gone.
    """
    state = json.loads((checkpoints[-1].path / STATE_FILE).read_text(encoding="utf-8"))
    step = state.get("best_global_step")
    chosen = [checkpoint for checkpoint in checkpoints if checkpoint.step == step]
    if not chosen:
        reason = "tracked no best checkpoint" if step is None else f"deleted its best checkpoint, step {step}"
        raise ValueError(f"The trainer of {run} {reason}. Use --checkpoints all to score those that are there.")
    return chosen[0]


def choose_checkpoints(run: str | Path, which: str = "all") -> list[Checkpoint]:
    """List the checkpoints of a run that are to be scored, after checking that all of them are of one student.

    Args:
        run (`str` or `Path`): the run's folder.
        which (`str`, *optional*, defaults to `"all"`): `"all"`, `"best"` (as the trainer logged it), `"final"`, or
            steps separated by commas, `"100,200"`.

    Returns:
        `list[Checkpoint]`: by step, at least one.

    Raises:
        FileNotFoundError: no run, or no checkpoints.
        ValueError: checkpoints of different students, or a step that is not there.
    """
    found = find_checkpoints(run)
    require_same_config(found)
    if which == "best":
        return [best_logged(run, found)]
    if which in ("all", "final"):
        return found if which == "all" else found[-1:]
    steps = {part.strip() for part in which.split(",")}
    chosen = [checkpoint for checkpoint in found if str(checkpoint.step) in steps]
    if len(chosen) != len(steps):
        there = ", ".join(str(checkpoint.step) for checkpoint in found)
        raise ValueError(f"There is no checkpoint {which!r} in {run}: give all, best, final, or steps among {there}.")
    return chosen


def load_run_teacher(
    run: str | Path, name: str | None = None, trust_remote_code: bool = False
) -> tuple[str, SentenceTransformer] | None:
    """Load the teacher of a run, to compare its student with.

    Args:
        run (`str` or `Path`): the run's folder.
        name (`str`, *optional*): id or folder of the teacher; by default the one that the run's `recipe.json` names, or
            that of the experiment in whose folder the run is.
        trust_remote_code (`bool`, *optional*, defaults to `False`): allow a teacher with its own code on the Hub.

    Returns:
        `tuple[str, SentenceTransformer]` or `None`: its name, shown without local folders, and the teacher; None where
        the run names none, or one whose vectors were projected for the student, which only its recipe can do. One that
        `recipe.json` names has the revision and the prompt with which it taught.
    """
    # seconds of imports, which a list of checkpoints can do without
    from hf_distill.teachers.named import named_teacher, scored_model

    folder, asked = Path(run).resolve(), {"teacher": name}
    for recipe in (folder / RECIPE_FILE, folder.parent / RECIPE_FILE):
        if asked.get("teacher") is None and recipe.is_file():
            asked = json.loads(recipe.read_text(encoding="utf-8"))
    name = asked.get("teacher")
    if name is None:
        return None
    if asked.get("teacher_dim") is not None:
        logger.warning(
            "The run's teacher was projected (teacher_dim), so it is not scored again: its row stays as it is."
        )
        return None
    shown = "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name
    options = {"revision": asked.get("teacher_revision"), "prompt": asked.get("prompt")}
    return shown, scored_model(*named_teacher(name, trust_remote_code=trust_remote_code, **options))


def load_checkpoint(path: str | Path, device: str | None = None) -> SentenceTransformer:
    """Load a student that this machine has trained; its own modelling code is run.

    Args:
        path (`str` or `Path`): the folder.
        device (`str`, *optional*): where to; sentence-transformers' choice if not given.

    Returns:
        `SentenceTransformer`: the student.

    Raises:
        ValueError: weights or files are damaged or do not fit the configuration.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(path), device=device, trust_remote_code=True)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be loaded as a sentence-transformers model: {error}. Its files are damaged or of another "
            "config; delete it or give another checkpoint."
        ) from error


def publish_checkpoint(checkpoint: Checkpoint, target: str | Path) -> Path:
    """Make a checkpoint the model of its run: copy what a model needs, then swap the folders.

    The copy is complete before the old model goes; pickles, optimiser states and heads are left behind.

    Args:
        checkpoint (`Checkpoint`): the chosen checkpoint.
        target (`str` or `Path`): the model's folder; replaced if it is there.

    Returns:
        `Path`: the folder.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the old model is then still there.
    """
    target = Path(target)
    new = target.with_name(f".{target.name}.new-{os.getpid()}")
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        shutil.copytree(checkpoint.path, new, ignore=shutil.ignore_patterns(*_NOT_MODEL))
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except OSError as error:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise OSError(
            f"The model of step {checkpoint.step} could not be written to {target}: {error}. What was there before is "
            "still there."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return target
