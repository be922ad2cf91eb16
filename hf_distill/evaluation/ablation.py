"""The scores of an ablation: one JSON file a variant and seed, and the table over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from hf_distill.evaluation.score_cache import write_atomically

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

COLUMNS = {
    "stsb_spearman": "STS-B",
    "fidelity_cosine_1_32": "cos 1–32",
    "fidelity_cosine_33_128": "33–128",
    "fidelity_cosine_129_256": "129–256",
}
STEPS = {"align_steps": "steps 1", "steps": "steps 2"}
_RECALL = "long_recall_"
_PER_HEAD = ("fast_decay_init", "slow_decay_init")


def check_variants(student_config: dict[str, Any] | None, variants: dict[str, dict[str, Any]]) -> None:
    """Refuse a variant that is no DeltaNet encoder, before the first one is trained for minutes.

    The teacher's sizes are not known here; values for each head may be of any number of heads.

    Args:
        student_config (`dict[str, Any]`, *optional*): fields of `HfdDeltaNetConfig` that all variants share.
        variants (`dict[str, dict[str, Any]]`): name to the fields that differ.

    Raises:
        ValueError: a field is unknown, out of range or contradicts another one, or the name is taken; the message names
            the variant.
    """
    from huggingface_hub.errors import StrictDataclassError

    from hf_distill.models.deltanet import HfdDeltaNetConfig

    files = {result_file(Path(), "teacher", 0): "teacher"}
    for name, differing in variants.items():
        other = files.setdefault(result_file(Path(), name, 0), name)
        if other != name or name == "teacher":
            raise ValueError(f"The variant {name!r} would have the file of {other!r}; choose another name.")
        if not isinstance(differing, dict):
            raise ValueError(f"The variant {name!r} is {differing!r}; give its fields, {{}} for the base itself.")
        fields = {**(student_config or {}), **differing}
        heads = [len(fields[key]) for key in _PER_HEAD if isinstance(fields.get(key), list)]
        sizes = {"num_attention_heads": heads[0], "hidden_size": 32 * heads[0]} if heads and heads[0] else {}
        try:
            HfdDeltaNetConfig(**{**sizes, **fields})
        except (StrictDataclassError, ValueError) as error:
            raise ValueError(f"The variant {name!r} cannot be built: {error}") from error


def result_file(folder: Path, name: str, seed: int) -> Path:
    """Name the file that holds the scores of a variant and seed.

    Args:
        folder (`Path`): of the ablation.
        name (`str`): of the variant; anything but letters and digits becomes an underscore.
        seed (`int`): of the run.

    Returns:
        `Path`: the file.
    """
    safe = "".join(character if character.isalnum() else "_" for character in name)
    return folder / f"{safe}-seed{seed}.json"


def is_done(folder: Path, name: str, seed: int, request: dict[str, Any]) -> bool:
    """Tell whether a variant has been trained and scored.

    Args:
        folder (`Path`): of the ablation.
        name (`str`): of the variant.
        seed (`int`): of the run.
        request (`dict[str, Any]`): what the variant is now: its fields, and what they go with.

    Returns:
        `bool`: whether its file is there.

    Raises:
        ValueError: the file is of a variant of the same name that was something else.
    """
    file = result_file(folder, name, seed)
    if not file.is_file():
        return False
    found = json.loads(file.read_text(encoding="utf-8")).get("request", {})
    changed = [key for key in request if request[key] != found.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{file} is of {name!r} with {key}={found.get(key)!r}, but now {key}={request[key]!r}. Delete the file to "
            "train it again, or choose another --output_dir."
        )
    return True


def write_scores(
    folder: Path,
    name: str,
    seed: int,
    model: SentenceTransformer,
    evaluators: Sequence[SentenceEvaluator],
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a variant and write the file.

    Args:
        folder (`Path`): of the ablation.
        name (`str`): of the variant.
        seed (`int`): of the run.
        model (`SentenceTransformer`): the trained student.
        evaluators (`Sequence[SentenceEvaluator]`): what to score, on validation.
        facts (`dict[str, Any]`, *optional*): what else to note, such as the number of steps and the request.

    Returns:
        `dict[str, Any]`: what the file holds.
    """
    scores = dict(facts or {})
    for evaluator in evaluators:
        scores |= {key: float(value) for key, value in evaluator(model).items()}
    write_atomically(result_file(folder, name, seed), json.dumps(scores, indent=2) + "\n")
    return scores


def score_teacher(
    folder: Path, model: SentenceTransformer, evaluators: Sequence[SentenceEvaluator], request: dict[str, Any]
) -> None:
    """Score the teacher, unless its file has just these scores.

    It is not trained, so what was asked otherwise is simply scored again, where a variant is refused.

    Args:
        folder (`Path`): of the ablation.
        model (`SentenceTransformer`): the teacher.
        evaluators (`Sequence[SentenceEvaluator]`): what to score, on validation.
        request (`dict[str, Any]`): which teacher it is, and what it is asked.
    """
    file = result_file(folder, "teacher", 0)
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")).get("request") != request:
        write_scores(folder, "teacher", 0, model, evaluators, {"request": request})


def ablation_table(folder: Path, names: Sequence[str]) -> str:
    """Make the Markdown table: one row a variant, the mean over its seeds, the spread where there are several.

    Args:
        folder (`Path`): of the ablation.
        names (`Sequence[str]`): the variants, in order; those without a file are left out.

    Returns:
        `str`: the table; `±` is the standard deviation over seeds.
    """
    found = {}
    for name in names:
        pattern = result_file(folder, name, 0).name.replace("-seed0.", "-seed*.")
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(pattern))]
        if runs:
            found[name] = runs
    columns = COLUMNS | _recall_columns(run for runs in found.values() for run in runs) | STEPS
    lines = [f"| variant | seeds | {' | '.join(columns.values())} |", "|:--|" + "--:|" * (len(columns) + 1)]
    for name, runs in found.items():
        cells = [_cell([run[key] for run in runs if key in run], key) for key in columns]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _recall_columns(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """A column for every length of documents that any run was asked about."""
    lengths = sorted({int(key.rpartition("_")[2]) for run in runs for key in run if key.startswith(_RECALL)})
    return {f"{_RECALL}{length}": f"recall@1, {length}" if i == 0 else str(length) for i, length in enumerate(lengths)}


def _cell(values: Sequence[float], key: str) -> str:
    """A mean and its spread; empty where nothing was measured."""
    if not values:
        return ""
    if key.endswith("steps"):
        return f"{mean(values):,.0f}"
    digits = 4 if key == "stsb_spearman" else 3
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


__all__ = ["COLUMNS", "ablation_table", "check_variants", "is_done", "result_file", "score_teacher", "write_scores"]
