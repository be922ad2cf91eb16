"""Semantic textual similarity as an evaluator for the training loop and for test scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers.utils import logging

from hf_distill.evaluation.encode import encode_sorted, normalize_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.get_logger(__name__)


class STSEvaluator(SentenceEvaluator):
    """Correlation of the model's cosine similarities with human scores.

    It computes what sentence-transformers' `EmbeddingSimilarityEvaluator` computes with `cosine`, fast enough that
    it never dominates a run on a CPU: every distinct sentence once, sorted by length, in bfloat16.

    Args:
        sentences1 (`Sequence[str]`): first sentence of each of `N` pairs.
        sentences2 (`Sequence[str]`): second sentence of each pair.
        scores (`Sequence[float]`): human score of each pair, in any unit.
        name (`str`, *optional*, defaults to `"stsb"`): prefix of the metrics.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`; `"float32"` for a score that
            is published.
        split (`str`, *optional*): split that the pairs are of; the trainer refuses `"test"`.

    Raises:
        ValueError: columns of different lengths, fewer than two pairs, a blank sentence, or a score that is no number.

    Relations:
        - `FidelityEvaluator` compares with the teacher instead, at every length; STS-B holds short sentences only.

    Example:
        >>> evaluator = STSEvaluator.from_dataset(load_stsb("validation"), name="stsb")
        >>> evaluator(model)
        {'stsb_spearman': 0.867, 'stsb_pearson': 0.870}
    """

    def __init__(
        self,
        sentences1: Sequence[str],
        sentences2: Sequence[str],
        scores: Sequence[float],
        name: str = "stsb",
        dtype: str = "auto",
        split: str | None = None,
    ) -> None:
        super().__init__()
        self.sentences1, self.sentences2 = list(sentences1), list(sentences2)
        self.scores = np.asarray(scores, dtype=np.float64)
        self.name = name
        self.dtype = dtype
        self.split = split
        self.primary_metric = f"{name}_spearman" if name else "spearman"
        self._check()

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, name: str = "stsb", dtype: str = "auto", split: str | None = None
    ) -> STSEvaluator:
        """Build an evaluator from a dataset with the columns `sentence1`, `sentence2` and `score`.

        Args:
            dataset (`Dataset`): the pairs.
            name (`str`, *optional*, defaults to `"stsb"`): prefix of the metrics.
            dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`.
            split (`str`, *optional*): split that the pairs are of; what the dataset says of itself by default.

        Raises:
            ValueError: a column is missing.
        """
        missing = {"sentence1", "sentence2", "score"} - set(dataset.column_names)
        if missing:
            raise ValueError(
                f"The similarity dataset lacks the column {', '.join(sorted(missing))}; it has "
                f"{', '.join(dataset.column_names)}. Rename its columns to sentence1, sentence2 and score."
            )
        if split is None and dataset.split is not None:
            split = str(dataset.split)
        return cls(dataset["sentence1"], dataset["sentence2"], dataset["score"], name=name, dtype=dtype, split=split)

    def _check(self) -> None:
        """Refuse pairs that cannot be scored, naming the row."""
        count = len(self.scores)
        if not len(self.sentences1) == len(self.sentences2) == count:
            raise ValueError(
                f"Similarity pairs need columns of one length: sentences1 has {len(self.sentences1)} rows, "
                f"sentences2 {len(self.sentences2)}, scores {count}."
            )
        if count < 2:
            raise ValueError(f"A correlation needs at least two pairs; {count} given.")
        for row, pair in enumerate(zip(self.sentences1, self.sentences2, strict=True)):
            if not all(isinstance(text, str) and text.strip() for text in pair):
                raise ValueError(f"Pair {row} has a blank sentence: {pair}. Drop the row.")
        if not np.isfinite(self.scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.scores))[0])
            raise ValueError(f"Pair {row} has the score {self.scores[row]}, which is no number. Drop the row.")

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Score a model.

        Args:
            model (`SentenceTransformer`): the model.
            output_path (`str`, *optional*): unused; the trainer logs the metrics.
            epoch (`int`, *optional*): for the model card.
            steps (`int`, *optional*): for the model card.

        Returns:
            `dict[str, float]`: `<name>_spearman` and `<name>_pearson`, in -1..1; 0 for a model that gives every pair
            the same similarity, where a correlation is undefined.
        """
        metrics = self.prefix_name_to_metrics(self.correlations(self.similarities(model)), self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def metric_names(self, width: int) -> list[str]:
        """Name the metrics of a model, whatever the width of its embeddings."""
        return [f"{self.name}_{metric}" if self.name else metric for metric in ("spearman", "pearson")]

    def similarities(self, model: SentenceTransformer) -> np.ndarray:
        """Compute the model's cosine similarity of each pair.

        Args:
            model (`SentenceTransformer`): the model.

        Returns:
            `np.ndarray`: float64 `(N,)`, in the order of the pairs.
        """
        count = len(self.scores)
        vectors = normalize_rows(encode_sorted(model, self.sentences1 + self.sentences2, dtype=self.dtype))
        return np.einsum("nd,nd->n", vectors[:count], vectors[count:], dtype=np.float64)

    def correlations(self, similarities: np.ndarray) -> dict[str, float]:
        """Correlate similarities with the human scores.

        Args:
            similarities (`np.ndarray`): `(N,)`, from `similarities`.

        Returns:
            `dict[str, float]`: `spearman` and `pearson`, without the evaluator's name.
        """
        if np.ptp(similarities) < 1e-9 or np.ptp(self.scores) == 0:
            logger.warning("All similarities or all scores are equal: the correlation is undefined and reported as 0.")
            return {"spearman": 0.0, "pearson": 0.0}
        return {
            "spearman": float(spearmanr(self.scores, similarities).statistic),
            "pearson": float(pearsonr(self.scores, similarities).statistic),
        }

    def digest(self) -> str:
        """Hash the pairs and their scores, for the key of a score that is kept."""
        content = json.dumps([self.sentences1, self.sentences2, self.scores.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def description(self) -> str:
        """Name of the evaluator in a model card."""
        return "Semantic Similarity"
