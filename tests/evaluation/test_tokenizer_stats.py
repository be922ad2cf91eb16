"""Tokenizer statistics by hand: a word-level tokenizer with unknowns and specials, and a lossless byte-level one."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_distill.evaluation.tokenizer_stats import token_ids, tokenizer_stats, unknown_rate

TEXTS = ["bir adam", "bir  kadın", "adam adam bir xyz", "bir"]


@pytest.fixture(scope="module")
def words():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "bir": 4, "adam": 5, "kadın": 6, "hiç": 7}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=3
    )


@pytest.fixture(scope="module")
def raw_bytes():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: row for row, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_by_hand(words):
    stats = tokenizer_stats(words, TEXTS, "words")
    assert (stats.name, stats.texts, stats.words, stats.vocabulary) == ("words", 4, 9, 8)
    assert stats.tokens_per_word == 1.0
    lengths = [4, 4, 6, 3]  # with [CLS] and [SEP], not cut to the model's three
    assert stats.mean_length == np.mean(lengths)
    assert stats.median_length == 4
    assert stats.p95_length == pytest.approx(np.percentile(lengths, 95))
    assert stats.unknown_rate == pytest.approx(1 / 9)
    assert stats.round_trip == 0.5  # two spaces become one, an unknown word is lost
    assert stats.vocabulary_used == 4 / 8  # [UNK] among them
    assert stats.characters_per_second > 0
    assert unknown_rate(words, ["xyz bir"]) == 0.5
    assert token_ids(words, ["bir xyz"]) == [[4, 1]]


def test_a_byte_level_tokenizer_loses_nothing(raw_bytes):
    stats = tokenizer_stats(raw_bytes, [*TEXTS, "Çok güzel!\n ı İ", " ."], "bytes")
    assert stats.round_trip == 1.0
    assert stats.unknown_rate == 0.0
    assert stats.vocabulary == 256
    assert stats.tokens_per_word > 3


def test_the_bare_tokenizer_of_a_static_table(words):
    stats, bare = tokenizer_stats(words, TEXTS, "words"), tokenizer_stats(words.backend_tokenizer, TEXTS, "words")
    assert bare.mean_length == stats.mean_length - 2  # it takes no special tokens
    for field in ("tokens_per_word", "unknown_rate", "round_trip", "vocabulary", "vocabulary_used"):
        assert getattr(bare, field) == getattr(stats, field)


def test_several_surfaces_of_one_id_are_one_of_the_vocabulary(words, monkeypatch):
    many = {**words.get_vocab(), "BİR": 4, "Bir": 4}
    monkeypatch.setattr(type(words), "get_vocab", lambda self: many)
    assert tokenizer_stats(words, TEXTS, "words").vocabulary == 8


def test_bad_texts(words):
    with pytest.raises(ValueError, match="there are none"):
        tokenizer_stats(words, [], "words")
    with pytest.raises(ValueError, match="Text 1 .*'words' is blank"):
        tokenizer_stats(words, ["bir", " \n"], "words")


def test_the_mft_tokenizer_on_turkish():
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    from hf_distill.models.mft.tokenization_mft import HfdMftTokenizer

    stats = tokenizer_stats(HfdMftTokenizer(), ["Kitapları okudum.", "Bir adam dans ediyor."], "mft")
    assert stats.vocabulary == 32_768
    assert stats.unknown_rate == 0.0
    assert 1.5 < stats.tokens_per_word < 5
