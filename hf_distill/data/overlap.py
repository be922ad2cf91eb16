"""Keep evaluation text out of training text: find it, drop it, count it.

Texts are compared as sequences of words, blind to case, punctuation and white space. A training text overlaps with an
evaluation text when it is the same, when it contains the whole of it (from 4 words on), or when the two share 13
words in a row, the window of GPT-3's decontamination (Brown et al. 2020, appendix C, https://arxiv.org/abs/2005.14165).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

NGRAM = 13
SHORTEST = 4
SPLITS = ("train", "validation", "test")
HELD_OUT_PER_MILLE = 15  # for each of validation and test
_WORD = re.compile(r"[^\W_]+")


def normalize_text(text: str) -> str:
    """Reduce a text to its words: case-folded, without punctuation, one space between.

    Args:
        text (`str`): any text.

    Returns:
        `str`: two texts that differ only in case, punctuation, white space or Unicode form give the same.
    """
    folded = text.casefold()
    if not text.isascii():  # Turkish has an i with and one without a dot, which case folding tears apart
        folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i").replace("ı", "i")
    return " ".join(_WORD.findall(folded))


def split_by_hash(text: str) -> str:
    """Assign a text to a split by nothing but its own words: 97 % train, 1.5 % validation, 1.5 % test.

    Args:
        text (`str`): what the split hangs on, such as a definition or a file name.

    Returns:
        `str`: `"train"`, `"validation"` or `"test"`, the same on every machine and for every seed.
    """
    digest = hashlib.blake2b(normalize_text(text).encode("utf-8"), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 1000
    if bucket < HELD_OUT_PER_MILLE:
        return "validation"
    return "test" if bucket < 2 * HELD_OUT_PER_MILLE else "train"


@dataclass
class OverlapReport:
    """What `remove_overlap` did.

    Args:
        removed (`int`): rows dropped.
        kept (`int`): rows left.
        examples (`list[tuple[str, str]]`): the first few (training text, evaluation text) pairs that overlapped.
    """

    removed: int
    kept: int
    examples: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.removed:,} of {self.removed + self.kept:,} rows overlapped with evaluation text and were removed"
        )


class OverlapIndex:
    """Index of evaluation texts that answers whether a training text overlaps with any of them.

    Args:
        against (`Iterable[str]`): the evaluation texts; those without a word are passed over.
    """

    def __init__(self, against: Iterable[str]) -> None:
        self.texts: list[str] = []
        self._whole: dict[str, int] = {}
        self._ngrams: dict[int, int] = {}
        self._short: dict[tuple[str, ...], list[tuple[tuple[str, ...], int]]] = {}
        for text in against:
            normal = normalize_text(text)
            if not normal or normal in self._whole:
                continue
            number = len(self.texts)
            self.texts.append(text)
            self._whole[normal] = number
            words = tuple(normal.split())
            for start in range(len(words) - NGRAM + 1):
                self._ngrams.setdefault(hash(words[start : start + NGRAM]), number)
            if SHORTEST <= len(words) < NGRAM:
                self._short.setdefault(words[:SHORTEST], []).append((words, number))

    def find(self, text: str) -> str | None:
        """Find an evaluation text that `text` overlaps with.

        Args:
            text (`str`): a training text.

        Returns:
            `str` or `None`: the evaluation text as it was given, or None where there is no overlap.
        """
        normal = normalize_text(text)
        if normal in self._whole:
            return self.texts[self._whole[normal]]
        words = tuple(normal.split())
        for start in range(len(words) - SHORTEST + 1):
            for whole, number in self._short.get(words[start : start + SHORTEST], ()):
                if words[start : start + len(whole)] == whole:
                    return self.texts[number]
            number = self._ngrams.get(hash(words[start : start + NGRAM]))
            if number is not None and start + NGRAM <= len(words):
                return self.texts[number]
        return None


def remove_overlap(
    dataset: Dataset, columns: str | Sequence[str], against: Iterable[str], num_examples: int = 5
) -> tuple[Dataset, OverlapReport]:
    """Drop the rows of a training set that overlap with evaluation text in any of the columns.

    Args:
        dataset (`Dataset`): the training set.
        columns (`str` or `Sequence[str]`): its text columns.
        against (`Iterable[str]`): the evaluation texts.
        num_examples (`int`, *optional*, defaults to 5): how many overlapping pairs the report keeps.

    Returns:
        `tuple[Dataset, OverlapReport]`: the rows left, in their order, and the count.

    Raises:
        ValueError: a column is missing.

    Example:
        ```python
        stsb = load_stsb("test")
        dataset, report = remove_overlap(dataset, "text", [*stsb["sentence1"], *stsb["sentence2"]])
        print(report)
        ```
    """
    columns = [columns] if isinstance(columns, str) else list(columns)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(f"The data set has no column {missing}; its columns are {dataset.column_names}.")
    index = OverlapIndex(against)
    keep: list[int] = []
    report = OverlapReport(removed=0, kept=0)
    for row, texts in enumerate(zip(*(dataset[column] for column in columns), strict=True)):
        found = next(((text, match) for text in texts if (match := index.find(text)) is not None), None)
        if found is None:
            keep.append(row)
        elif len(report.examples) < num_examples:
            report.examples.append(found)
    report.kept, report.removed = len(keep), len(dataset) - len(keep)
    return (dataset.select(keep) if report.removed else dataset), report
