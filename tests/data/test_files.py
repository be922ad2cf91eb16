"""Users' own files: every format reads alike, every bad row is named."""

from __future__ import annotations

import gzip
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


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "txt"])
def test_files_packed_by_gzip(tmp_path: Path, suffix: str) -> None:
    plain = Path(_write(tmp_path / f"my.{suffix}", [{"text": text} for text in TEXTS]))
    packed = tmp_path / f"packed.{suffix}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert is_file_name(str(packed))
    assert load_source(str(packed), seed=3)["text"][:] == load_source(str(plain), seed=3)["text"][:]


@pytest.mark.parametrize("negative", [[], ["not this"]])
def test_rows_that_are_lists_as_in_allnli(tmp_path: Path, negative: list[str]) -> None:
    rows = [["A person on a horse.", "A person outdoors.", *negative], ["Two\u2028lines", "a pair", *negative]]
    packed = tmp_path / "AllNLI.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()))
    expected = [{"anchor": row[0], "positive": row[1]} for row in rows]
    assert load_file(packed).to_list() == expected
    whole = tmp_path / "AllNLI.json"
    whole.write_text(json.dumps(rows), encoding="utf-8")
    assert load_file(whole).to_list() == expected
    assert sorted(load_mix({str(packed): 1.0}, total=2)["positive"]) == ["A person outdoors.", "a pair"]


def test_a_name_is_no_file() -> None:
    assert not is_file_name("wordnet_topics")
    assert not is_file_name("texts.parquet.gz")
    assert not is_file_name("texts.gz")
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
        ("a.jsonl", '"just a string"', "line 1: neither an object with named fields nor a list"),
        ("a.jsonl", '["alone"]', "line 1: a list must be .*has 1 entries"),
        ("a.jsonl", '["a", "b"]\n["a", "b", "c", "d"]', "line 2: a list must be .*has 4 entries"),
        ("a.jsonl", '["a", 1]', "line 1: a list must be .*all of them texts"),
        ("a.jsonl", '["a", ["b", "c"]]', "line 1: a list must be .*all of them texts"),
        ("a.jsonl", '["a", " "]', "line 1, column 'positive': no text but ' '"),
        ("a.jsonl", '{"text": "x"}\n["a", "b"]', "line 2, column 'text': no text but None"),
        ("a.json", '["a", "b"]\n["c", "d"]', r"not valid JSON.*belongs into a \.jsonl file"),
        ("a.jsonl.gz", "no gzip at all", r"a\.jsonl\.gz cannot be read: Not a gzipped file"),
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


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    path, content = tmp_path / "a.txt.gz", bytearray(gzip.compress(" ".join(map(str, range(999))).encode()))
    if damage == "changed":
        content[40:60] = b"\xff" * 20
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"a\.txt\.gz cannot be read"):
        load_file(path)


def test_wrong_encoding(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_file(path)


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    path = _write(tmp_path / "my.txt", [{"text": "x"}])
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_source(path, split="test")
