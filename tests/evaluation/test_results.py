"""`results.json`: what is written comes back, other versions and damaged files are refused, models do not mix."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.evaluation.results import ROLES, CheckpointScore, ModelRow, Results, command_line
from hf_distill.evaluation.speed import ModelSize, ModelSpeed
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.evaluation.training_summary import Origin, Stage, TextSource, TrainingSummary, public_name


def example() -> Results:
    size, speed = ModelSize(100, 0.4, 0.1), ModelSpeed(10.0, 200.0, 5.0, 9.0, "a machine, 2 threads", "float32")
    stats = TokenizerStats("wordpiece", 9, 90, 30_522, 1.2, 14.0, 13.0, 30.0, 0.0, 0.5, 0.2, 1e5)
    scores = {"test": {"stsb_spearman": 0.8, "lexnames_accuracy": 0.5}}
    teacher = ModelRow("teacher", "t", "", size, speed, scores, tokenizer=stats)
    student = ModelRow("student", "s", "", size, None, {"test": {"stsb_spearman": 0.76, "lexnames_accuracy": 0.55}})
    return Results("run", [teacher, student], 200, "validation stsb_spearman", [CheckpointScore(200, {"a": 0.5})])


def example_training() -> TrainingSummary:
    return TrainingSummary(
        teacher=Origin("org/teacher", "0" * 40, "apache-2.0", None, True),
        init_from=None,
        student="deltanet",
        settings={"mixer": "ridge"},
        losses={"cosine": 1.0, "gram": {"0": 1.0, "500": 0.1}},
        sources=[TextSource("wordnet", 100, 6.0), TextSource("allnli", None, 1.0, "sentence-transformers/all-nli")],
        texts=95,
        overlap_removed=5,
        stages=[Stage("alignment", 10, 0.5), Stage("end to end", 20, 1.5, 190, 2800)],
        hardware="a machine, 2 threads",
        learning_rate=1e-4,
        batch="6,144 padded tokens",
    )


def rehash(path, values):
    """Write values as an editor who knows the hash would, to reach the checks behind it."""
    values = {key: value for key, value in values.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**values, "sha256": digest}))


def test_round_trip(tmp_path):
    results = example()
    results.training = example_training()
    path = results.write(tmp_path)
    assert path == tmp_path / "results.json"
    assert Results.read(tmp_path) == Results.read(path) == results
    assert json.loads(path.read_text())["schema_version"] == 2
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left


names = st.text(min_size=1, max_size=8)
metrics = st.dictionaries(names, st.dictionaries(names, st.floats(-1, 1), max_size=3), max_size=2)


@given(
    st.lists(
        st.builds(ModelRow, role=st.sampled_from(ROLES), name=names, note=names, metrics=metrics),
        unique_by=lambda row: row.role,
        max_size=4,
    ),
    st.none() | st.integers(0, 10**9),
)
def test_any_results_survive_json(tmp_path_factory, rows, step):
    results = Results("r", rows, step)
    assert Results.read(results.write(tmp_path_factory.mktemp("r") / "x.json")) == results


def test_retained():
    results = example()
    assert results.retained("stsb_spearman") == pytest.approx(0.95)
    assert results.retained("stsb_spearman", split="validation") is None
    assert results.retained("missing") is None
    assert results.retained("lexnames_accuracy", divisor="stsb_spearman") == pytest.approx(0.55 / 0.8)
    assert results.mean_retained() == pytest.approx((0.95 + 1.1) / 2)
    assert results.mean_retained(role="control") is None
    results.row("teacher").metrics["test"]["stsb_spearman"] = 0.0
    assert results.retained("stsb_spearman") is None


def test_put_keeps_the_scores_of_the_same_model_only():
    results = Results("r")
    results.put(
        ModelRow(
            "student", "s", metrics={"validation": {"a": 1.0, "b": 2.0}}, fingerprint="x", size=ModelSize(1, 1, 1)
        )
    )
    results.put(ModelRow("teacher", "t", fingerprint="t"))
    assert [row.role for row in results.rows] == ["teacher", "student"]
    results.put(ModelRow("student", "s", metrics={"validation": {"a": 3.0}, "test": {"a": 4.0}}, fingerprint="x"))
    assert results.row("student").metrics == {"validation": {"a": 3.0, "b": 2.0}, "test": {"a": 4.0}}
    assert results.row("student").size == ModelSize(1, 1, 1)
    results.put(ModelRow("student", "s", metrics={"validation": {"a": 5.0}}, fingerprint="y"))
    assert results.row("student").metrics == {"validation": {"a": 5.0}}  # the test score was another checkpoint's
    assert results.row("student").size is None


def test_speeds_are_of_one_session():
    speed, later = (ModelSpeed(rate, 200.0, 5.0, 9.0, "a machine", "float32") for rate in (10.0, 3.0))
    rows = [ModelRow(role, role, speed=speed, fingerprint=role) for role in ("teacher", "student", "untrained")]
    results = Results("r")
    results.put_session(rows)
    assert {row.speed for row in results.rows} == {speed}
    results.put_session([ModelRow("student", "student", metrics={"test": {"a": 1.0}}, fingerprint="student")])
    assert {row.speed for row in results.rows} == {speed}  # nothing was measured anew
    results.put_session([ModelRow(role, role, speed=later, fingerprint=role) for role in ("teacher", "student")])
    assert [row.speed for row in results.rows] == [later, later, None]
    results.put_session([ModelRow("student", "student", speed=speed, fingerprint="student")])
    assert [row.speed for row in results.rows] == [None, speed, None]


def test_bad_results():
    with pytest.raises(ValueError, match="cannot be 'judge'"):
        ModelRow("judge", "x")
    with pytest.raises(ValueError, match="more than one row for student"):
        Results("r", [ModelRow("student", "a"), ModelRow("student", "b")])
    with pytest.raises(ValueError, match="student's test stsb_spearman is nan"):
        Results("r", [ModelRow("student", "a", metrics={"test": {"stsb_spearman": float("nan")}})])


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="There are no results at"):
        Results.read(tmp_path)
    path = example().write(tmp_path)
    values = json.loads(path.read_text())
    for change, message in (
        ({"schema_version": 99}, "schema version 99, this hf_distill reads 2"),
        ({"schema_version": 1}, "schema version 1, .*evaluate the run again: .*evaluate_student"),
        ({"colour": "red"}, "unknown one .*colour"),
        ({"rows": [{"role": "student"}]}, "lacks a field"),
        ({"training": {"teacher": {"name": "t"}}}, "lacks a field .*init_from"),
    ):
        rehash(path, {**values, **change})
        with pytest.raises(ValueError, match=message):
            Results.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Results.read(path)


def test_a_file_that_was_edited_by_hand_is_refused(tmp_path):
    path = example().write(tmp_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values, sort_keys=True))  # another layout of the same content is no edit
    assert Results.read(path).rows == example().rows
    values["rows"][1]["metrics"]["test"]["stsb_spearman"] = 0.99
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="edited by hand.*sha256.*evaluate the run again"):
        Results.read(path)
    del values["sha256"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="edited by hand"):
        Results.read(path)


def test_public_name_hides_folders(tmp_path, monkeypatch):
    assert public_name("org/model") == "org/model"
    assert public_name(tmp_path / "teacher") == "teacher"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/mine") == "mine"


def test_versions_and_date_are_there():
    results = Results("r")
    assert {"python", "torch", "transformers", "mteb"} <= set(results.versions)
    assert results.created.endswith("+00:00")
    assert dataclasses.asdict(results)["rows"] == []


def test_command_line_shows_no_local_path():
    line = command_line("recipes/x.py", ["--run", "/srv/runs/a", "--teacher=/data/t", "--seed", "1"])
    assert line == "accelerate launch recipes/x.py --run a --teacher=t --seed 1"
    nested = command_line("recipes/x.py", ["--sources", '{"/srv/my/texts.jsonl": 1}', "--url", "https://host/a/b"])
    assert nested == """accelerate launch recipes/x.py --sources '{"texts.jsonl": 1}' --url https://host/a/b"""
    shipped = command_line(
        "recipes/x.py", ["--config", "/srv/a/recipes/configs/embedding/b.yaml", "--run=/srv/runs/a"]
    )
    assert shipped == "accelerate launch recipes/x.py --config recipes/configs/embedding/b.yaml --run=a"
    assert ModelRow("teacher", "/srv/models/mine").name == "mine"
