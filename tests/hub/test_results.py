"""Scores in the Hub's formats: official ids only where they are earned, mteb's writer, files that follow the weights."""

from __future__ import annotations

import random

import pytest
import yaml
from huggingface_hub import EvalResult, parse_eval_result_entries
from student_results import make_results

from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.hub.results import eval_result_entries, eval_results, write_eval_results


@pytest.fixture
def results() -> Results:
    return make_results()


def test_model_index_entries(results):
    entries = eval_results(results)
    assert all(isinstance(entry, EvalResult) for entry in entries)
    official = [entry for entry in entries if entry.dataset_type == "mteb/stsbenchmark-sts"]
    assert [entry.metric_type for entry in official] == ["cosine_spearman", "cosine_pearson"]
    local = [entry for entry in entries if entry not in official]
    assert {entry.dataset_type for entry in local} == {
        "HfdStdlibRetrieval",
        "HfdLexnameClassification",
        "HfdModuleClassification",
    }
    assert all(entry.dataset_name.endswith("(local task)") for entry in local)


def test_validation_is_called_validation(results):
    del results.row("student").metrics["test"]
    assert [(entry.dataset_split, entry.metric_value) for entry in eval_results(results)] == [
        ("validation", pytest.approx(0.833))
    ]
    assert eval_result_entries(results) == []  # leaderboards read test scores only


def test_files(results, tmp_path):
    stale = tmp_path / ".eval_results" / "Other.yaml"
    stale.parent.mkdir()
    stale.write_text("[]")
    state = random.getstate()
    paths = write_eval_results(tmp_path, results)
    assert random.getstate() == state  # mteb reseeds; a training that goes on must not notice
    assert {path.name for path in paths} == {
        "STSBenchmark.yaml",
        "HfdStdlibRetrieval.yaml",
        "HfdLexnameClassification.yaml",
        "HfdModuleClassification.yaml",
    }
    assert set(stale.parent.iterdir()) == set(paths)
    official = parse_eval_result_entries(yaml.safe_load(paths[0].read_text(encoding="utf-8")))
    assert {entry.task_id for entry in official} == {"STSBenchmark_default_test", "STSBenchmark"}
    for entry in official:
        assert entry.dataset_id == "mteb/stsbenchmark-sts"
        assert len(entry.dataset_revision) == 40
        assert entry.notes == f"Obtained using MTEB v{results.versions['mteb']}"
        assert entry.value / 100 == pytest.approx(
            results.row("student").metrics["test"]["stsbenchmark_spearman"], abs=1e-6
        )
    (local,) = parse_eval_result_entries(yaml.safe_load(paths[1].read_text(encoding="utf-8")))
    assert (local.dataset_id, local.task_id) == ("hf_distill/HfdStdlibRetrieval", "HfdStdlibRetrieval")
    assert "no public benchmark" in local.notes
    assert results.versions["python"] in local.notes
    assert local.value == pytest.approx(58.8)
    assert local.date == results.created[:10]


def test_our_own_figure_does_not_pass_for_mtebs(results):
    metrics = results.row("student").metrics["test"]
    del metrics["stsbenchmark_spearman"], metrics["stsbenchmark_pearson"]
    (entry,) = [entry for entry in eval_result_entries(results) if entry.dataset_id == "mteb/stsbenchmark-sts"]
    assert "own evaluator" in entry.notes
    assert "MTEB" not in entry.notes
    assert entry.value == pytest.approx(100 * metrics["stsb_spearman"])


def test_further_mteb_tasks(results):
    metrics = results.row("student").metrics["test"]
    metrics |= {"mteb_STSBenchmark.v2_cosine_spearman": 0.83, "mteb_STS17_cosine_spearman": 0.5}
    index = {entry.dataset_name: entry for entry in eval_results(results)}
    assert index["STSBenchmark.v2"].dataset_type == "mteb/STSBenchmarkv2"
    assert (index["STSBenchmark.v2"].metric_type, index["STSBenchmark.v2"].metric_value) == ("cosine_spearman", 0.83)
    assert index["STSBenchmark"].dataset_type == "mteb/stsbenchmark-sts"  # two tasks, two names
    entries = eval_result_entries(results)
    assert [(e.task_id, e.value) for e in entries if e.dataset_id == "mteb/STSBenchmarkv2"] == [
        ("STSBenchmark.v2_default_test", 83.0)
    ]
    # of several languages only the mean is known
    assert [(e.task_id, e.value) for e in entries if e.task_id.startswith("STS17")] == [("STS17", 50.0)]
    metrics["mteb_MyTask_accuracy"] = 0.5
    with pytest.raises(ValueError, match="'mteb_MyTask_accuracy' is called like one of mteb's"):
        eval_result_entries(results)


def test_no_student_no_results(tmp_path):
    with pytest.raises(ValueError, match="no row of the student"):
        write_eval_results(tmp_path, Results("r", [ModelRow("teacher", "t")]))
    assert list(tmp_path.iterdir()) == []
