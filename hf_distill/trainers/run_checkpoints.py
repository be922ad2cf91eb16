"""The checkpoint that a run goes on from: the newest one that was written to its end, and of the same student.

The `Trainer` writes a checkpoint in place, `trainer_state.json` last: a kill, or a full disk, leaves a folder that looks
like a checkpoint and is none.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig
from transformers.utils import logging

from hf_distill.evaluation.checkpoints import checkpoint_folders
from hf_distill.trainers.objective_mixin import STATE_FILE
from hf_distill.trainers.state_files import TRAINER_STATE

logger = logging.get_logger(__name__)

# What a configuration says besides the student's architecture; transformers aligns the ids with the tokenizer on the way.
_VOLATILE = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


def last_complete(folder: str | Path) -> str | None:
    """The newest checkpoint of a run that training can go on from.

    Args:
        folder: Folder of the run, with sub-folders `checkpoint-<step>`; it need not be there.

    Returns:
        The checkpoint, or `None`. One whose saving was interrupted is left out with a warning, and stays where it is.
    """
    for checkpoint in reversed(checkpoint_folders(folder)):
        damage = damage_of(checkpoint.path)
        if damage is None:
            return str(checkpoint.path)
        logger.warning(f"{checkpoint.path} is incomplete ({damage}) and left out: its saving was interrupted.")
    return None


def damage_of(checkpoint: str | Path) -> str | None:
    """What keeps training from going on from a checkpoint; reads only where files begin and end.

    Args:
        checkpoint: Its folder.

    Returns:
        The first file that is missing or cut off, in words; `None` for a complete checkpoint.
    """
    checkpoint = Path(checkpoint)
    for name in (TRAINER_STATE, STATE_FILE):
        try:
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"{name} is missing"
        except ValueError:
            return f"{name} is cut off"
    weights = sorted(checkpoint.rglob("*.safetensors"))
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return f"{file.name} is cut off"
    states = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    broken = [file.name for file in sorted(states) if not zipfile.is_zipfile(file)]
    return f"{broken[0]} is cut off" if broken else None if weights else "its weights are missing"


def require_same_student(checkpoint: str | Path, config: PretrainedConfig) -> None:
    """Refuses a checkpoint of a student that differs in more than its weights, also where all shapes are equal.

    Args:
        checkpoint: Its folder; one without the configuration of an encoder passes.
        config: That of the encoder that is to take the weights.

    Raises:
        ValueError: If a field differs; names the first one.
    """
    file = _encoder_folder(Path(checkpoint)) / "config.json"
    if not file.is_file():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored.get("model_type") == config.model_type:  # fields that it was written without have their defaults
        stored = _fields(type(config).from_json_file(file))
    now = _fields(config)
    for name in sorted(now, key=lambda name: (name != "model_type", name)):
        if stored.get(name) != now[name]:
            raise ValueError(
                f"{checkpoint} holds a student of another configuration than this run's: {name} is "
                f"{stored.get(name)!r} there and {now[name]!r} here. Resume with the config it was written with, or choose "
                "another output_dir."
            )


def _encoder_folder(checkpoint: Path) -> Path:
    """Where a checkpoint has its encoder: in the folder itself, or where `modules.json` says."""
    modules = checkpoint / "modules.json"
    return checkpoint / json.loads(modules.read_text(encoding="utf-8"))[0]["path"] if modules.is_file() else checkpoint


def _fields(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as JSON values, without what changes from one saving to the next."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in _VOLATILE}


__all__ = ["damage_of", "last_complete", "require_same_student"]
