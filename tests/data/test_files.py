"""Users' own files: every format reads alike, every bad row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill.data.files import is_file_name, load_file
from hf_distill.data.sources import load_mix, load_source

TEXTS = ["First text, with a comma.", 'A "quoted" one.', "Ünïcode too."]
PAIRS = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]


def _write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(row["text"] for row in rows), encoding="utf-8-sig")
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        Dataset.from_list(rows).to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet", "txt"])
def test_every_format_gives_the_texts(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"my.{suffix}", [{"text": text} for text in TEXTS])
    assert is_file_name(path)
    assert load_file(path)["text"][:] == TEXTS
    dataset = load_source(path, limit=2, seed=3)
    assert len(dataset) == 2
    assert set(dataset["text"]) < set(TEXTS)
    assert load_source(path, limit=2, seed=3)["text"][:] == dataset["text"][:]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_pairs_and_extra_columns(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / f"my.{suffix}", [{"id": str(i), **row} for i, row in enumerate(PAIRS)])
    assert load_file(path).to_list() == PAIRS
    assert sorted(load_mix({path: 1.0}, total=2)["anchor"]) == ["a", "c"]
    mixed = load_mix({path: 1.0, "wordnet": 1.0}, total=8)["text"][:]
    assert len(mixed) == 8
    assert {"a", "b", "c", "d"} < set(mixed)


def test_a_name_is_no_file() -> None:
    assert not is_file_name("wordnet_topics")
    assert not is_file_name("sentence-transformers/all-nli")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.jsonl"):
        load_source(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is empty"),
        ("a.json", "[]", "is empty"),
        ("a.txt", " \n\n", "is empty"),
        ("a.csv", "text\n", "is empty"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ""}\n', "line 3, column 'text': no text but ''"),
        ("a.jsonl", '{"text": "x"}\n{"other": "y"}\n', "line 2, column 'text': no text but None"),
        ("a.jsonl", '{"text": 5}', "line 1, column 'text': no text but 5"),
        ("a.jsonl", '{"text": "x"}\n{"text": ', "line 2: not valid JSON"),
        ("a.jsonl", '"just a string"', "line 1: not an object"),
        ("a.json", '[{"text": "x"}', "not valid JSON"),
        (
            "a.json",
            '[{"anchor": "x", "positive": "y"}, {"anchor": "x", "positive": null}]',
            "row 2, column 'positive'",
        ),
        ("a.jsonl", '{"sentence": "x", "label": 1}', r"columns \['label', 'sentence'\]: name one 'text', or two"),
        ("a.csv", "text,label\nfine,1\n  ,2\n", "line 3, column 'text'"),
        ("a.tsv", "anchor\tpositive\nonly one\n", "line 2, column 'positive': no text but None"),
        ("a.parquet", "no parquet at all", r"a\.parquet is not a Parquet file"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_source(str(path))


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_file(path)


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = _write(tmp_path / "my.txt", [{"text": "x"}])
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_source(path, split="test")
