"""Long-document recall: is a document still found by a passage that stands somewhere inside it?

A document is a run of unrelated passages of the standard library's documentation, as many as fit; the query is the
summary of one of them, and every document is a candidate. Averages over STS-B or short passages hide what a fixed-size
memory forgets; this does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from hf_distill.data.length import estimate_tokens
from hf_distill.evaluation.corpus import hashed_passages
from hf_distill.evaluation.encode import encode_sorted, normalize_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

LENGTHS = (128, 256, 512)
_UNLIMITED = 1_000_000


class LongDocuments(NamedTuple):
    """Documents, and for each a query that asks for one of its passages.

    Args:
        documents (`list[str]`): `N` documents of about the same length.
        queries (`list[str]`): the summary of one passage of each; it does not stand in the document.
    """

    documents: list[str]
    queries: list[str]


def long_documents(split: str, num_tokens: int, count: int = 120) -> LongDocuments:
    """Join passages to documents of about `num_tokens` tokens; the asked one stands at a different depth in each.

    Args:
        split (`str`): `"validation"` or `"test"`.
        num_tokens (`int`): estimated tokens of a document at most (the first passage may alone exceed it).
        count (`int`, *optional*, defaults to 120): documents.

    Returns:
        `LongDocuments`: the same ones every time.

    Raises:
        ValueError: an unknown split, or more documents wanted than the passages give.
    """
    documents: list[str] = []
    queries: list[str] = []
    bodies: list[str] = []
    summaries: list[str] = []
    length = 0
    for passage in hashed_passages(split):
        cost = estimate_tokens(passage.body)
        if bodies and length + cost > num_tokens:
            documents.append(" ".join(bodies))
            queries.append(summaries[len(documents) % len(summaries)])
            bodies, summaries, length = [], [], 0
        bodies.append(passage.body)
        summaries.append(passage.summary)
        length += cost
        if len(documents) == count:
            return LongDocuments(documents, queries)
    raise ValueError(
        f"The {split} passages give {len(documents)} documents of {num_tokens} tokens, not {count}. Lower count."
    )


class LongDocumentEvaluator(SentenceEvaluator):
    """Share of queries whose document is the nearest of all (recall at 1), per document length.

    Args:
        split (`str`, *optional*, defaults to `"validation"`): `"validation"` or `"test"`.
        lengths (`Sequence[int]`, *optional*): document lengths in tokens. For the call all models read up to the
            longest, as far as their positions go, whatever their `max_seq_length` says: none sees more than another.
        count (`int`, *optional*, defaults to 120): documents of each length: chance is `1 / count`.
        name (`str`, *optional*, defaults to `"long"`): prefix of the metrics.
        dtype (`str`, *optional*, defaults to `"auto"`): precision, see `encode_sorted`.

    Relations:
        - The metrics are `<name>_recall_128`, `_256`, `_512`, and the primary one, their mean, `<name>_recall`.
    """

    def __init__(
        self,
        split: str = "validation",
        lengths: Sequence[int] = LENGTHS,
        count: int = 120,
        name: str = "long",
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        self.split = split
        self.tasks = {length: long_documents(split, length, count) for length in lengths}
        self.name = name
        self.dtype = dtype
        self.primary_metric = f"{name}_recall"

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
            `dict[str, float]`: the metrics above.
        """
        limit = model.max_seq_length
        if isinstance(limit, int):
            model.max_seq_length = min(max(self.tasks), _positions(model))
        try:
            recalls = {length: self._recall(model, task) for length, task in self.tasks.items()}
        finally:
            model.max_seq_length = limit
        metrics = {"recall": float(np.mean(list(recalls.values())))}
        metrics |= {f"recall_{length}": recall for length, recall in recalls.items()}
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics

    def _recall(self, model: SentenceTransformer, task: LongDocuments) -> float:
        """Recall at 1 of one length."""
        queries = normalize_rows(encode_sorted(model, task.queries, dtype=self.dtype))
        documents = normalize_rows(encode_sorted(model, task.documents, dtype=self.dtype))
        nearest = (queries @ documents.T).argmax(axis=1)
        return float((nearest == np.arange(len(documents))).mean())


def _positions(model: SentenceTransformer) -> int:
    """Tokens that a model has positions for."""
    encoder = model.transformers_model
    config = {} if encoder is None else encoder.config.to_dict()
    rows = config.get("max_position_embeddings")
    if rows is None or config.get("position_embedding_type", "absolute") != "absolute":
        return _UNLIMITED  # no table that could end
    tables = (module for name, module in encoder.named_modules() if name.endswith("position_embeddings"))
    unused = getattr(next(tables, None), "padding_idx", None)  # RoBERTa and MPNet count from the padding id plus 1
    return rows if unused is None else rows - unused - 1


__all__ = ["LENGTHS", "LongDocumentEvaluator", "LongDocuments", "long_documents"]
