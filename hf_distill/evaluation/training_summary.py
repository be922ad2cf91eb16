"""What a run trained, on what and at what cost: the part of `results.json` that a model card cannot do without."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Origin:
    """A model that another one comes from: who taught it, or whose weights it started with.

    Args:
        name (`str`): its id on the Hub, or a name for a local model; no local path.
        revision (`str`, *optional*): commit on the Hub.
        license (`str`, *optional*): licence as the Hub writes it, `"apache-2.0"`; None where it is not known.
        sha256 (`str`, *optional*): of `model.safetensors`, which pins weights that came without a commit.
        on_hub (`bool`, *optional*, defaults to `False`): whether `name` is an id on the Hub.
        note (`str`, *optional*): what a reader must know besides.
    """

    name: str
    revision: str | None = None
    license: str | None = None
    sha256: str | None = None
    on_hub: bool = False
    note: str = ""


@dataclass
class TextSource:
    """A source of training text.

    Args:
        name (`str`): its name in the recipe; a file's name without its folder.
        rows (`int`, *optional*): rows it gave to the mix, before evaluation text was removed; None where not counted.
        weight (`float`, *optional*, defaults to 1.0): its weight in the mix.
        hub_id (`str`, *optional*): its id on the Hub, if it comes from there.
    """

    name: str
    rows: int | None = None
    weight: float = 1.0
    hub_id: str | None = None


@dataclass
class Stage:
    """What a stage of training took, summed over resumed runs.

    Args:
        name (`str`): what it is, `"end to end"` for instance.
        steps (`int`): optimiser steps.
        minutes (`float`): wall-clock minutes, evaluations included.
        texts (`int`, *optional*): texts that it learned from, repetitions counted; None where not counted.
        tokens (`int`, *optional*): the same in tokens, padding not counted.
    """

    name: str
    steps: int
    minutes: float
    texts: int | None = None
    tokens: int | None = None


@dataclass
class TrainingSummary:
    """How the student came about.

    Args:
        teacher (`Origin`): who taught.
        init_from (`Origin`, *optional*): whose weights the student started with; None for random weights.
        student (`str`): kind of student: `"deltanet"`, `"layers"`, `"static"` or `"tokenizer"`.
        settings (`dict`): what its configuration sets, `{"mixer": "ridge", "num_layers": 6}`.
        losses (`dict[str, float | dict[str, float]]`): term to weight, or to a schedule from step to weight.
        sources (`list[TextSource]`): where the text came from.
        texts (`int`): training rows after evaluation text was removed.
        overlap_removed (`int`): rows removed because they overlapped with evaluation text.
        stages (`list[Stage]`): what each stage took, in their order.
        hardware (`str`): what it ran on.
        learning_rate (`float`): peak learning rate of the last stage.
        batch (`str`): what one optimiser step averages over, in words.
        max_length (`int`, *optional*): longest training text in tokens.
        languages (`list[str]`): ISO 639 codes of the text; empty where not known.
        not_measured (`list[str]`): sentences that say what this run does not show.
    """

    teacher: Origin
    init_from: Origin | None
    student: str
    settings: dict[str, Any]
    losses: dict[str, Any]
    sources: list[TextSource]
    texts: int
    overlap_removed: int
    stages: list[Stage]
    hardware: str
    learning_rate: float
    batch: str
    max_length: int | None = None
    languages: list[str] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSummary:
        """Make a summary of its JSON object.

        Args:
            values (`dict`): what `dataclasses.asdict` gave.

        Returns:
            `TrainingSummary`: the summary.

        Raises:
            TypeError: a field is missing or unknown.
        """
        parts = {
            "teacher": Origin(**values["teacher"]),
            "init_from": Origin(**values["init_from"]) if values["init_from"] else None,
            "sources": [TextSource(**source) for source in values["sources"]],
            "stages": [Stage(**stage) for stage in values["stages"]],
        }
        return cls(**{**values, **parts})


def run_of(model: str | Path) -> Path | None:
    """Find the run that a model is the result of.

    Args:
        model (`str` or `Path`): folder of the model.

    Returns:
        `Path` or `None`: the run's folder, whose `results.json` stands beside `model`; None for any other model.
    """
    folder = Path(model)
    return folder.parent if folder.name == "model" and (folder.parent / "results.json").is_file() else None


def public_name(name: str | Path) -> str:
    """Name a model or a data set without the folders of this machine.

    Args:
        name (`str` or `Path`): an id on the Hub, or a file or folder.

    Returns:
        `str`: the id as it is; of a path that is there, or an absolute one, the last part; of the model in a run's
            folder, the name of the run.
    """
    path = run_of(name) or Path(name)
    return path.resolve().name if path.is_absolute() or path.exists() else str(name)


__all__ = ["Origin", "Stage", "TextSource", "TrainingSummary", "public_name", "run_of"]
