"""The HTML report: everything a reader needs is in the one file, nothing comes from elsewhere, texts are escaped."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest

from hf_distill.evaluation.html_report import write_html_report
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.training_summary import Origin, Stage, TextSource, TrainingSummary


class Page(HTMLParser):
    """The words of a page, its table cells row by row, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.rows, self.references, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, f"{self.open} is never closed"

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data.strip())
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def run(tmp_path, make_run):
    return make_run(tmp_path / "my-run")


def test_everything_is_in_one_file(run):
    path = write_html_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert str(run.parent) not in text
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_what_it_says(run):
    page = Page(write_html_report(run).read_text(encoding="utf-8"))
    words = " ".join(filter(None, page.words))
    rows = {row[0].strip(): row[1:] for row in page.rows}
    assert rows["STS-B Spearman"] in (
        ["0.8000", "0.7900", "0.7000", "0.2000", "98.8"],
        ["0.8200", "0.8100", "0.7200", "0.2200", "98.8"],
    )
    assert "1–32 tokens" in rows
    assert rows["peak memory, MB"][:2] == ["300.0", "300.0"]
    assert rows["50 (chosen)"] == ["0.8000", "0.9000"]
    assert rows["90"] == ["0.7500", "0.8000"]
    assert "best by stsb_spearman on validation" in words
    assert "98.8 %" in words
    assert "accelerate launch recipes/embedding_distill.py" in words
    assert "12.5 minutes" in words
    assert "5 rows < 9 & more" in words  # escaped in the source, itself on the page
    assert "torch" in words


def test_the_picture_is_in_it_and_beside_it(run):
    from matplotlib.image import imread

    text = write_html_report(run).read_text(encoding="utf-8")
    picture = base64.b64decode(re.search(r"base64,([^\"]+)", text)[1])
    assert picture == (run / "overview.png").read_bytes()
    height, width = imread(io.BytesIO(picture)).shape[:2]
    assert width >= 1200
    assert height > width  # six panels, two beside each other


def test_names_are_escaped(tmp_path, make_run):
    run = make_run(tmp_path / "run")
    results = Results.read(run)
    results.rows[1].name = "<script>alert(1)</script>"
    results.write(run)
    text = write_html_report(run).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_training_summary(run):
    results = Results.read(run)
    results.training = TrainingSummary(
        teacher=Origin("org/teacher", "abc123", "apache-2.0"),
        init_from=None,
        student="deltanet",
        settings={"mixer": "ridge"},
        losses={"cosine": 1.0},
        sources=[TextSource("wordnet", 100, 6.0)],
        texts=95,
        overlap_removed=5,
        stages=[Stage("end to end", 2000, 11.5, 1900, 28000)],
        hardware="a machine",
        learning_rate=1e-4,
        batch="6,144 padded tokens",
        not_measured=["Nothing was measured in other languages."],
    )
    results.write(run)
    words = " ".join(filter(None, Page(write_html_report(run).read_text(encoding="utf-8")).words))
    for expected in (
        "org/teacher, abc123, apache-2.0",
        "random weights",
        "deltanet (mixer ridge)",
        "cosine 1.0",
        "95 rows; 5 removed for overlap. wordnet (weight 6, 100 rows)",
        "end to end: 2,000 steps, 11.5 minutes, 1,900 texts, 28,000 tokens",
        "0.0001",
        "What was not measured Nothing was measured in other languages.",
    ):
        assert expected in words


def test_a_run_without_log_teacher_or_choice(tmp_path):
    (tmp_path / "bare").mkdir()
    Results("bare", [ModelRow("student", "s", metrics={"validation": {"stsb_spearman": 0.5}})]).write(
        tmp_path / "bare"
    )
    page = Page(write_html_report(tmp_path / "bare").read_text(encoding="utf-8"))
    words = " ".join(filter(None, page.words))
    assert "the test split has not been read" in words
    assert "do not say which checkpoint" in words
    assert page.references == []
    assert not (tmp_path / "bare" / "overview.png").exists()


def test_a_log_that_is_given_counts(run, run_log):
    text = write_html_report(run, run_log[:1]).read_text(encoding="utf-8")
    assert "50 (chosen)" not in text


def test_bad_folders_leave_nothing(tmp_path, make_run):
    with pytest.raises(FileNotFoundError, match="There is no run folder"):
        write_html_report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="There are no results"):
        write_html_report(tmp_path / "empty")
    run = make_run(tmp_path / "edited")
    path = run / "results.json"
    path.write_text(path.read_text().replace("0.79", "0.99"))
    with pytest.raises(ValueError, match="edited by hand"):
        write_html_report(run)
    assert not (run / "report.html").exists()
