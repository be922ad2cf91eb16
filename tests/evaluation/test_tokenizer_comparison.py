"""The experiment's files: table, values with a hash, figures; with a part of the students, and without matplotlib."""

from __future__ import annotations

import json
import platform
import sys

import pytest
import torch
from matplotlib.image import imread

from hf_distill.evaluation.results import Results
from hf_distill.evaluation.tokenizer_comparison import compare_tokenizers, read_comparison


def cells(table, start):
    line = next(line for line in table.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table(tokenizer_runs, tmp_path):
    files = compare_tokenizers(tokenizer_runs, tmp_path / "out")
    assert {name: path.name for name, path in files.items()} == {
        "table": "tokenizers.md",
        "values": "tokenizers.json",
        "curves": "tokenizers_curves.png",
        "bars": "tokenizers_bars.png",
    }
    text = files["table"].read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    header = cells(text, "model")
    row = dict(zip(header, cells(text, "mft-e5 "), strict=True))
    assert (row["tokenizer"], row["source"], row["parameters"], row["seeds"]) == ("mft", "e5", "24.00M", "1")
    assert row["untrained P / S"].startswith("40.00 / ")
    assert row["trained P / S"].startswith("**74.00 / ")
    assert (row["% of teacher"], row["TR→EN recall@1"]) == ("98.7", "37.00")
    assert (row["tokens a word"], row["mean length"]) == ("3.30", "29.7")
    assert (row["tokens seen"], row["minutes"], row["texts/s"]) == ("2.00M", "4.5", "200.0")
    teacher = dict(zip(header, cells(text, "the-teacher (teacher)"), strict=True))
    assert (teacher["tokenizer"], teacher["% of teacher"], teacher["TR→EN recall@1"]) == ("unigram", "100.0", "37.50")
    assert text.count("&nbsp;untrained |") + text.count("&nbsp;untrained ") >= 6
    assert "![tokenizers bars](tokenizers_bars.png)" in text
    assert text.count("* **missed**") == 3
    assert "Every student of mft saw 2.00M tokens." in text
    assert "One seed a student" in text
    assert f"* Seeds: 42. Versions: python {platform.python_version()}, torch {torch.__version__}, " in text
    assert text.endswith(
        "## Commands\n\n```bash\naccelerate launch recipes/tokenizer_distill.py --stsb_tr_folder stsb-tr\n```\n"
    )  # once, for all six
    assert cells(text, "random-init")[:3] == ["random-init", "mft − tabi", "+11.00"]
    assert cells(text, "tabi   ")[1:3] == ["32,768", "1.50"]


def test_values_carry_everything_and_a_hash(tokenizer_runs, tmp_path):
    path = compare_tokenizers(tokenizer_runs, tmp_path / "out")["values"]
    values = read_comparison(tmp_path / "out")
    assert values == read_comparison(path)
    assert len(values["students"]) == 6
    student = values["students"][0]
    assert student["test"]["student"]["stsb_tr_pearson"]["mean"] == pytest.approx(0.74)
    assert student["validation_curves"]["42"]["tokens"][-1] == 2_000_000
    assert student["spent"]["minutes"]["values"] == [4.5]
    assert student["runs"] == ["mft-e5-seed42"]
    assert [stats["name"] for stats in values["tokenizers"]] == ["unigram", "mft", "tabi"]
    assert [found["met"] for found in values["verdicts"]].count(False) == 3
    assert values["differences"][0]["points"]["mean"] == pytest.approx(2.0)
    assert str(tmp_path) not in path.read_text()
    path.write_text(path.read_text().replace('"met": false', '"met": true'))
    with pytest.raises(ValueError, match="edited by hand"):
        read_comparison(path)
    with pytest.raises(FileNotFoundError, match="no table"):
        read_comparison(tmp_path)


def test_the_figures_are_pictures(tokenizer_runs, tmp_path):
    files = compare_tokenizers(tokenizer_runs, tmp_path / "out")
    for name in ("curves", "bars"):
        height, width = imread(files[name]).shape[:2]
        assert width > 1.8 * height  # two panels


def test_spread_over_seeds(make_tokenizer_run, tmp_path):
    runs = [
        make_tokenizer_run(tmp_path / str(seed), seed=seed, quality=(0.4, 0.7 + 0.01 * seed)) for seed in (1, 2, 3)
    ]
    text = compare_tokenizers(runs, tmp_path / "out")["table"].read_text(encoding="utf-8")
    row = dict(zip(cells(text, "model"), cells(text, "mft-e5 "), strict=True))
    assert row["trained P / S"].startswith("**72.00 ± 1.00 / ")
    assert row["seeds"] == "3"
    assert "37.50 |" in text  # the teacher's, without a spread
    assert "Tokenizer against tokenizer" not in text  # there is one tokenizer
    assert "± is the standard deviation over seeds" in text


def test_unequal_tokens_and_rates_are_said(make_tokenizer_run, tmp_path):
    runs = [make_tokenizer_run(tmp_path / "a")]
    assert "learning rate" not in compare_tokenizers(runs, tmp_path / "out")["table"].read_text(encoding="utf-8")
    runs.append(make_tokenizer_run(tmp_path / "b", source=None, tokens=1_000_000, rate=1e-5))
    text = compare_tokenizers(runs, tmp_path / "out")["table"].read_text(encoding="utf-8")
    assert "Highest learning rate: 5e-05 for mft-e5; 1e-05 for mft-random-init." in text
    assert "The students of mft did not see equal tokens: mft-e5 2.00M, mft-random-init 1.00M." in text


def test_a_column_for_the_tasks_of_mteb(make_tokenizer_run, tmp_path):
    runs = [make_tokenizer_run(tmp_path / "a"), make_tokenizer_run(tmp_path / "b", source=None)]
    runs += [make_tokenizer_run(tmp_path / "c", "tabi")]  # without
    for run, extra in zip(runs[:2], ({"mteb_Other_f1": 0.9}, {}), strict=True):
        results = Results.read(run)
        for row, score in zip(results.rows, (0.8, 0.5, 0.7), strict=True):  # teacher, untrained, student
            row.metrics["test"] |= {"mteb_STS22_spearman": score, "mteb_Xnli_accuracy": score - 0.1, **extra}
        results.write(run)
    text = compare_tokenizers(runs, tmp_path / "out")["table"].read_text(encoding="utf-8")
    header = cells(text, "model")
    assert header[8] == "mteb (2 tasks)"  # that both have
    rows = [line for line in text.split("\n\n")[1].splitlines()[2:]]
    assert [row.split("|")[9].strip() for row in rows] == ["75.00", "65.00", "45.00", "65.00", "45.00", "", ""]
    assert "of its tasks: STS22_spearman, Xnli_accuracy." in text
    without = compare_tokenizers(runs[2:], tmp_path / "out")["table"].read_text(encoding="utf-8")
    assert "mteb" not in without


def test_how_long_it_took(make_tokenizer_run, tmp_path):
    runs = [make_tokenizer_run(tmp_path / name, source=source) for name, source in (("a", None), ("b", "org/e5"))]

    def note():
        text = compare_tokenizers(runs, tmp_path / "out")["table"].read_text(encoding="utf-8")
        return [line for line in text.splitlines() if "of all students" in line]

    assert note()[0].startswith("* Training and scoring of all students: 12 min.")
    for minutes, said in ((1.0, "at least 10 min."), (None, "")):  # after an interruption; not known
        results = Results.read(runs[1])
        results.minutes = minutes
        results.write(runs[1])
        assert [said in line for line in note()] == ([True] if said else [])


def test_what_is_not_known_is_left_out(make_tokenizer_run, tmp_path):
    folder = make_tokenizer_run(tmp_path / "a", counted=False)
    results = Results.read(folder)
    for row in results.rows:
        row.speed = row.size = None
        del row.metrics["test"]["bitext_recall_at_1"]
    for stage in results.training.stages:
        stage.tokens = stage.texts = None
    results.write(folder)
    files = compare_tokenizers([folder], tmp_path / "out")
    assert set(files) == {"table", "values", "bars"}  # no axis for a curve
    text = files["table"].read_text(encoding="utf-8")
    assert "## Turkish to English retrieval" not in text
    assert "nan" not in text.lower().split("## notes")[0]
    assert json.loads(files["values"].read_text())["students"][0]["parameters"] is None


def test_without_matplotlib_there_is_a_table(tokenizer_runs, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hf_distill.evaluation.tokenizer_figures", None)
    files = compare_tokenizers(tokenizer_runs[:2], tmp_path / "out")
    assert set(files) == {"table", "values"}
    assert "![" not in files["table"].read_text(encoding="utf-8")
