"""STSb-TR from a folder or from the Hub; wrong files are refused with their row."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill.data import stsb_tr
from hf_distill.data.sources import load_source
from hf_distill.data.stsb_tr import FILES, load_stsb_tr, read_stsb_tr_file

HEADER = "genre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2\n"
ROW = 'main-captions\tMSRvid\t2012\t1\t{}\tBir adam "gitar" çalıyor.\tBir kadın\u2028şarkı söylüyor. \n'


def write(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("validation", 1500), ("test", 1379)])
def test_a_folder(tmp_path: Path, split: str, rows: int) -> None:
    write(tmp_path / FILES[split][0], *(ROW.format(5 * i / (rows - 1)) for i in range(rows)))
    dataset = load_stsb_tr(split, tmp_path)
    assert dataset.column_names == ["sentence1", "sentence2", "score"]
    assert len(dataset) == rows
    assert (min(dataset["score"]), max(dataset["score"])) == (0.0, 1.0)
    assert dataset[0]["sentence1"] == 'Bir adam "gitar" çalıyor.'  # unquoted
    assert dataset[0]["sentence2"] == "Bir kadın\u2028şarkı söylüyor."  # a row ends at a newline only


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("\ufeffsentence2\tscore\tsentence1\r\nB b\t2.5\tA a\r\n", encoding="utf-8")
    assert read_stsb_tr_file(path, 1) == {"sentence1": ["A a"], "sentence2": ["B b"], "score": [0.5]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW.format("1")], "has 1 rows, this split of STSb-TR has 2"),
        ([ROW.format("1"), "a\tb\tc\td\t1.0\tyalnız bir\n"], "row 2: 6 fields, expected are 7"),
        ([ROW.format("1"), "a\tb\tc\td\t1.0\tbir\t \n"], "row 2, column 'sentence2': no sentence but ' '"),
        ([ROW.format("1"), ROW.format("5.5")], "row 2, column 'score': '5.5' is no score"),
        ([ROW.format("çok"), ROW.format("1")], "row 1, column 'score': 'çok' is no score"),
        ([ROW.format("nan"), ROW.format("1")], "row 1, column 'score': 'nan' is no score"),
        ([], "has 0 rows"),
    ],
)
def test_bad_rows(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stsb_tr_file(write(tmp_path / "dev.tsv", *rows), 2)


def test_bad_files_and_splits(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test\.tsv is missing.*figenfikri/stsb_tr"):
        load_stsb_tr("test", tmp_path)
    (tmp_path / "dev.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\], but needs sentence1, sentence2, score"):
        load_stsb_tr("validation", tmp_path)
    (tmp_path / "dev.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_stsb_tr("validation", tmp_path)
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, validation, test"):
        load_stsb_tr("dev", tmp_path)


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(hub_id: str, config: str | None, split: str, streaming: bool) -> Dataset:
        asked.append((hub_id, split))
        rows = 1379 if split == "test" else 3
        return Dataset.from_dict(
            {"genre": ["x"] * rows, "score": [4.0] * rows, "sentence1": ["a b"] * rows, "sentence2": ["c"] * rows}
        )

    monkeypatch.setattr("hf_distill.data.sources.load_dataset", fake)
    dataset = load_stsb_tr("test")
    assert asked == [("figenfikri/stsb_tr", "test")]
    assert dataset[0] == {"sentence1": "a b", "sentence2": "c", "score": pytest.approx(0.8)}
    with pytest.raises(ValueError, match=r"figenfikri/stsb_tr \(train\) has 3 rows, this split of STSb-TR has 5749"):
        load_stsb_tr("train")

    def offline(*_: object, **__: object) -> Dataset:
        raise ConnectionError("no Hub")

    monkeypatch.setattr("hf_distill.data.sources.load_dataset", offline)
    with pytest.raises(ConnectionError, match="give the folder that holds train.tsv, dev.tsv and test.tsv"):
        load_stsb_tr("test")


def test_train_sentences_as_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stsb_tr.FILES, "train", ("train.tsv", 3))
    rows = ["a\tb\tc\td\t1\tBir.\tİki.\n", "a\tb\tc\td\t5\tİki.\tÜç.\n", "a\tb\tc\td\t2\tDört.\tBeş.\n"]
    write(tmp_path / "train.tsv", *rows)
    dataset = load_source("stsb_tr_train", folder=str(tmp_path))
    assert sorted(dataset["text"]) == sorted(["Bir.", "İki.", "Üç.", "Dört.", "Beş."])
    with pytest.raises(ValueError, match="'stsb_tr_train' has no split 'test'"):
        load_source("stsb_tr_train", split="test", folder=str(tmp_path))
