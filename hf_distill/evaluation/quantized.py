"""What is left of a model's quality when its embeddings are stored as int8 or as bits.

The codes are made by sentence-transformers' `quantize_embeddings` and compared as its own tools compare them, on STS-B
as `EmbeddingSimilarityEvaluator(precision=...)` does and in the retrieval task as an index over the codes does: both
sides quantised, nothing scored again in float. (`int8` in the suite is something else: the model's weights in int8.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import quantize_embeddings
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from hf_distill.data.stsb import load_stsb
from hf_distill.evaluation.encode import encode_sorted, normalize_rows
from hf_distill.evaluation.tasks import PromptType, SortedEncoder, make_task, score_task

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

PRECISIONS = ("int8", "binary")
"""A float32 vector of width `D` takes `4 D` bytes, its int8 codes `D`, its bits `D / 8`."""


class _QuantizedSTS(EmbeddingSimilarityEvaluator):
    """sentence-transformers' evaluator of quantised embeddings on vectors that are there already."""

    def __init__(self, vectors: dict[str, np.ndarray], pairs: Dataset, precision: str) -> None:
        super().__init__(
            list(pairs["sentence1"]),
            list(pairs["sentence2"]),
            list(pairs["score"]),
            main_similarity="cosine",
            similarity_fn_names=["cosine"],
            precision=precision,
            write_csv=False,
        )
        self.vectors = vectors

    def embed_inputs(self, model: Any, sentences: Sequence[str], **kwargs: Any) -> np.ndarray:
        """Quantise the vectors of the sentences; all of them calibrate the ranges of int8."""
        return quantize_embeddings(np.stack([self.vectors[text] for text in sentences]), precision=self.precision)

    def store_metrics_in_model_card_data(self, *args: Any, **kwargs: Any) -> None:
        """Leave the model's card alone: it shows what the model does at full precision."""


class _QuantizedEncoder(SortedEncoder):
    """The model as mteb wants it, giving codes instead of vectors; each text is encoded once for all precisions."""

    def __init__(self, model: SentenceTransformer, dtype: str, passages: Sequence[str]) -> None:
        super().__init__(model, dtype)
        self.precision = PRECISIONS[0]
        self._known: dict[tuple[str, PromptType | None], np.ndarray] = {}
        stored = self._vectors([text.strip() for text in passages], PromptType.document)
        self.ranges = np.stack([stored.min(axis=0), stored.max(axis=0)])

    def _vectors(self, texts: Sequence[str], prompt_type: PromptType | None) -> np.ndarray:
        """Encode texts, or remember them."""
        missing = list(dict.fromkeys(text for text in texts if (text, prompt_type) not in self._known))
        found = normalize_rows(super().encode([{"text": missing}], prompt_type=prompt_type))
        self._known.update(zip([(text, prompt_type) for text in missing], found, strict=True))
        return np.stack([self._known[text, prompt_type] for text in texts])

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> np.ndarray:
        """Quantise the vectors of what a data loader holds; bits become -1 and 1, whose cosines order as Hamming's."""
        vectors = self._vectors([text for batch in inputs for text in batch["text"]], prompt_type)
        if self.precision == "binary":
            bits = np.unpackbits(quantize_embeddings(vectors, precision="ubinary"), axis=1)[:, : vectors.shape[1]]
            return 2.0 * bits.astype(np.float32) - 1.0
        return quantize_embeddings(vectors, precision=self.precision, ranges=self.ranges).astype(np.float32)


def quantized_scores(
    model: SentenceTransformer,
    precisions: Sequence[str] = PRECISIONS,
    split: str = "test",
    dtype: str = "float32",
) -> dict[str, float]:
    """Score a model's quantised embeddings on STS-B and on the retrieval task.

    Args:
        model (`SentenceTransformer`): the model; every text is encoded once, whatever the number of precisions.
        precisions (`Sequence[str]`, *optional*): among `"int8"` (each dimension's range cut into 256 steps; the ranges
            are those of STS-B's sentences and of the retrieval's passages) and `"binary"` (the sign of each dimension).
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        dtype (`str`, *optional*, defaults to `"float32"`): precision of the encoding itself, see `encode_sorted`.

    Returns:
        `dict[str, float]`: `embedding_int8_spearman`, `embedding_int8_ndcg_at_10`, `embedding_binary_spearman` ...

    Raises:
        ValueError: an unknown precision.

    Example:
        >>> quantized_scores(model, ["binary"], "validation")["embedding_binary_spearman"]
        0.851
    """
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ValueError(f"Embeddings cannot be stored as {unknown[0]!r}: choose among {', '.join(PRECISIONS)}.")
    pairs, task = load_stsb(split), make_task("retrieval", split)
    texts = list(dict.fromkeys([*pairs["sentence1"], *pairs["sentence2"]]))
    sentences = dict(zip(texts, normalize_rows(encode_sorted(model, texts, dtype=dtype)), strict=True))
    encoder = _QuantizedEncoder(model, dtype, task.dataset["default"][split]["corpus"]["text"])
    metrics: dict[str, float] = {}
    for precision in precisions:
        similarity = _QuantizedSTS(sentences, pairs, precision)(model)
        encoder.precision = precision
        found = score_task(encoder, "retrieval", task, split)
        prefix = f"embedding_{precision}"
        metrics[f"{prefix}_spearman"] = float(similarity["spearman_cosine"])
        metrics[f"{prefix}_ndcg_at_10"] = found["retrieval_ndcg_at_10"]
    return metrics
