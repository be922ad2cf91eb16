"""Length buckets and the token estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hf_distill.data.length import bucket_name, estimate_tokens, length_profile
from hf_distill.data.wordnet import wordnet_topics


@pytest.mark.parametrize(
    ("length", "name"),
    [
        (0, "0"),
        (1, "1-32"),
        (32, "1-32"),
        (33, "33-128"),
        (128, "33-128"),
        (129, "129-256"),
        (256, "129-256"),
        (257, "257+"),
    ],
)
def test_bucket_borders(length: int, name: str) -> None:
    assert bucket_name(length) == name


def test_profile_counts_and_keeps_empty_buckets() -> None:
    profile = length_profile([1, 3, 40, 300])
    assert [tuple(share) for share in profile] == [
        ("1-32", 2, 0.5, 2.0),
        ("33-128", 1, 0.25, 40.0),
        ("129-256", 0, 0.0, 0.0),
        ("257+", 1, 0.25, 300.0),
    ]
    assert [share.count for share in length_profile([])] == [0, 0, 0]


@given(st.lists(st.integers(0, 400)))
def test_profile_loses_nothing(lengths: list[int]) -> None:
    profile = length_profile(lengths)
    assert sum(share.count for share in profile) == len(lengths)
    assert sum(share.count * share.mean for share in profile) == pytest.approx(sum(lengths))


@given(st.text(), st.text())
def test_estimate_is_total_and_grows(left: str, right: str) -> None:
    assert estimate_tokens(left) >= 0
    assert estimate_tokens(f"{left} {right}") >= estimate_tokens(left)


def test_estimate_is_close_on_paragraphs(teacher_path: str) -> None:
    tokenizer = Tokenizer.from_file(str(Path(teacher_path) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = wordnet_topics(limit=300, length_spread=(0, 1, 1))
    true = [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    errors = [abs(estimate_tokens(text) - length) / length for text, length in zip(texts, true, strict=True)]
    assert sum(errors) / len(errors) < 0.09
