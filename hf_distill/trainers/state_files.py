"""The state of a training in files without pickles: what a checkpoint on the Hub needs to be resumed exactly.

`optimizer.pt`, `scheduler.pt`, `scaler.pt` and `rng_state*.pth` become a JSON file (structure and numbers) and a
safetensors file (tensors) each, under their names with a further suffix. `restore_state` turns them back, on the machine
that resumes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import logging

logger = logging.get_logger(__name__)

TRAINER_STATE = "trainer_state.json"
_PATTERNS = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
_STRUCTURE, _TENSORS = ".json", ".safetensors"


def write_state(checkpoint: str | Path, target: str | Path) -> None:
    """Writes the state of a local checkpoint into another folder, without pickles and local paths.

    Args:
        checkpoint: A folder that the trainer wrote here.
        target: An existing folder.

    Raises:
        ValueError: If a state holds something that is neither a tensor nor a number, text or collection of them.
    """
    checkpoint, target = Path(checkpoint), Path(target)
    for path in sorted(path for pattern in _PATTERNS for path in checkpoint.glob(pattern)):
        with safe_globals():
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors: dict[str, Tensor] = {}
        structure = _encode(state, tensors, path.name)
        (target / (path.name + _STRUCTURE)).write_text(json.dumps(structure) + "\n", encoding="utf-8")
        save_file(tensors, target / (path.name + _TENSORS))
    values = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    if values.get("best_model_checkpoint"):
        values["best_model_checkpoint"] = Path(values["best_model_checkpoint"]).name
    (target / TRAINER_STATE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def restore_state(checkpoint: str | Path) -> None:
    """Turns the files of `write_state` back into what the trainer reads; does nothing in an ordinary checkpoint.

    If the best checkpoint of the run is not beside this one, the choice of the best one begins anew.

    Args:
        checkpoint: A checkpoint downloaded from the Hub.
    """
    checkpoint = Path(checkpoint)
    files = [path for pattern in _PATTERNS for path in checkpoint.glob(pattern + _STRUCTURE)]
    for path in files:
        original = path.with_name(path.name.removesuffix(_STRUCTURE))
        if original.is_file():
            continue
        tensors = load_file(path.with_name(original.name + _TENSORS))
        temporary = original.with_name(f".{original.name}.{os.getpid()}")
        torch.save(_decode(json.loads(path.read_text(encoding="utf-8")), tensors), temporary)
        os.replace(temporary, original)
    if files:
        _find_best(checkpoint)


def _find_best(checkpoint: Path) -> None:
    """Points the trainer's state to the best checkpoint where it is now, or forgets it."""
    path = checkpoint / TRAINER_STATE
    values = json.loads(path.read_text(encoding="utf-8"))
    name = values.get("best_model_checkpoint")
    if not name:
        return
    own = values["best_global_step"] == values["global_step"]
    best = checkpoint if own else checkpoint.parent / Path(name).name
    if best.is_dir():
        values["best_model_checkpoint"] = str(best)
    else:
        logger.warning(f"The best checkpoint so far, {name}, is not beside {checkpoint}: the choice begins anew.")
        values["best_model_checkpoint"] = values["best_metric"] = values["best_global_step"] = None
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A state as JSON; tensors are named in it and collected."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        key = str(len(tensors))
        array = isinstance(value, np.ndarray)
        tensors[key] = (torch.from_numpy(value) if array else value).clone().contiguous()
        return {"array" if array else "tensor": key}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(entry, tensors, name)] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(entry, tensors, name) for entry in value]}
    raise ValueError(
        f"{name} holds a {type(value).__name__}, which cannot be stored without a pickle. Use hub_strategy='every_save', "
        "which pushes no training state."
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_encode`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("tensor", "array"):
        return tensors[content] if kind == "tensor" else tensors[content].numpy()
    if kind == "dict":
        return {key: _decode(entry, tensors) for key, entry in content}
    entries = [_decode(entry, tensors) for entry in content]
    return entries if kind == "list" else tuple(entries)


__all__ = ["TRAINER_STATE", "restore_state", "write_state"]
