"""`FidelityEvaluator`: cosine per length bucket, pair-rho across widths, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hf_distill.evaluation.encode import count_tokens, encode_sorted, normalize_rows
from hf_distill.evaluation.fidelity import FidelityEvaluator, pair_rho


def test_a_model_is_faithful_to_itself(tiny_model, tiny_texts):
    metrics = FidelityEvaluator(tiny_texts, tiny_model)(tiny_model)
    assert set(metrics) == {
        f"fidelity_{kind}{bucket}" for kind in ("cosine", "pair_rho") for bucket in ("", "_1_32", "_33_128")
    }
    for value in metrics.values():
        assert value == pytest.approx(1.0, abs=1e-6)


def test_buckets_hold_the_texts_of_their_length(tiny_model, tiny_texts):
    student = encode_sorted(tiny_model, tiny_texts, dtype="float32")
    lengths = count_tokens(tiny_model.tokenizer, tiny_texts)
    teacher = student.copy()
    teacher[lengths > 32] *= -1  # opposite on long texts only
    metrics = FidelityEvaluator(tiny_texts, teacher, tiny_model.tokenizer, name="held", dtype="float32")(tiny_model)
    assert metrics["held_cosine_1_32"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["held_cosine_33_128"] == pytest.approx(-1.0, abs=1e-6)
    share = (lengths <= 32).mean()
    assert metrics["held_cosine"] == pytest.approx(2 * share - 1, abs=1e-6)


def test_another_width_is_compared_by_pairs(tiny_model, static_model, tiny_texts):
    evaluator = FidelityEvaluator(tiny_texts, tiny_model, dtype="float32")
    metrics = evaluator(static_model)
    assert evaluator.primary_metric == "fidelity_pair_rho"
    assert not any("cosine" in key for key in metrics)
    student, teacher = (
        normalize_rows(encode_sorted(m, tiny_texts, dtype="float32")) for m in (static_model, tiny_model)
    )
    rows, columns = np.triu_indices(len(tiny_texts), k=1)
    expected = spearmanr((student @ student.T)[rows, columns], (teacher @ teacher.T)[rows, columns]).statistic
    assert metrics["fidelity_pair_rho"] == pytest.approx(expected, abs=1e-6)
    evaluator(tiny_model)
    assert evaluator.primary_metric == "fidelity_cosine"


def test_pair_rho_ignores_rotation_and_scale():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert pair_rho(vectors, 3 * vectors @ rotation) == pytest.approx(1.0, abs=1e-6)
    assert pair_rho(np.ones((4, 3)), rng.normal(size=(4, 3))) == 0.0
    assert abs(pair_rho(vectors, rng.normal(size=(40, 6)))) < 0.2


def test_bad_input(tiny_model, tiny_texts):
    vectors = np.ones((2, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="there are none"):
        FidelityEvaluator([], tiny_model)
    with pytest.raises(ValueError, match="give the teacher's `tokenizer`"):
        FidelityEvaluator(["a", "b"], vectors)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) for 3 texts"):
        FidelityEvaluator(["a", "b", "c"], vectors, tiny_model.tokenizer)
    vectors[1, 0] = np.nan
    with pytest.raises(ValueError, match="embedding of text 1 holds NaN"):
        FidelityEvaluator(["a", "b"], vectors, tiny_model.tokenizer)
