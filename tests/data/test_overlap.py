"""Overlap of training with evaluation text: found in every disguise, and nothing else removed."""

from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.data.overlap import OverlapIndex, normalize_text, remove_overlap, split_by_hash

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
words = st.lists(st.sampled_from("a b c d e f g h".split()), min_size=1, max_size=40)


def test_normalize() -> None:
    assert normalize_text("  It's  A\tman,\nplaying—Guitar! ") == "it s a man playing guitar"
    assert normalize_text("\uff21 \ufb01ne Stra\xdfe") == "a fine strasse"
    assert normalize_text("...") == ""
    assert normalize_text("İyi KADIN, Isı") == normalize_text("iyi kadın ısı") == "iyi kadin isi"


@given(st.text())
def test_normalize_twice_changes_nothing(text: str) -> None:
    assert normalize_text(normalize_text(text)) == normalize_text(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a MAN is playing; guitar", True),  # case and punctuation
        ("See: a man is playing guitar in the rain.", True),  # contained
        ("A man is playing the guitar.", False),
        ("a man", False),
        ("man man", True),  # the same, however short
        ("the man man runs", False),  # but too short to look for inside
        ("Zero one two three four five six seven eight nine ten eleven twelve thirteen, and on", True),  # 13 in a row
        ("one two three four five six seven eight nine ten eleven twelve", False),  # 12 are not enough
        ("", False),
        ("!!!", False),
    ],
)
def test_find(text: str, found: bool) -> None:
    index = OverlapIndex(["A man is playing guitar.", "Man, man!", LONG, "", "?"])
    assert (index.find(text) is not None) == found


@given(words, words, words)
def test_find_agrees_with_the_definition(evaluation: list[str], before: list[str], other: list[str]) -> None:
    index = OverlapIndex([" ".join(evaluation)])
    assert index.find(" ".join(evaluation))
    for text in (before + evaluation, before + evaluation[:13] + other, other):
        window = 13 if len(evaluation) >= 13 else len(evaluation)
        grams = {tuple(evaluation[i : i + window]) for i in range(len(evaluation) - window + 1)}
        inside = any(tuple(text[i : i + window]) in grams for i in range(len(text) - window + 1))
        expected = text == evaluation or (inside and len(evaluation) >= 4)
        assert bool(index.find(" ".join(text))) == expected


def test_remove_overlap_counts_and_shows() -> None:
    dataset = Dataset.from_dict({"anchor": ["x y", "a b", "c d"], "positive": ["p", "Held Out!", "q"], "n": [1, 2, 3]})
    kept, report = remove_overlap(dataset, ["anchor", "positive"], ["held out", "C, D"])
    assert kept["n"][:] == [1]
    assert (report.removed, report.kept) == (2, 1)
    assert report.examples == [("Held Out!", "held out"), ("c d", "C, D")]
    assert str(report) == "2 of 3 rows overlapped with evaluation text and were removed"
    kept, report = remove_overlap(dataset, "anchor", iter(["nothing alike"]))
    assert (len(kept), report.removed, report.examples) == (3, 0, [])


def test_number_of_examples_is_bounded() -> None:
    dataset = Dataset.from_dict({"text": ["same"] * 9})
    assert len(remove_overlap(dataset, "text", ["same"], num_examples=2)[1].examples) == 2


def test_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"no column \['anchor'\].*\['text'\]"):
        remove_overlap(Dataset.from_dict({"text": ["x"]}), ["anchor"], [])


def test_split_by_hash_is_pinned() -> None:
    splits = [split_by_hash(f"text {i}") for i in range(20_000)]
    assert 0.012 < splits.count("validation") / 20_000 < 0.018
    assert 0.012 < splits.count("test") / 20_000 < 0.018
    assert split_by_hash("A dog!") == split_by_hash("a DOG")
