"""How close a student is to its teacher on held-out text, per length bucket: what STS-B's short sentences hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from hf_distill.data.length import BUCKETS
from hf_distill.evaluation.encode import count_tokens, encode_sorted, normalize_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PAIR_ROWS = 512  # texts a bucket whose pairs are ranked: 130,816 pairs


def pair_rho(student: np.ndarray, teacher: np.ndarray) -> float:
    """Rank correlation between two models' similarities over all pairs of texts.

    It compares models of different width, where a cosine between them does not exist.

    Args:
        student (`np.ndarray`): `(N, D)`; the first 512 rows are used.
        teacher (`np.ndarray`): `(N, E)`, the same texts.

    Returns:
        `float`: Spearman's rho of the `N (N - 1) / 2` cosines, in -1..1; 0 where one side is constant.
    """
    above = np.triu_indices(min(len(student), _PAIR_ROWS), k=1)
    sides = [normalize_rows(vectors[:_PAIR_ROWS]) for vectors in (student, teacher)]
    pairs = [(side @ side.T)[above] for side in sides]
    if min(np.ptp(side) for side in pairs) == 0:
        return 0.0
    return float(spearmanr(*pairs).statistic)


class FidelityEvaluator(SentenceEvaluator):
    """Mean cosine between student and teacher on held-out texts, and the agreement of their similarities.

    Args:
        texts (`Sequence[str]`): `N` texts that are not trained on; `corpus.heldout_texts` has some of every length.
        teacher (`np.ndarray` or `SentenceTransformer`): the teacher's embeddings `(N, D)`, or the teacher, which is
            then run once, here.
        tokenizer (`PreTrainedTokenizerBase` or `Tokenizer`, *optional*): what token counts are counted in; the
            teacher's own if not given. Needed with an array.
        name (`str`, *optional*, defaults to `"fidelity"`): prefix of the metrics.
        max_length (`int`, *optional*, defaults to 256): longer texts are counted as so many tokens.
        dtype (`str`, *optional*, defaults to `"auto"`): precision of both models, see `encode_sorted`.
        split (`str`, *optional*): split that the texts are of; the trainer refuses `"test"`.

    Raises:
        ValueError: no texts, another number of teacher rows than texts, NaN in the teacher, or no tokenizer.

    Relations:
        - The metrics are `<name>_cosine` and `<name>_pair_rho` over all texts, then one of each for every length bucket
          that has texts: `<name>_cosine_1_32`, `_33_128`, `_129_256`. Where the student has another width than the
          teacher there is no cosine, and `<name>_pair_rho` is the primary metric.

    Example:
        >>> evaluator = FidelityEvaluator(heldout_texts(teacher.tokenizer), teacher)
        >>> evaluator(student)["fidelity_cosine_129_256"]
        0.934
    """

    def __init__(
        self,
        texts: Sequence[str],
        teacher: np.ndarray | SentenceTransformer,
        tokenizer: PreTrainedTokenizerBase | Tokenizer | None = None,
        name: str = "fidelity",
        max_length: int = 256,
        dtype: str = "auto",
        split: str | None = None,
    ) -> None:
        super().__init__()
        self.texts = list(texts)
        self.name = name
        self.dtype = dtype
        self.split = split
        if not self.texts:
            raise ValueError("Fidelity needs held-out texts, and there are none. Give some of every length.")
        if not isinstance(teacher, np.ndarray):
            tokenizer = tokenizer if tokenizer is not None else teacher.tokenizer
            teacher = encode_sorted(teacher, self.texts, dtype=dtype)
        if tokenizer is None:
            raise ValueError(
                "Length buckets are counted in tokens: give the teacher's `tokenizer` with its embeddings."
            )
        if teacher.ndim != 2 or len(teacher) != len(self.texts):
            raise ValueError(f"The teacher's embeddings have the shape {teacher.shape} for {len(self.texts)} texts.")
        finite = np.isfinite(teacher).all(axis=1)
        if not finite.all():
            raise ValueError(f"The teacher's embedding of text {int(np.argmin(finite))} holds NaN or infinity.")
        self.teacher = normalize_rows(teacher)
        lengths = count_tokens(tokenizer, self.texts, max_length)
        members = {f"{low}_{high}": np.flatnonzero((lengths >= low) & (lengths <= high)) for low, high in BUCKETS}
        self.buckets = {bucket: rows for bucket, rows in members.items() if len(rows)}
        self.primary_metric = f"{name}_cosine"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Compare a student with the teacher.

        Args:
            model (`SentenceTransformer`): the student.
            output_path (`str`, *optional*): unused; the trainer logs the metrics.
            epoch (`int`, *optional*): for the model card.
            steps (`int`, *optional*): for the model card.

        Returns:
            `dict[str, float]`: the metrics above.
        """
        student = normalize_rows(encode_sorted(model, self.texts, dtype=self.dtype))
        same_width = student.shape[1] == self.teacher.shape[1]
        cosines = np.einsum("nd,nd->n", student, self.teacher, dtype=np.float64) if same_width else None
        metrics: dict[str, float] = {}
        for suffix, rows in {
            "": np.arange(len(student)),
            **{f"_{key}": rows for key, rows in self.buckets.items()},
        }.items():
            if cosines is not None:
                metrics[f"cosine{suffix}"] = cosines[rows].mean()
            if len(rows) > 2:  # one pair has no ranks
                metrics[f"pair_rho{suffix}"] = pair_rho(student[rows], self.teacher[rows])
        self.primary_metric = f"{self.name}_cosine" if same_width else f"{self.name}_pair_rho"
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def metric_names(self, width: int) -> list[str]:
        """Name the metrics of a student; there is a cosine only where its `width` is the teacher's."""
        parts = {"": len(self.texts), **{f"_{key}": len(rows) for key, rows in self.buckets.items()}}
        cosines = [f"cosine{suffix}" for suffix in parts] if width == self.teacher.shape[1] else []
        names = cosines + [f"pair_rho{suffix}" for suffix, rows in parts.items() if rows > 2]
        return [f"{self.name}_{metric}" if self.name else metric for metric in names]

    @property
    def description(self) -> str:
        """Name of the evaluator in a model card."""
        return "Fidelity to the Teacher"
