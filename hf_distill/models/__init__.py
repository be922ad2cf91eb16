"""Students as Hugging Face models, and the tokenizer that some of them need: one flat, self-contained folder each, loaded on first use (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "HfdDeltaNetConfig": "hf_distill.models.deltanet",
    "HfdDeltaNetModel": "hf_distill.models.deltanet",
    "HfdDeltaNetOutput": "hf_distill.models.deltanet",
    "HfdMftTokenizer": "hf_distill.models.mft",
}

__all__ = ["HfdDeltaNetConfig", "HfdDeltaNetModel", "HfdDeltaNetOutput", "HfdMftTokenizer"]


def __getattr__(name: str) -> Any:
    """Imports the model folder that holds `name`, which also registers it with the Auto classes."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
