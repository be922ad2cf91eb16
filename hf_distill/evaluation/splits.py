"""The guard of the training loop: evaluators that were built from a test split may not choose a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hf_distill.data.stsb import load_stsb, package_folder
from hf_distill.evaluation.bitext import BitextEvaluator
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.sts import STSEvaluator

if TYPE_CHECKING:
    from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

_SAMPLE = 20
"""Pairs that are looked up: a split that shares more than half of them is that split."""


def refuse_test_split(evaluator: SentenceEvaluator | Sequence[SentenceEvaluator] | None) -> None:
    """Refuse evaluators for the training loop that read a test split.

    An evaluator reads a test split if it says so (`split`, as those of `STSEvaluator`, `make_fidelity` and
    `turkish_evaluators` do), if the word `test` is in its name, or if its pairs are those of STS-B's test file, whatever it is called.

    Args:
        evaluator (`SentenceEvaluator`, *optional*): an evaluator, several of them, or a `SequentialEvaluator`.

    Raises:
        ValueError: one of them reads a test split; names it.

    Example:
        >>> refuse_test_split(STSEvaluator.from_dataset(load_stsb("test")))
        ValueError: The evaluator 'stsb' reads the test split ...
    """
    for part in _parts(evaluator):
        reason = _reason(part)
        if reason:
            raise ValueError(
                f"The evaluator {getattr(part, 'name', '') or type(part).__name__!r} reads the test split ({reason}). What "
                "runs in the training loop chooses the checkpoint, so it must not see the test split: build it from "
                "validation, and read the test split once afterwards (recipes/evaluate_student.py --test)."
            )


def _parts(evaluator: Any) -> Iterator[Any]:
    """Unfold lists and sequential evaluators."""
    if evaluator is None:
        return
    nested = evaluator if isinstance(evaluator, (list, tuple)) else getattr(evaluator, "evaluators", None)
    if nested is None:
        yield evaluator
    else:
        for part in nested:
            yield from _parts(part)


def _reason(evaluator: Any) -> str:
    """Say why an evaluator is one of a test split; empty if it is none."""
    if isinstance(evaluator, (STSEvaluator, FidelityEvaluator, BitextEvaluator)) and evaluator.split == "test":
        return "it was built from it"
    if "test" in re.split(r"[^a-z]+", str(getattr(evaluator, "name", "")).lower()):
        return "its name says so"
    first, second = (getattr(evaluator, name, None) for name in ("sentences1", "sentences2"))
    if not first or not second or package_folder() is None:  # asking the Hub for STS-B here would be a surprise
        return ""
    step = max(1, len(first) // _SAMPLE)
    pairs = [frozenset(pair) for pair in list(zip(first, second, strict=False))[::step]]
    known = sum(pair in _stsb_test_pairs() for pair in pairs)
    return "its pairs are STS-B's test pairs" if 2 * known > len(pairs) else ""


@lru_cache(maxsize=1)
def _stsb_test_pairs() -> frozenset[frozenset[str]]:
    """List the pairs of STS-B's test file that are no validation or training pairs too."""
    splits = {
        name: {frozenset(pair) for pair in zip(data["sentence1"], data["sentence2"], strict=True)}
        for name, data in ((name, load_stsb(name)) for name in ("train", "validation", "test"))
    }
    return frozenset(splits["test"] - splits["validation"] - splits["train"])
