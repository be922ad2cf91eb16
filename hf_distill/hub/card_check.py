"""Checks a model card offline, by the rules by which the Hub checks the cards that are pushed to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from hf_distill.hub.lineage import PERMISSIVE, RESTRICTED, UNDECIDED

CARD_FILE = "README.md"
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_REQUIRED = (("task", "type"), ("dataset", "type"), ("dataset", "name"))


def check_card(path: str | Path) -> ModelCardData:
    """Check a card's metadata offline, by the rules of the Hub.

    Args:
        path (`str` or `Path`): the card, or the folder it is in.

    Returns:
        `ModelCardData`: its metadata.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: metadata that is missing or wrong; all faults are named.
    """
    path = Path(path)
    path = path / CARD_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no model card at {path}. Write it: hf-distill card RUN")
    return check_card_text(path.read_text(encoding="utf-8"), path.parent, str(path))


def check_card_text(text: str, folder: Path | None = None, name: str = CARD_FILE) -> ModelCardData:
    """Check the text of a card, see `check_card`.

    Args:
        text (`str`): the card.
        folder (`Path`, *optional*): where the pictures that it shows must be; not checked if not given.
        name (`str`, *optional*): what to call it in an error.

    Returns:
        `ModelCardData`: its metadata.

    Raises:
        ValueError: metadata that is missing or wrong; all faults are named.
    """
    if not text.startswith("---\n"):
        raise ValueError(f"{name} has no metadata: it must begin with a block of YAML between two lines of ---.")
    try:
        raw = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    except yaml.YAMLError as error:
        raise ValueError(f"The metadata of {name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"The metadata of {name} cannot be read: fields and values are expected.")
    faults = _faults(raw)
    for link in _IMAGE.findall(text):
        if folder is not None and "://" not in link and not (folder / link).is_file():
            faults.append(f"the picture {link} is not beside the card")
    if faults:
        raise ValueError(f"The Hub would not take {name}: {'; '.join(faults)}.")
    data = ModelCard(text).data
    if data.to_dict() != raw:
        raise ValueError(f"The metadata of {name} does not survive a round trip through huggingface_hub.")
    return data


def _faults(raw: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the metadata."""
    faults = [f"{field} is missing" for field in ("library_name", "license", "tags") if not raw.get(field)]
    known = PERMISSIVE | RESTRICTED | UNDECIDED
    if raw.get("license") and raw["license"] not in known:
        faults.append(f"license {raw['license']!r} is none of the Hub's; write other, and its name as license_name")
    if raw.get("license") == "other" and not raw.get("license_name"):
        faults.append("license other needs license_name")
    languages = raw.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(code)):
            faults.append(f"language {code!r} is no ISO 639 code")
    for field in ("base_model", "datasets"):
        ids = raw.get(field) or []
        for id_ in [ids] if isinstance(ids, str) else ids:
            try:
                validate_repo_id(id_)
            except ValueError as error:
                faults.append(f"{field}: {error}")
    return faults + [fault for entry in raw.get("model-index") or [] for fault in _index_faults(entry)]


def _index_faults(entry: Mapping[str, Any]) -> list[str]:
    """List what is wrong with an entry of the model-index."""
    faults = [] if entry.get("name") else ["model-index: name is missing"]
    for result in entry.get("results") or []:
        for part, field in _REQUIRED:
            if not (result.get(part) or {}).get(field):
                faults.append(f"model-index: {part}.{field} is missing")
        for metric in result.get("metrics") or [{}]:
            value = metric.get("value")
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not metric.get("type") or not is_number:
                faults.append(f"model-index: a metric needs type and a finite value, not {metric}")
    return faults


__all__ = ["CARD_FILE", "check_card", "check_card_text"]
