"""Paired differences: correlations are scipy's, intervals cover what they should, files stay with their models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy.stats import pearsonr

from hf_distill.evaluation.paired import PairScores, pair_similarities, paired_difference, pearson, write_pair_scores
from hf_distill.evaluation.score_cache import ScoreCache, model_fingerprint
from hf_distill.evaluation.sts import STSEvaluator


def models_of(quality, seeds=1, pairs=400, seed=0):
    rng = np.random.default_rng(seed)
    gold, shared = rng.standard_normal(pairs), rng.standard_normal(pairs)
    rows = [quality * gold + shared + 0.3 * rng.standard_normal(pairs) for _ in range(seeds)]
    return gold, np.array(rows)


def test_pearson_is_scipys():
    gold, rows = models_of(0.8, seeds=3)
    assert pearson(gold, rows) == pytest.approx([pearsonr(gold, row).statistic for row in rows])
    rng = np.random.default_rng(1)
    drawn = rng.integers(400, size=(5, 400))
    weights = np.array([np.bincount(sample, minlength=400) for sample in drawn])
    expected = [[pearsonr(gold[sample], row[sample]).statistic for row in rows] for sample in drawn]
    assert pearson(gold, rows, weights) == pytest.approx(np.array(expected))
    assert pearson(gold, np.ones((1, 400))) == pytest.approx([0.0])  # no spread, no correlation


def test_the_difference_of_a_model_and_itself_is_nothing():
    gold, rows = models_of(0.8, seeds=2)
    found = paired_difference(gold, rows, rows)
    assert (found.mean, found.low, found.high, found.deviation, found.seeds) == (0, 0, 0, 0, 2)


def test_pairing_makes_a_difference_narrow():
    gold, one = models_of(0.9)
    _, two = models_of(0.6)  # what both share of their noise cancels
    found = paired_difference(gold, one, two)
    assert 0 < found.low < found.mean < found.high
    assert found.mean == pytest.approx(pearsonr(gold, one[0]).statistic - pearsonr(gold, two[0]).statistic)
    _, strange = models_of(0.6, seed=5)
    unpaired = paired_difference(gold, one, strange[:, np.random.default_rng(2).permutation(400)])
    assert unpaired.high - unpaired.low > 1.5 * (found.high - found.low)
    assert paired_difference(gold, two, one).mean == -found.mean
    assert paired_difference(gold, one, two) == found  # drawn alike every time


def test_seeds_that_disagree_widen_the_interval():
    gold, one = models_of(0.9, seeds=3)
    two = one.copy()
    two[1] = models_of(0.1, seed=3)[1][0]
    found = paired_difference(gold, one, two)
    alone = paired_difference(gold, one[1], two[1])
    assert found.seeds == 3
    assert found.deviation == pytest.approx(alone.mean / np.sqrt(3), rel=1e-6)  # of (0, d, 0)
    assert found.low <= 0 < found.mean == pytest.approx(alone.mean / 3)


def test_the_interval_covers_the_truth():
    rng, truth, covered = np.random.default_rng(7), 1 / np.sqrt(2) - 1 / np.sqrt(3), 0
    for _ in range(60):
        gold, noise = rng.standard_normal((2, 150))
        one, two = gold + noise, gold + noise + rng.standard_normal(150)
        found = paired_difference(gold, one, two, rounds=300)
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"400 scores, similarities \(1, 400\) and \(2, 400\)"):
        paired_difference(models_of(1.0)[0], models_of(1.0)[1], models_of(1.0, seeds=2)[1])
    with pytest.raises(ValueError, match="3 scores"):
        paired_difference([1, 2, 3], [[1, 2]], [[1, 2]])


@pytest.fixture
def evaluator(tiny_texts):
    scores = np.random.default_rng(0).random(20).round(2).tolist()
    return STSEvaluator(tiny_texts[:20], tiny_texts[20:40], scores, "stsb_tr", "float32", "test")


def test_similarities_are_kept_by_model_and_data(evaluator, tiny_model, tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path)
    first = pair_similarities(tiny_model, evaluator, cache)
    assert first == pytest.approx(evaluator.similarities(tiny_model))
    assert next(tmp_path.iterdir()).name.startswith("stsb_tr_pairs-test-")
    monkeypatch.setattr(STSEvaluator, "similarities", lambda *args: pytest.fail("computed again"))
    assert (pair_similarities(copy.deepcopy(tiny_model), evaluator, cache) == first).all()
    other = STSEvaluator(evaluator.sentences1, evaluator.sentences2[::-1], evaluator.scores, "stsb_tr", split="test")
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        pair_similarities(tiny_model, other, cache)


def test_the_file_of_a_run(evaluator, tiny_model, static_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="not scored to the end"):
        PairScores.read(tmp_path)
    models = {"teacher": ("t", tiny_model), "student": ("s", static_model)}
    path = write_pair_scores(tmp_path, models, evaluator)
    found = PairScores.read(tmp_path)
    assert (found.task, found.split, found.scores) == ("stsb_tr", "test", evaluator.scores.tolist())
    assert found.fingerprints == {role: model_fingerprint(model) for role, (_, model) in models.items()}
    correlation = pearson(np.array(found.scores), np.array([found.similarities["student"]]))[0]
    assert correlation == pytest.approx(evaluator(static_model)["stsb_tr_pearson"])
    path.write_text(path.read_text().replace('"test"', '"train"'))
    with pytest.raises(ValueError, match="edited by hand"):
        PairScores.read(tmp_path)
