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
    asked = suite.parse_tasks("Banking77Classification,stsb,STSBenchmark")  # mteb's, spelt as mteb does
    assert asked == ["stsb", "Banking77Classification", "STSBenchmark"]
    assert suite.mteb_names(asked) == ["Banking77Classification", "STSBenchmark"]


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


_measure = suite._measure


def _measure_embeddings_cheaply(model, group, *args):
    if group[0] in suite.EMBEDDING_TASKS:
        assert group == list(suite.EMBEDDING_TASKS)  # both at once: the texts are encoded once
        return {f"{name}_spearman": 0.5 for name in group}
    return _measure(model, group, *args)


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
    monkeypatch.setattr(suite, "_measure", _measure_embeddings_cheaply)
    rows = suite.score_models(
        models,
        {
            "validation": "stsb",
            "test": ["stsb", "int8", "embedding_int8", "embedding_binary", "fidelity", "retrieval"],
        },
        "bfloat16",
    )
    assert {role: row.role for role, row in rows.items()} == {role: role for role in models}
    assert set(precisions) == {"bfloat16", "float32"}
    assert precisions.count("float32") == 4  # three models, and the student in int8
    test = {role: set(row.metrics["test"]) for role, row in rows.items()}
    assert {"stsb_spearman", "stsb_pearson", "retrieval_ndcg_at_10"} <= test["teacher"]
    assert not any(name.startswith(("fidelity", "int8")) for name in test["teacher"])
    assert "int8_spearman" in test["student"]
    embeddings = {"embedding_int8_spearman", "embedding_binary_spearman"}
    assert embeddings <= test["teacher"] & test["student"]
    assert not embeddings & test["control"]
    assert rows["student"].metrics["test"]["fidelity_cosine"] == pytest.approx(1, abs=1e-5)
    assert "fidelity_pair_rho" in test["control"]
    assert "int8_spearman" not in test["control"]
    assert set(rows["student"].metrics["validation"]) == {"stsb_spearman", "stsb_pearson"}
    assert rows["student"].fingerprint == rows["teacher"].fingerprint != rows["control"].fingerprint
    suite.add_speed(rows, models, rounds=1)
    assert all(row.speed.texts_per_second > 0 and row.size.parameters > 0 for row in rows.values())


def test_a_second_seed_does_not_score_the_teacher_again(tiny_model, static_model, tmp_path, monkeypatch):
    from hf_distill.evaluation.score_cache import shared_scores

    def score(run, student):
        models = {"teacher": ("t", tiny_model), "student": (run, student)}
        return suite.score_models(models, {"test": ["stsb", "fidelity"]}, cache=shared_scores(tmp_path / run))

    scored = []
    original = suite._measure
    monkeypatch.setattr(
        suite, "_measure", lambda model, group, *args: scored.append((model, *group)) or original(model, group, *args)
    )
    first = score("seed1", tiny_model)
    assert [name for _, name in scored] == ["stsb", "fidelity"]  # teacher and student are one model here
    second = score("seed2", static_model)
    assert [model is static_model for model, _ in scored[2:]] == [True, True]
    assert second["teacher"].metrics == first["teacher"].metrics
    scored.clear()
    assert score("seed1", tiny_model)["student"].metrics == first["student"].metrics
    assert not scored


def test_tasks_of_mteb_are_handed_on(tiny_model, tmp_path, monkeypatch):
    from hf_distill.evaluation import mteb_runs

    calls = []
    monkeypatch.setattr(
        mteb_runs,
        "run_mteb_tasks",
        lambda model, *args: calls.append(args) or {"mteb_STSBenchmark_cosine_spearman": 0.5},
    )
    rows = suite.score_models(
        {"student": ("org/s", tiny_model)}, {"test": "STSBenchmark"}, mteb_folder=tmp_path / "mteb"
    )
    assert calls == [(["STSBenchmark"], tmp_path / "mteb", "org/s", "test")]
    assert rows["student"].metrics == {"test": {"mteb_STSBenchmark_cosine_spearman": 0.5}}
