"""Turkish to English retrieval: which English gloss means what a Turkish gloss means, among those of all other pairs?

A student that learned its teacher's vectors of Turkish text need not read English at all, so its Turkish queries are
compared with English candidates that the *teacher* embedded. Where its tokenizer can read English, it is asked to embed
both sides, too. The pairs are the aligned glosses of the Turkish and the English WordNet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers.utils import logging

from hf_distill.evaluation.encode import encode_sorted, normalize_rows
from hf_distill.evaluation.tokenizer_stats import unknown_rate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)

CANDIDATES = {"validation": 500, "test": 1000}
"""Pairs of a split that stand against each other; fixed, since recall depends on their number."""
_UNREADABLE = 0.01  # a tokenizer that does not know more of English than this does not read it


class GlossPair(NamedTuple):
    """A gloss in two languages.

    Args:
        turkish (`str`): the query.
        english (`str`): what it is to find.
    """

    turkish: str
    english: str


def gloss_pairs(split: str) -> list[GlossPair]:
    """Choose held-out pairs by a hash that depends on nothing but the Turkish gloss.

    Args:
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `list[GlossPair]`: 500 or 1,000 pairs; every gloss stands in one of them only, so every query has one answer.

    Raises:
        ValueError: there are fewer pairs.
        FileNotFoundError: the package with the glosses is not installed; says what to install.
    """
    from hf_distill.data.turkish import aligned_glosses

    dataset, count = aligned_glosses(split), CANDIDATES[split]
    found = (GlossPair(*pair) for pair in zip(dataset["tr"], dataset["en"], strict=True))
    pairs = [pair for pair in found if pair.turkish != pair.english]  # one gloss was never translated
    if len(pairs) < count:
        raise ValueError(
            f"There are {len(pairs)} held-out pairs of glosses for {split}, and retrieval needs {count}. Install the "
            "whole WordNet (see hf_distill.data.turkish)."
        )
    pairs.sort(key=lambda pair: hashlib.blake2b(pair.turkish.encode(), person=b"hfd-bitext").digest())
    return pairs[:count]


class BitextEvaluator(SentenceEvaluator):
    """Retrieval across two languages, where every query has one answer.

    Args:
        queries (`Sequence[str]`): `N` texts in the student's language.
        candidates (`Sequence[str]`): their translations, in the same order.
        teacher (`SentenceTransformer` or `np.ndarray`, *optional*): who embeds the candidates, or their embeddings
            `(N, D)`. The teacher is run once, here.
        name (`str`, *optional*, defaults to `"bitext"`): prefix of the metrics.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`.
        split (`str`, *optional*): split that the pairs are of; the trainer refuses `"test"`.

    Raises:
        ValueError: columns of different lengths, fewer than two pairs, or embeddings of another number or with NaN.

    Relations:
        - The metrics are `<name>_recall_at_1`, `_recall_at_10`, `_mrr_at_10` and `_ndcg_at_10` against the teacher's
          candidates, and `<name>_own_...` against the student's own where its tokenizer knows 99 % of the tokens. The
          first are left out for a student of another width than the teacher.

    Example:
        >>> evaluator = BitextEvaluator(["bir nehir"], ["a river"], teacher, split="validation")
        >>> evaluator(student)["bitext_recall_at_1"]
        0.35
    """

    def __init__(
        self,
        queries: Sequence[str],
        candidates: Sequence[str],
        teacher: SentenceTransformer | np.ndarray | None = None,
        name: str = "bitext",
        dtype: str = "auto",
        split: str | None = None,
    ) -> None:
        super().__init__()
        self.queries, self.candidates = list(queries), list(candidates)
        self.name, self.dtype, self.split = name, dtype, split
        if len(self.queries) != len(self.candidates):
            raise ValueError(f"{len(self.queries)} queries have {len(self.candidates)} answers: give one each.")
        if len(self.queries) < 2:
            raise ValueError(f"Retrieval needs at least two pairs; {len(self.queries)} given.")
        if teacher is not None and not isinstance(teacher, np.ndarray):
            teacher = encode_sorted(teacher, self.candidates, dtype=dtype)
        if teacher is not None and (teacher.ndim != 2 or len(teacher) != len(self.candidates)):
            raise ValueError(
                f"The teacher's embeddings have the shape {teacher.shape} for {len(self.candidates)} candidates."
            )
        if teacher is not None and not np.isfinite(teacher).all():
            row = int(np.argmin(np.isfinite(teacher).all(axis=1)))
            raise ValueError(f"The teacher's embedding of candidate {row} holds NaN or infinity.")
        self.teacher = None if teacher is None else normalize_rows(teacher)
        self.primary_metric = f"{name}_recall_at_1" if teacher is not None else f"{name}_own_recall_at_1"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Score a model.

        Args:
            model (`SentenceTransformer`): the student.
            output_path (`str`, *optional*): unused; the trainer logs the metrics.
            epoch (`int`, *optional*): for the model card.
            steps (`int`, *optional*): for the model card.

        Returns:
            `dict[str, float]`: the metrics above, in 0..1.

        Raises:
            ValueError: the student can be compared neither with the teacher nor with itself.
        """
        queries = normalize_rows(encode_sorted(model, self.queries, dtype=self.dtype))
        metrics: dict[str, float] = {}
        if self.teacher is not None and self.teacher.shape[1] == queries.shape[1]:
            metrics |= retrieval_scores(queries, self.teacher)
        elif self.teacher is not None:
            logger.warning(
                "The student's vectors are %d wide and the teacher's %d: its queries are not compared with the teacher's "
                "candidates.",
                queries.shape[1],
                self.teacher.shape[1],
            )
        if unknown_rate(model.tokenizer, self.candidates) <= _UNREADABLE:
            own = normalize_rows(encode_sorted(model, self.candidates, dtype=self.dtype))
            metrics |= {f"own_{metric}": value for metric, value in retrieval_scores(queries, own).items()}
        if not metrics:
            raise ValueError(
                "The student cannot read the candidates, and there are no embeddings of a teacher of its width "
                f"({queries.shape[1]}). Give its teacher, or leave the task bitext out."
            )
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def digest(self) -> str:
        """Hash pairs and candidate vectors, for the key of a score that is kept."""
        content = json.dumps([self.queries, self.candidates]).encode()
        vectors = b"" if self.teacher is None else self.teacher.tobytes()
        return hashlib.sha256(content + vectors).hexdigest()[:16]

    @property
    def description(self) -> str:
        """Name of the evaluator in a model card."""
        return "Bitext Retrieval"


def retrieval_scores(queries: np.ndarray, candidates: np.ndarray) -> dict[str, float]:
    """Rank all candidates for each query, whose answer is the candidate of its own row.

    Args:
        queries (`np.ndarray`): rows of length one, `(N, D)`.
        candidates (`np.ndarray`): the same, `(N, D)`.

    Returns:
        `dict[str, float]`: `recall_at_1`, `recall_at_10`, `mrr_at_10` and `ndcg_at_10`, which with one answer a query
        is `1 / log2(rank + 1)`. A candidate as near as the answer counts as nearer: a model that gives all texts one
        vector finds nothing.
    """
    scores = queries @ candidates.T
    ranks = (scores >= np.diag(scores)[:, None]).sum(axis=1)  # from 1
    near = ranks <= 10
    return {
        "recall_at_1": float((ranks == 1).mean()),
        "recall_at_10": float(near.mean()),
        "mrr_at_10": float(np.where(near, 1 / ranks, 0.0).mean()),
        "ndcg_at_10": float(np.where(near, 1 / np.log2(ranks + 1), 0.0).mean()),
    }


__all__ = ["CANDIDATES", "BitextEvaluator", "GlossPair", "gloss_pairs", "retrieval_scores"]
