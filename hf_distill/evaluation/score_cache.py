"""Scores that are computed once: kept under the hash of the model and of the data they were computed from.

The folder lies next to the runs (`shared_scores`), so that ten seeds score their teacher once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.utils import logging

from hf_distill.hardware import package_versions
from hf_distill.teachers.files import replace_file
from hf_distill.teachers.fingerprint import sha256_of_tokenizer, sha256_of_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)

SCORES_FOLDER = "scores"
_DECIDING = ("hf_distill", "torch", "transformers", "sentence-transformers", "tokenizers", "mteb")
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "auto_map", "use_cache")


def model_fingerprint(model: SentenceTransformer) -> str:
    """Hash everything that decides a model's embeddings: weights, tokenizer, configuration, modules and prompts.

    Args:
        model (`SentenceTransformer`): the model.

    Returns:
        `str`: hex SHA-256; equal for a model and its copy loaded from disk, wherever that is.
    """
    configs = []
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            config = module.config.to_dict()
            configs.append({key: value for key, value in config.items() if key not in _VOLATILE})
    facts = {
        "weights": sha256_of_weights(model),
        "tokenizer": sha256_of_tokenizer(model.tokenizer),
        "configs": configs,
        "modules": [type(module).__name__ for module in model],
        "lengths": [str(model.max_seq_length), model.truncate_dim],
        "prompts": [model.prompts, model.default_prompt_name],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Name the versions that a score may depend on; a part of every key."""
    installed = package_versions()
    return {name: installed[name] for name in _DECIDING}


class ScoreCache:
    """A folder of scores, one small JSON file each, named by what was scored.

    Args:
        folder (`str` or `Path`): the folder; it is made on the first write.

    Example:
        >>> cache = shared_scores("runs/x")
        >>> cache.get_or_compute({"model": model_fingerprint(model), "task": "retrieval"}, compute)
        {'retrieval_ndcg_at_10': 0.61}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path_of(self, key: dict[str, Any]) -> Path:
        """Name the file of a key: the first word for people, the hash for the machine."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{key.get('task', 'score')}-{key.get('split', 'all')}-{digest}.json"

    def get_or_compute(self, key: dict[str, Any], compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return the scores of a key, from the folder or computed and written there.

        Args:
            key (`dict`): what the scores depend on, JSON values; a file whose key differs is not used.
            compute (`Callable`): makes the scores where they are missing.

        Returns:
            `dict[str, float]`: metric to score.
        """
        path = self.path_of(key)
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                logger.warning("The cached score %s is damaged and computed again.", path)
                stored = {}
            if stored.get("key") == key:
                return stored["scores"]
        scores = compute()
        write_atomically(path, json.dumps({"key": key, "scores": scores}, indent=2) + "\n")
        return scores


def shared_scores(run: str | Path) -> ScoreCache:
    """Find the scores that the runs of a folder share: what one of them has scored, the next one reads.

    Args:
        run (`str` or `Path`): the folder of a run, `runs/seed1` for instance.

    Returns:
        `ScoreCache`: beside it, `runs/scores`.
    """
    return ScoreCache(Path(run).resolve().parent / SCORES_FOLDER)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old one or the new one, never half.

    Args:
        path (`Path`): the file; its folder is made.
        text (`str`): its content, written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
