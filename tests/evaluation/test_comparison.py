"""The comparison of runs: what lies on the frontier, what may be compared at all, and a page that holds its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_distill.evaluation import comparison
from hf_distill.evaluation.comparison import Point, compare_runs, draw_frontier, frontier, read_runs
from hf_distill.evaluation.results import Results


@pytest.fixture
def runs(tmp_path, make_run):
    folder = tmp_path / "runs"
    return [make_run(folder / "large", 0.79, 1, 800.0), make_run(folder / "small", 0.60, 2, 4000.0)]


def points_of(folders, metric="stsb_spearman"):
    runs = read_runs(folders)
    return comparison._points(runs, comparison._basis(runs, metric))


def test_frontier():
    cost = [(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.9), (4, 0.8)]
    assert frontier(cost, more_is_better=False) == [(4, 0.9), (2, 0.7), (1, 0.5)]
    assert frontier(cost, more_is_better=True) == [(4, 0.9)]
    assert frontier([(1, 0.5), (1, 0.5)], more_is_better=True) == [(1, 0.5)]


def test_points_are_relative_to_the_one_teacher(runs):
    large, small, teacher = points_of(runs)
    assert (large.label, large.quality, large.size, large.speed) == ("large", 0.79, 45.0, pytest.approx(0.8))
    assert small.speed == pytest.approx(4.0)
    assert teacher == Point("the-teacher (teacher)", 0.80, 90.0, 1.0, is_teacher=True)


def test_two_teachers_are_two_points_and_speeds_are_absolute(runs):
    results = Results.read(runs[1])
    results.row("teacher").fingerprint = "another"
    results.write(runs[1])
    points = points_of(runs)
    assert [point.is_teacher for point in points] == [False, False, True, True]
    assert [point.speed for point in points] == [800.0, 4000.0, 1000.0, 1000.0]


def test_test_scores_are_never_set_against_validation(runs):
    results = Results.read(runs[1])
    del results.row("student").metrics["test"]
    results.write(runs[1])
    assert points_of(runs)[0].quality == pytest.approx(0.81)  # the validation score of the run that has both
    with pytest.raises(
        ValueError, match="test is missing in small; validation is missing in large, small.*another metric"
    ):
        points_of(runs, "retrieval_ndcg_at_10")


def test_page_and_picture(runs):
    from matplotlib.image import imread

    path = compare_runs(runs)
    assert path == runs[0].parent / "comparison.html"
    text = path.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert "https://" not in text
    assert str(runs[0].parent) not in text
    for expected in ("large", "small", "teacher", "0.7900", "0.6000", "test split"):
        assert expected in text
    height, width = imread(path.with_suffix(".png")).shape[:2]
    assert width > 1.8 * height  # two panels
    named = compare_runs(runs, runs[0].parent / "elsewhere" / "a.html", "retrieval_ndcg_at_10")
    assert sorted(path.name for path in named.parent.iterdir()) == ["a.html", "a.png"]
    assert "retrieval nDCG@10" in named.read_text(encoding="utf-8")


def test_labels_cover_neither_points_nor_each_other():
    rng = np.random.default_rng(0)
    points = [Point(f"a run of seed {seed}", 0.8, 90.0, 1.0) for seed in range(7)]
    spots = 0.3 + 0.02 * rng.random((7, 2))  # seven models in the same place
    boxes = []
    for point, (left, middle, _) in zip(points, comparison._label_places(points, spots), strict=True):
        width, half = len(point.label) * comparison._CHARACTER, comparison._LINE / 2
        boxes.append((left, left + width, middle - half, middle + half))
    for number, box in enumerate(boxes):
        assert 0 < box[2] < box[3] < 1
        assert not any(comparison._overlap(box, other) for other in boxes[:number])
        assert not any(box[0] < x < box[1] and box[2] < y < box[3] for x, y in spots)


def test_axes_are_labelled_and_hold_every_label(runs):
    points = points_of(runs)
    figure = draw_frontier(points, "STS-B Spearman, test", relative=True)
    assert [axis.get_ylabel() for axis in figure.axes] == ["STS-B Spearman, test"] * 2
    assert ["× the teacher's" in axis.get_xlabel() for axis in figure.axes] == [True, False]
    figure.draw_without_rendering()
    for axis in figure.axes:
        texts = [text for text in axis.texts if text.get_text()]
        assert {text.get_text() for text in texts} == {"large", "small", "the-teacher (teacher)"}
        assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in texts)
    only_size = draw_frontier([replace(point, speed=None) for point in points], "q", relative=False)
    assert len(only_size.axes) == 1


def test_runs_of_one_name_keep_their_folders(tmp_path, make_run):
    folders = [make_run(tmp_path / place / "student") for place in ("a", "b")]
    assert [name for name, _ in read_runs(folders)] == ["a/student", "b/student"]


def test_bad_input(runs, tmp_path):
    with pytest.raises(ValueError, match="at least two runs; 1 given"):
        compare_runs(runs[:1])
    with pytest.raises(ValueError, match="large is given more than once"):
        compare_runs([runs[0], runs[0].parent / "small" / ".." / "large"])
    with pytest.raises(FileNotFoundError, match="There are no results"):
        compare_runs([runs[0], tmp_path])
    assert not (runs[0].parent / "comparison.html").exists()
