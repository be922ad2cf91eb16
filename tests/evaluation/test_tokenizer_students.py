"""Students of the tokenizer experiment from run folders: grouping, spreads, curves, and runs that do not belong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hf_distill.evaluation.paired import PairScores
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.tokenizer_students import PEARSON, learning_curve, read_students


def change_recipe(run, **changes):
    path = run / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_six_students_in_order(tokenizer_runs):
    students = read_students(tokenizer_runs)
    assert [student.name for student in students] == [
        *("mft-e5", "mft-e5-6layers", "mft-random-init"),
        *("tabi-e5", "tabi-e5-6layers", "tabi-random-init"),
    ]
    assert [student.is_clone for student in students] == [True, True, False] * 2
    first = students[0]
    assert first.metric("student", PEARSON).mean == pytest.approx(0.74)
    assert first.metric("untrained", PEARSON).mean == pytest.approx(0.40)
    assert first.share().mean == pytest.approx(0.74 / 0.75)
    assert first.share(role="untrained").mean == pytest.approx(0.40 / 0.75)
    assert (first.cost("tokens").mean, first.cost("minutes").mean) == (2_000_000, 4.5)
    assert first.stats.name == "mft"
    assert first.metric("student", "missing") is None


def test_random_weights_come_last_whatever_the_order(tokenizer_runs):
    names = [student.source for student in read_students([tokenizer_runs[2], *tokenizer_runs[:2]])]
    assert names == ["e5", "e5-6layers", "random-init"]


def test_a_student_is_known_by_the_name_in_its_recipe(make_tokenizer_run, tmp_path):
    """Two backbones in folders that are both called `model` stay two; the model's own name is another's."""
    runs = [make_tokenizer_run(tmp_path / name, source="model") for name in ("a", "b")]
    for run in runs:
        change_recipe(run, name=f"mft-{run.name}-300m", model=f"runs/{run.name}/model")
    control = make_tokenizer_run(tmp_path / "c", source=None)
    names = [student.name for student in read_students([*runs, control])]
    assert names == ["mft-a-300m", "mft-b-300m", "mft-random-init"]


def test_seeds_are_averaged(make_tokenizer_run, tmp_path):
    runs = [
        make_tokenizer_run(tmp_path / str(seed), seed=seed, quality=(0.4, 0.7 + 0.01 * seed)) for seed in (3, 1, 2)
    ]
    (student,) = read_students(runs)
    assert list(student.runs) == [1, 2, 3]
    found = student.metric("student", PEARSON)
    assert found.values == pytest.approx([0.71, 0.72, 0.73])
    assert found.deviation == pytest.approx(0.01)
    assert student.similarities("student", [1, 3]).shape == (2, 150)
    assert set(student.curves()) == {1, 2, 3}


@pytest.mark.parametrize("counted", [True, False])
def test_curves_over_tokens_and_texts(make_tokenizer_run, tmp_path, counted):
    (student,) = read_students([make_tokenizer_run(tmp_path / "a", tokens=800_000, counted=counted)])
    curve = learning_curve(student.runs[42])
    assert curve.tokens.tolist() == [0, 200_000, 400_000, 600_000, 800_000]  # logged, or shared out over the steps
    assert curve.texts.tolist() == [0, 25_600, 51_200, 76_800, 102_400]
    assert curve.values[[0, -1]] == pytest.approx([0.4, 0.7])
    (tmp_path / "a" / "trainer_state.json").unlink()
    assert student.curves() == {}


def test_tokens_that_nobody_counted(make_tokenizer_run, tmp_path):
    folder = make_tokenizer_run(tmp_path / "a", counted=False)
    results = Results.read(folder)
    results.training.stages[0].tokens = None
    results.write(folder)
    (student,) = read_students([folder])
    assert student.cost("tokens") is None
    assert np.isnan(learning_curve(student.runs[42]).tokens).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("none", "No runs are given"),
        ("twice", "b and .*a are one student with one seed, 42"),
        ("teacher", "another teacher"),
        ("pairs", "other test pairs"),
        ("similarities", "similarities.json is not of the student in results.json"),
        ("weights", "similarities.json is not of the untrained in results.json"),
        ("role", "has no row of the untrained"),
        ("training", "does not say how its student was trained"),
        ("tokenizer", "lacks the statistics of the teacher's tokenizer"),
        ("metric", "lacks the student's test stsb_tr_spearman"),
        ("seed", "does not say its seed"),
        ("recipe", "num_texts is 5 there and 9000 here"),
        ("source", "'e5' is org/e5 with num_layers 6 in .*b, but org/e5 in .*a. Give runs"),
        ("kind", "b/recipe.json lacks name, random: it is of no tokenizer experiment"),
    ],
)
def test_runs_that_do_not_belong(make_tokenizer_run, tmp_path, change, message):
    seed = {"twice": 42, "recipe": 1}.get(change, 42)
    source = "org/e5" if change in ("twice", "recipe") else None
    runs = [make_tokenizer_run(tmp_path / "a"), make_tokenizer_run(tmp_path / "b", source=source, seed=seed)]
    results, pairs = Results.read(runs[1]), PairScores.read(runs[1])
    rows = {row.role: row for row in results.rows}
    if change == "none":
        runs = []
    elif change == "teacher":
        rows["teacher"].fingerprint = pairs.fingerprints["teacher"] = "another"
    elif change == "pairs":
        pairs.scores[0] += 1e-7
    elif change == "similarities":
        pairs.similarities["student"].reverse()
    elif change == "weights":
        pairs.fingerprints["untrained"] = "another"
    elif change == "role":
        results.rows.remove(rows["untrained"])
    elif change == "training":
        results.training = None
    elif change == "tokenizer":
        rows["teacher"].tokenizer = None
    elif change == "metric":
        del rows["student"].metrics["test"]["stsb_tr_spearman"]
    elif change == "seed":
        results.seed = None
    elif change == "recipe":
        change_recipe(runs[1], num_texts=5)
    elif change == "source":
        change_recipe(runs[1], name="mft-e5", random=False, num_layers=6)
    elif change == "kind":
        change_recipe(runs[1], name=None, random=None)
    results.write(tmp_path / "b")
    pairs.write(tmp_path / "b")
    with pytest.raises(ValueError, match=message):
        read_students(runs)


def test_a_run_that_is_not_finished(make_tokenizer_run, tmp_path):
    folder = make_tokenizer_run(tmp_path / "a")
    (folder / "recipe.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match="no recipe.json in .*a. Run its recipe again"):
        read_students([folder])
    (folder / "similarities.json").unlink()
    with pytest.raises(FileNotFoundError, match="was not scored to the end"):
        read_students([folder])
