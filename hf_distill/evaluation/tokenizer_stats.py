"""How a tokenizer cuts text: tokens a word, lengths, unknown tokens, exact round trips, vocabulary in use, speed.

The numbers say something of text that neither the tokenizer nor the model was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizerStats:
    """What a tokenizer does with held-out text.

    Args:
        name (`str`): what to call the tokenizer in a table.
        texts (`int`): number of texts.
        words (`int`): words in them, cut at white space.
        vocabulary (`int`): distinct token ids; several surface forms may share one.
        tokens_per_word (`float`): tokens, without special ones, for each word.
        mean_length (`float`): tokens of a text as a model sees it, special ones included.
        median_length (`float`): median of the same.
        p95_length (`float`): 95th percentile of the same.
        unknown_rate (`float`): share of the tokens that is the unknown token.
        round_trip (`float`): share of the texts that come back exactly from their ids.
        vocabulary_used (`float`): share of the vocabulary that occurs in these texts.
        characters_per_second (`float`): characters encoded a second, one text after the other in one thread.
    """

    name: str
    texts: int
    words: int
    vocabulary: int
    tokens_per_word: float
    mean_length: float
    median_length: float
    p95_length: float
    unknown_rate: float
    round_trip: float
    vocabulary_used: float
    characters_per_second: float


def tokenizer_stats(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], name: str) -> TokenizerStats:
    """Measure a tokenizer on texts.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `tokenizers.Tokenizer`): fast, or written in Python; the second is that of
            a static table, which takes no special tokens.
        texts (`Sequence[str]`): held-out texts; none may be blank.
        name (`str`): what to call the tokenizer.

    Returns:
        `TokenizerStats`: the numbers.

    Raises:
        ValueError: no texts, or a blank one; names the row.

    Example:
        >>> tokenizer_stats(tokenizer, ["Bir adam dans ediyor."], "mft").tokens_per_word
        3.25
    """
    texts = list(texts)
    if not texts:
        raise ValueError("A tokenizer is measured on texts, and there are none. Give held-out text of its language.")
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"Text {row} of those that measure the tokenizer {name!r} is blank. Drop it.")
    token_ids(tokenizer, texts[:1])  # what a tokenizer builds on its first call is not its speed
    started = time.perf_counter()
    rows = token_ids(tokenizer, texts)
    seconds = time.perf_counter() - started
    counts = np.array([len(row) for row in rows])
    lengths = counts + (0 if isinstance(tokenizer, Tokenizer) else tokenizer.num_special_tokens_to_add(pair=False))
    used = {token for row in rows for token in row}
    vocabulary = len(set(tokenizer.get_vocab().values()))
    words = sum(len(text.split()) for text in texts)
    return TokenizerStats(
        name=name,
        texts=len(texts),
        words=words,
        vocabulary=vocabulary,
        tokens_per_word=float(counts.sum() / words),
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        p95_length=float(np.percentile(lengths, 95)),
        unknown_rate=_unknown_share(tokenizer, rows),
        round_trip=sum(_decode(tokenizer, row) == text for row, text in zip(rows, texts, strict=True)) / len(texts),
        vocabulary_used=len(used) / vocabulary,
        characters_per_second=sum(map(len, texts)) / seconds,
    )


def token_ids(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts one after the other, without special tokens, whatever their length.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `tokenizers.Tokenizer`): the tokenizer.
        texts (`Sequence[str]`): the texts.

    Returns:
        `list[list[int]]`: the ids of each.
    """
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    return [list(tokenizer(text, **options)["input_ids"]) for text in texts]


def unknown_rate(tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str]) -> float:
    """Measure how much of a text a tokenizer cannot read.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `tokenizers.Tokenizer`): the tokenizer.
        texts (`Sequence[str]`): the texts.

    Returns:
        `float`: share of the tokens that is the unknown token; 0 for a tokenizer that has none.
    """
    return _unknown_share(tokenizer, token_ids(tokenizer, texts))


def _unknown_share(tokenizer: PreTrainedTokenizerBase | Tokenizer, rows: Sequence[Sequence[int]]) -> float:
    """Count the unknown tokens among those of encoded texts."""
    if isinstance(tokenizer, Tokenizer):
        token = getattr(tokenizer.model, "unk_token", None)  # byte-level models have none
        unknown = None if token is None else tokenizer.token_to_id(token)
    else:
        unknown = tokenizer.unk_token_id
    total = sum(map(len, rows))
    if unknown is None or not total:
        return 0.0
    return sum(token == unknown for row in rows for token in row) / total


def _decode(tokenizer: PreTrainedTokenizerBase | Tokenizer, ids: Sequence[int]) -> str:
    """Turn ids back into text, with nothing tidied up."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


__all__ = ["TokenizerStats", "token_ids", "tokenizer_stats", "unknown_rate"]
