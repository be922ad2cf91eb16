"""The suite: names of tasks, which model is scored on what, speed."""

from __future__ import annotations

import sys

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


def test_turkish_tasks_are_asked_for_by_name(monkeypatch):
    assert suite.parse_tasks("bitext,stsb_tr,retrieval") == ["retrieval", "stsb_tr", "bitext"]
    assert not {*suite.TURKISH_TASKS} & {*suite.parse_tasks("all")}  # their data are not everybody's
    assert suite.mteb_names(["stsb_tr", "bitext", "STS22"]) == ["STS22"]
    found = suite.parse_tasks("stsb_tr,mteb_tur")
    assert found[0] == "stsb_tr"
    assert "MassiveIntentClassification[tur]" in found
    with pytest.raises(ValueError, match="no task 'mteb_xxx'.*mteb"):
        suite.parse_tasks("mteb_xxx")


def test_a_missing_mteb_is_said_before_anything_is_computed(monkeypatch):
    for name in ("tasks", "mteb_runs"):
        monkeypatch.delitem(sys.modules, f"hf_distill.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "mteb", None)
    for ask in (lambda: suite.check_data(["stsb", "retrieval"], "test"), lambda: suite.parse_tasks("STSBenchmark")):
        with pytest.raises(ValueError, match="need mteb.*Install it: pip install 'mteb"):
            ask()
    suite.check_data(["stsb", "int8", "fidelity"], "test")


def test_tasks_are_those_of_mteb():
    from hf_distill.evaluation.tasks import TASKS

    assert suite.MTEB_TASKS == TASKS


def test_task_of():
    assert suite.task_of("stsb_spearman") == "stsb"
    assert suite.task_of("stsbenchmark_spearman") == "stsbenchmark"
    assert suite.task_of("stsb_tr_pearson") == "stsb_tr"
    assert suite.task_of("bitext_own_recall_at_1") == "bitext"
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


@pytest.fixture
def turkish(monkeypatch, tiny_texts):
    """Stand-ins for STSb-TR and the aligned glosses; gives the splits and folders that STSb-TR was asked for."""
    from datasets import Dataset

    from hf_distill.data import stsb_tr
    from hf_distill.data import turkish as sources
    from hf_distill.evaluation import bitext

    columns = {"sentence1": tiny_texts[20:40], "sentence2": tiny_texts[40:60], "score": [i / 20 for i in range(20)]}
    asked = []
    monkeypatch.setattr(
        stsb_tr,
        "load_stsb_tr",
        lambda split, folder=None: asked.append((split, folder)) or Dataset.from_dict(columns),
    )
    pairs = Dataset.from_dict({"tr": tiny_texts[:20], "en": tiny_texts[20:40]})
    monkeypatch.setattr(sources, "aligned_glosses", lambda split: pairs)
    monkeypatch.setattr(bitext, "CANDIDATES", {"validation": 20, "test": 20})
    return asked


def test_turkish_tasks_are_scored_like_the_others(tiny_model, static_model, tmp_path, turkish, monkeypatch):
    from hf_distill.evaluation.paired import PairScores, write_pair_scores
    from hf_distill.evaluation.score_cache import shared_scores
    from hf_distill.evaluation.turkish import turkish_evaluators

    models = {"teacher": ("t", tiny_model), "student": ("s", tiny_model), "untrained": ("u", static_model)}
    cache = shared_scores(tmp_path / "run")
    tasks = {"validation": ["stsb_tr"], "test": ["stsb_tr", "bitext"]}
    rows = suite.score_models(models, tasks, "bfloat16", cache, stsb_tr_folder="folder")
    assert turkish == [("validation", "folder"), ("test", "folder")]
    assert set(rows["student"].metrics["validation"]) == {"stsb_tr_pearson", "stsb_tr_spearman"}
    test = rows["student"].metrics["test"]
    assert {"stsb_tr_pearson", "stsb_tr_spearman", "bitext_recall_at_1", "bitext_own_ndcg_at_10"} <= set(test)
    assert "bitext_recall_at_1" not in rows["untrained"].metrics["test"]  # of another width than the teacher
    evaluators = turkish_evaluators(["stsb_tr"], "test", "float32")
    assert test["stsb_tr_pearson"] == pytest.approx(evaluators["stsb_tr"](tiny_model)["stsb_tr_pearson"])

    monkeypatch.setattr(STSEvaluator, "similarities", lambda *args: pytest.fail("computed again"))
    monkeypatch.setattr(suite, "_measure", lambda *args: pytest.fail("computed again"))
    again = suite.score_models(models, tasks, "bfloat16", cache)
    assert {role: row.metrics for role, row in again.items()} == {role: row.metrics for role, row in rows.items()}
    write_pair_scores(tmp_path, models, evaluators["stsb_tr"], cache)
    assert PairScores.read(tmp_path).fingerprints == {role: row.fingerprint for role, row in rows.items()}


def test_a_turkish_task_needs_its_evaluator(tiny_model, turkish):
    with pytest.raises(ValueError, match=r"task bitext needs its evaluator: turkish=turkish_evaluators\(\['bitext'\]"):
        suite.evaluate_model(tiny_model, "bitext")
    suite.check_data(["stsb", "stsb_tr"], "test", "somewhere")
    assert turkish == [("test", "somewhere")]


def test_tokenizers_of_one_name_are_measured_once(tiny_model, tiny_texts, monkeypatch):
    from hf_distill.evaluation.results import ModelRow

    models = {role: (role, tiny_model) for role in ("teacher", "student", "untrained")}
    rows = {role: ModelRow(role, role) for role in models}
    measured, original = [], suite.tokenizer_stats
    monkeypatch.setattr(suite, "tokenizer_stats", lambda *args: measured.append(args[2]) or original(*args))
    suite.add_tokenizers(rows, models, tiny_texts, {"teacher": "wordpiece", "student": "mft", "untrained": "mft"})
    assert measured == ["wordpiece", "mft"]
    assert rows["student"].tokenizer is rows["untrained"].tokenizer
    assert rows["teacher"].tokenizer.texts == len(tiny_texts)
