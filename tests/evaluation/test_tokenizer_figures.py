"""The figures: one line a student, a mark for the teacher, whiskers where there are several seeds."""

from __future__ import annotations

import pytest

from hf_distill.evaluation.tokenizer_figures import draw_bars, draw_learning_curves
from hf_distill.evaluation.tokenizer_students import read_students


def test_curves_of_all_students(tokenizer_runs):
    students = read_students(tokenizer_runs)
    figure = draw_learning_curves(students)
    assert [axis.get_xlabel() for axis in figure.axes] == ["tokens seen, millions", "texts seen, thousands"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {*(student.name for student in students), "teacher, 77.0"}
    assert lines["tabi-e5"].get_xdata()[-1] == pytest.approx(1.0)
    assert lines["mft-e5"].get_ydata()[-1] == pytest.approx(74.0)
    assert lines["mft-e5"].get_color() == lines["tabi-e5"].get_color() != lines["mft-random-init"].get_color()
    assert lines["mft-e5"].get_linestyle() != lines["tabi-e5"].get_linestyle()


def test_seeds_are_a_mean_in_a_band_up_to_the_shortest(make_tokenizer_run, tmp_path):
    runs = [
        make_tokenizer_run(tmp_path / str(s), seed=s, quality=(0.4, 0.68 + 0.02 * s), tokens=s * 10**6) for s in (1, 2)
    ]
    axis = draw_learning_curves(read_students(runs)).axes[0]
    line = axis.get_lines()[0]
    assert line.get_xdata()[-1] == pytest.approx(1.0)
    assert line.get_ydata()[0] == pytest.approx(40.0)
    assert len(axis.collections) == 1


def test_bars_stand_in_pairs_by_source(tokenizer_runs):
    figure = draw_bars(read_students(tokenizer_runs))
    assert len(figure.axes) == 2
    axis = figure.axes[0]
    labels = [label.get_text().split("\n")[0] for label in axis.get_xticklabels()]
    assert labels == ["mft", "tabi"] * 3
    heights = [bar.get_height() for bar in axis.patches if bar.get_height()]
    assert heights[:4] == pytest.approx([40, 74, 35, 72])
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert {"teacher, 75.0", "90 % of the teacher, 67.5", "untrained", "trained"} == set(legend)
    assert axis.get_ylim()[1] > 75
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_whiskers_only_with_several_seeds(make_tokenizer_run, tmp_path):
    runs = [make_tokenizer_run(tmp_path / str(seed), seed=seed, quality=(0.4, 0.6 + 0.05 * seed)) for seed in (1, 2)]
    assert draw_bars(read_students(runs[:1])).axes[0].containers[-1].__class__.__name__ == "BarContainer"
    kinds = {type(container).__name__ for container in draw_bars(read_students(runs)).axes[0].containers}
    assert "ErrorbarContainer" in kinds


def test_without_a_log_there_are_no_curves(make_tokenizer_run, tmp_path):
    run = make_tokenizer_run(tmp_path / "a")
    (run / "trainer_state.json").unlink()
    assert draw_learning_curves(read_students([run])) is None
