"""The table over seeds: mean, spread and count by hand, and runs that are no seeds of one configuration are refused."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest

from hf_distill.evaluation.checkpoints import RECIPE_FILE
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.seeds import spread, summarise_seeds
from hf_distill.evaluation.training_summary import Origin, TrainingSummary

TRAINING = TrainingSummary(
    teacher=Origin("org/teacher"),
    init_from=None,
    student="static",
    settings={},
    losses={},
    sources=[],
    texts=9,
    overlap_removed=0,
    stages=[],
    hardware="a machine",
    learning_rate=0.1,
    batch="8 texts",
)


@pytest.fixture
def runs(tmp_path, make_run):
    return [make_run(tmp_path / f"seed{seed}", quality, seed) for seed, quality in ((1, 0.78), (2, 0.79), (3, 0.74))]


def test_mean_deviation_range_share_and_count(runs):
    lines = summarise_seeds(runs).splitlines()
    assert lines[0] == "| test | teacher | student, mean ± sd | least – greatest | % retained | n |"
    assert {line.count("|") for line in lines} == {7}
    deviation = statistics.stdev([0.78, 0.79, 0.74])
    assert f"| STS-B Spearman | 0.8000 | 0.7700 ± {deviation:.4f} | 0.7400 – 0.7900 | 96.2 | 3 |" in lines
    cosine = next(line for line in lines if line.startswith("| cosine to the teacher |"))
    assert cosine.split("|")[2].strip() == ""  # the teacher is not compared with itself
    labels = [line.split("|")[1].strip() for line in lines[2:]]
    place = labels.index("retrieval nDCG@10")
    assert [label.removeprefix("&nbsp;" * 3) for label in labels[place + 1 : place + 4]] == [
        "1–32 tokens",
        "33–128 tokens",
        "129–256 tokens",
    ]
    assert "validation" in summarise_seeds(runs, "validation").splitlines()[0]


def test_a_metric_that_not_every_run_has_says_how_many(runs):
    results = Results.read(runs[0])
    del results.row("student").metrics["test"]["stsb_spearman"]
    results.write(runs[0])
    line = next(line for line in summarise_seeds(runs).splitlines() if "STS-B Spearman" in line)
    assert line.endswith("| 2 |")
    assert "0.7650 ±" in line


def test_spread_of_one_value_is_zero():
    assert spread([0.5]) == (0.5, 0.0, [0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one", "at least two runs; 1 given"),
        ("seed", "have the seed 1"),
        ("config", "seed2 is of another configuration than seed1: num_texts is 5 there and None here"),
        ("teacher", "different teachers"),
        ("split", "None of these runs has train scores"),
    ],
)
def test_what_is_no_set_of_seeds(runs, tmp_path, change, message, make_run):
    if change == "one":
        runs = runs[:1]
    elif change == "seed":
        runs = [runs[0], make_run(tmp_path / "again", 0.7, 1)]
    elif change == "config":
        runs = [runs[0], make_run(tmp_path / "other" / "seed2", 0.7, 2, num_texts=5)]
    elif change == "teacher":
        results = Results.read(runs[1])
        results.row("teacher").fingerprint = "another"
        results.write(runs[1])
    with pytest.raises(ValueError, match=message):
        summarise_seeds(runs, "train" if change == "split" else "test")


def test_seeds_of_two_versions_are_compared_in_what_both_wrote_down(runs):
    def write(run, **training):
        (run / RECIPE_FILE).write_text(json.dumps({"training": {"learning_rate": 0.1, **training}}), encoding="utf-8")

    write(runs[0], seed=1)
    for run in runs[1:]:
        write(run, seed=2, adam_beta2=0.98)
    assert "| 3 |" in summarise_seeds(runs)
    write(runs[0], adam_beta2=0.9)
    with pytest.raises(ValueError, match=r"training.adam_beta2 is 0.98 there and 0.9 here"):
        summarise_seeds(runs)


def test_seeds_with_other_loss_terms_are_refused(runs):
    """A recipe names the active terms only: one that is not there has no weight, it is not unknown."""
    for run, losses in zip(runs, ({"cosine": 1.0}, {"cosine": 1.0}, {"cosine": 1.0, "gram": 0.5}), strict=True):
        results = Results.read(run)
        results.training = replace(TRAINING, losses=losses)
        results.write(run)
        (run / RECIPE_FILE).write_text(json.dumps({"training": losses}), encoding="utf-8")
    assert "| 2 |" in summarise_seeds(runs[:2])
    with pytest.raises(ValueError, match="training.losses is .*'gram': 0.5"):
        summarise_seeds(runs)
