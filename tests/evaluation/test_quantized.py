"""Quantised embeddings: the figures are those of sentence-transformers' own evaluator and of Hamming distances by hand."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from hf_distill.evaluation import corpus, quantized
from hf_distill.evaluation.quantized import quantized_scores


@pytest.fixture(autouse=True)
def small(monkeypatch, tiny_texts):
    columns = {"sentence1": tiny_texts[:30], "sentence2": tiny_texts[30:60], "score": [i % 7 / 7 for i in range(30)]}
    monkeypatch.setattr(quantized, "load_stsb", lambda split: Dataset.from_dict(columns))
    monkeypatch.setattr(corpus, "_PASSAGES", {"validation": 60, "test": 60})
    return columns


def test_sts_is_what_sentence_transformers_measures(tiny_model, small):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    ours = quantized_scores(tiny_model, split="test")
    for precision in ("int8", "binary"):
        theirs = EmbeddingSimilarityEvaluator(
            *small.values(), main_similarity="cosine", precision=precision, write_csv=False
        )(tiny_model)
        assert ours[f"embedding_{precision}_spearman"] == pytest.approx(theirs["spearman_cosine"], abs=0.01)


def test_binary_retrieval_ranks_by_hamming_distance(tiny_model):
    ours = quantized_scores(tiny_model, ["binary"], "test")["embedding_binary_ndcg_at_10"]
    passages = corpus.retrieval_passages("test")
    queries, bodies = (
        tiny_model.encode([getattr(passage, part).strip() for passage in passages]) > 0 for part in ("summary", "body")
    )
    distances = (queries[:, None, :] != bodies[None, :, :]).sum(axis=2)
    own = np.diag(distances)[:, None]
    closer, tied = (distances < own).sum(axis=1), (distances == own).sum(axis=1) - 1
    best, worst = (np.where(rank < 10, 1 / np.log2(rank + 2), 0.0).mean() for rank in (closer, closer + tied))
    assert worst - 1e-3 <= ours <= best + 1e-3  # ties are broken in some order
    assert best > 0


def test_every_text_is_encoded_once_for_all_precisions(tiny_model, monkeypatch):
    from hf_distill.evaluation import tasks

    encoded = []
    for module in (quantized, tasks):
        original = module.encode_sorted
        monkeypatch.setattr(
            module,
            "encode_sorted",
            lambda model, texts, original=original, **kw: encoded.extend(texts) or original(model, texts, **kw),
        )
    both = quantized_scores(tiny_model, split="validation")
    assert len(encoded) == len(set(encoded)) == 60 + 2 * 60  # sentences, passages, queries
    assert set(both) == {f"embedding_{p}_{m}" for p in ("int8", "binary") for m in ("spearman", "ndcg_at_10")}
    assert quantized_scores(tiny_model, ["int8"], "validation") == {k: v for k, v in both.items() if "int8" in k}


def test_the_models_card_is_left_alone(tiny_model):
    before = dict(tiny_model.model_card_data.eval_results_dict)
    quantized_scores(tiny_model, ["int8"], "validation")
    assert tiny_model.model_card_data.eval_results_dict == before


def test_unknown_precision(tiny_model):
    with pytest.raises(ValueError, match="cannot be stored as 'int4': choose among int8, binary"):
        quantized_scores(tiny_model, ["int4"])
