"""The suite: names of tasks, which model is scored on what, speed."""

from __future__ import annotations

import pytest

from hf_distill.evaluation import corpus, suite
from hf_distill.evaluation.sts import STSEvaluator


@pytest.fixture(autouse=True)
def small(monkeypatch, tiny_texts):
    from datasets import Dataset

    columns = {"sentence1": tiny_texts[:20], "sentence2": tiny_texts[20:40], "score": [i / 20 for i in range(20)]}
    monkeypatch.setattr(suite, "load_stsb", lambda split: Dataset.from_dict(columns))
    monkeypatch.setattr(suite, "heldout_texts", lambda *args, **kwargs: tiny_texts)
    monkeypatch.setattr(corpus, "_PASSAGES", {"validation": 30, "test": 30})


def test_parse_tasks():
    assert suite.parse_tasks("retrieval, stsb,stsb") == ["stsb", "retrieval"]
    assert suite.parse_tasks(["fidelity"]) == ["fidelity"]
    assert suite.parse_tasks("all") == list(suite.TASKS)
    with pytest.raises(ValueError, match="no task 'arena', 'bench': choose among stsb, int8"):
        suite.parse_tasks("stsb,bench,arena")
    with pytest.raises(ValueError, match="No task is given"):
        suite.parse_tasks(" , ")


def test_tasks_are_those_of_mteb():
    from hf_distill.evaluation.tasks import TASKS

    assert suite.MTEB_TASKS == TASKS


def test_task_of():
    assert suite.task_of("stsb_spearman") == "stsb"
    assert suite.task_of("stsbenchmark_spearman") == "stsbenchmark"
    with pytest.raises(ValueError, match="No task has the metric 'accuracy'"):
        suite.task_of("accuracy")


def test_fidelity_needs_a_teacher(tiny_model):
    with pytest.raises(ValueError, match="Give --teacher"):
        suite.evaluate_model(tiny_model, "stsb,fidelity")


def test_every_model_gets_its_tasks(tiny_model, static_model, monkeypatch):
    precisions = []
    original = STSEvaluator.__call__
    monkeypatch.setattr(
        STSEvaluator, "__call__", lambda self, model: precisions.append(self.dtype) or original(self, model)
    )
    models = {
        role: ("name", model)
        for role, model in (("teacher", tiny_model), ("student", tiny_model), ("control", static_model))
    }
    rows = suite.score_models(
        models, {"validation": "stsb", "test": ["stsb", "int8", "fidelity", "retrieval"]}, "bfloat16"
    )
    assert {role: row.role for role, row in rows.items()} == {role: role for role in models}
    assert set(precisions) == {"bfloat16", "float32"}
    assert precisions.count("float32") == 4  # three models, and the student in int8
    test = {role: set(row.metrics["test"]) for role, row in rows.items()}
    assert {"stsb_spearman", "stsb_pearson", "retrieval_ndcg_at_10"} <= test["teacher"]
    assert not any(name.startswith(("fidelity", "int8")) for name in test["teacher"])
    assert "int8_spearman" in test["student"]
    assert rows["student"].metrics["test"]["fidelity_cosine"] == pytest.approx(1, abs=1e-5)
    assert "fidelity_pair_rho" in test["control"]
    assert "int8_spearman" not in test["control"]
    assert set(rows["student"].metrics["validation"]) == {"stsb_spearman", "stsb_pearson"}
    assert rows["student"].fingerprint == rows["teacher"].fingerprint != rows["control"].fingerprint
    suite.add_speed(rows, models, rounds=1)
    assert all(row.speed.texts_per_second > 0 and row.size.parameters > 0 for row in rows.values())
