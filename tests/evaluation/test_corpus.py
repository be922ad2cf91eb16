"""Held-out texts: deterministic, disjoint by split, of every length, and none of them in the training sources."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hf_distill.data.wordnet import wordnet_sentences
from hf_distill.evaluation import corpus
from hf_distill.evaluation.encode import count_tokens


def test_passages_are_disjoint_and_stable():
    splits = {split: corpus.retrieval_passages(split) for split in corpus.SPLITS}
    bodies = {split: {passage.body for passage in passages} for split, passages in splits.items()}
    assert not bodies["validation"] & bodies["test"]
    assert len(bodies["validation"]) == len(splits["validation"]) == 600
    assert len(bodies["test"]) == len(splits["test"]) > 600
    assert corpus.retrieval_passages("test") == splits["test"]
    summaries = [passage.summary for passages in splits.values() for passage in passages]
    assert len(set(summaries)) == len(summaries)  # a query has one right passage


@pytest.mark.parametrize(
    ("texts_of", "classes", "per_class"), [(corpus.lexname_texts, 12, 16), (corpus.module_texts, 13, 16)]
)
def test_classes_are_complete_and_splits_disjoint(texts_of, classes, per_class):
    splits = {split: texts_of(split) for split in ("train", "validation", "test")}
    counts = Counter(splits["train"].labels)
    assert len(counts) == classes
    assert min(counts.values()) >= per_class  # what the probe is trained on
    seen: set[str] = set()
    for texts, labels in splits.values():
        assert len(texts) == len(labels) > 200
        assert len(set(texts)) == len(texts)
        assert set(labels) <= set(counts)
        assert not seen & set(texts)
        seen |= set(texts)


def test_lexname_texts_are_not_trained_on():
    heldout = {text for split in ("train", "validation", "test") for text in corpus.lexname_texts(split).texts}
    assert not heldout & set(wordnet_sentences("train"))


def test_heldout_texts_fill_every_bucket(tiny_model):
    texts = {split: corpus.heldout_texts(tiny_model.tokenizer, split, per_bucket=30) for split in corpus.SPLITS}
    assert not set(texts["validation"]) & set(texts["test"])
    lengths = count_tokens(tiny_model.tokenizer, texts["test"])
    assert [int(((lengths >= low) & (lengths <= high)).sum()) for low, high in ((1, 32), (33, 128), (129, 256))] == [
        30
    ] * 3
    assert corpus.heldout_texts(tiny_model.tokenizer, "test", per_bucket=30) == texts["test"]
    prose = {passage.body for passage in corpus.retrieval_passages("test")} | {
        passage.summary for passage in corpus.retrieval_passages("test")
    }
    share = np.mean([text in prose for text in texts["test"]])
    assert 0.3 < share < 0.7  # both sources


def test_bad_requests(tiny_model):
    with pytest.raises(ValueError, match="no split 'train'"):
        corpus.retrieval_passages("train")
    with pytest.raises(ValueError, match="no split 'dev'"):
        corpus.lexname_texts("dev")
    with pytest.raises(ValueError, match="per_bucket is 0"):
        corpus.heldout_texts(tiny_model.tokenizer, per_bucket=0)
    with pytest.raises(ValueError, match="Lower per_bucket"):
        corpus.heldout_texts(tiny_model.tokenizer, per_bucket=100_000)
