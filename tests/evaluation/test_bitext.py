"""Retrieval across languages: scores are sentence-transformers', the student may meet its teacher's vectors or its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill.evaluation import bitext
from hf_distill.evaluation.bitext import BitextEvaluator, gloss_pairs, retrieval_scores
from hf_distill.evaluation.encode import encode_sorted, normalize_rows


def unit(rows, width, seed):
    return normalize_rows(np.random.default_rng(seed).standard_normal((rows, width)))


def test_scores_are_those_of_sentence_transformers():
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    candidates = unit(60, 8, 0)
    queries = normalize_rows(candidates + 2.0 * unit(60, 8, 1))
    ours = retrieval_scores(queries, candidates)
    ids = [str(row) for row in range(60)]
    theirs = InformationRetrievalEvaluator(
        dict.fromkeys(ids, "q"), dict.fromkeys(ids, "c"), {name: {name} for name in ids}
    )
    order = np.argsort(-(queries @ candidates.T), axis=1)[:, :10]
    hits = [[{"corpus_id": ids[row], "score": -place} for place, row in enumerate(rows)] for rows in order]
    expected = theirs.compute_metrics(hits)
    assert 0.1 < ours["recall_at_1"] < ours["recall_at_10"] < 1
    assert ours["recall_at_1"] == pytest.approx(expected["recall@k"][1])
    assert ours["recall_at_10"] == pytest.approx(expected["recall@k"][10])
    assert ours["mrr_at_10"] == pytest.approx(expected["mrr@k"][10])
    assert ours["ndcg_at_10"] == pytest.approx(expected["ndcg@k"][10])


def test_one_vector_for_all_texts_finds_nothing():
    same = np.ones((12, 4), dtype=np.float32) / 2
    assert set(retrieval_scores(same, same).values()) == {0.0}


def test_against_the_teacher_and_against_itself(tiny_model, tiny_texts):
    queries, candidates = tiny_texts[:20], tiny_texts[20:40]
    teacher = encode_sorted(tiny_model, queries, dtype="float32")  # a teacher for whom each answer means its query
    evaluator = BitextEvaluator(queries, candidates, teacher, dtype="float32")
    metrics = evaluator(tiny_model)
    names = [
        f"{own}{name}" for own in ("", "own_") for name in ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg_at_10")
    ]
    assert set(metrics) == {f"bitext_{name}" for name in names}
    assert metrics["bitext_recall_at_1"] == metrics["bitext_mrr_at_10"] == 1.0
    assert metrics["bitext_own_recall_at_1"] < 1.0
    assert evaluator.primary_metric == "bitext_recall_at_1"
    live = BitextEvaluator(queries, queries, tiny_model, dtype="float32")
    assert live(tiny_model)["bitext_recall_at_1"] == 1.0
    assert live.digest() != evaluator.digest() == BitextEvaluator(queries, candidates, teacher).digest()


def test_a_student_that_cannot_read_english_meets_the_teacher_only(tiny_model, tiny_texts):
    strange = [f"{text} 你好 世界" for text in tiny_texts[:10]]  # characters that its vocabulary lacks
    teacher = encode_sorted(tiny_model, tiny_texts[:10])
    metrics = BitextEvaluator(tiny_texts[:10], strange, teacher)(tiny_model)
    assert not any(name.startswith("bitext_own") for name in metrics)
    assert metrics["bitext_recall_at_10"] == 1.0
    with pytest.raises(ValueError, match=r"cannot read the candidates.*of its width \(32\)"):
        BitextEvaluator(tiny_texts[:10], strange, np.ones((10, 7)))(tiny_model)


def test_a_teacher_of_another_width_is_left_out(tiny_model, tiny_texts):
    metrics = BitextEvaluator(tiny_texts[:10], tiny_texts[10:20], np.ones((10, 7)))(tiny_model)
    assert all(name.startswith("bitext_own_") for name in metrics)
    assert BitextEvaluator(tiny_texts[:10], tiny_texts[10:20]).primary_metric == "bitext_own_recall_at_1"


def test_a_batch_does_not_matter(tiny_model, tiny_texts):
    teacher = unit(30, 32, 2)
    whole = BitextEvaluator(tiny_texts[:30], tiny_texts[30:60], teacher, dtype="float32")(tiny_model)
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.0)
    assert BitextEvaluator(tiny_texts[:30], tiny_texts[30:60], teacher, dtype="float32")(other) == whole


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((["a", "b"], ["c"]), "2 queries have 1 answers"),
        ((["a"], ["c"]), "at least two pairs"),
        ((["a", "b"], ["c", "d"], np.ones((3, 4))), r"shape \(3, 4\) for 2 candidates"),
        ((["a", "b"], ["c", "d"], np.array([[1.0], [np.nan]])), "candidate 1 holds NaN"),
    ],
)
def test_bad_input(columns, message):
    with pytest.raises(ValueError, match=message):
        BitextEvaluator(*columns)


def test_pairs_of_a_split_are_always_the_same(monkeypatch):
    from hf_distill.data import turkish

    pairs = {"tr": [f"tanım {row}" for row in range(9)], "en": [f"gloss {row}" for row in range(9)]}
    monkeypatch.setattr(turkish, "aligned_glosses", lambda split: Dataset.from_dict(pairs))
    monkeypatch.setitem(bitext.CANDIDATES, "test", 5)
    first = gloss_pairs("test")
    assert len(set(first)) == 5
    assert all(pair.turkish.split()[1] == pair.english.split()[1] for pair in first)
    reverse = {name: column[::-1] for name, column in pairs.items()}
    monkeypatch.setattr(turkish, "aligned_glosses", lambda split: Dataset.from_dict(reverse))
    assert gloss_pairs("test") == first  # whatever the order of the file
    monkeypatch.setitem(bitext.CANDIDATES, "validation", 10)
    with pytest.raises(ValueError, match="There are 9 held-out pairs .* validation, and retrieval needs 10"):
        gloss_pairs("validation")


def test_the_real_glosses():
    from hf_distill.data.turkish import held_out_glosses

    try:
        splits = {split: gloss_pairs(split) for split in ("validation", "test")}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    texts = [text for pairs in splits.values() for pair in pairs for text in pair]
    assert [len(pairs) for pairs in splits.values()] == [500, 1000]
    assert len(set(texts)) == 3000
    assert set(texts) <= set(held_out_glosses())
