"""Byte-level BPE: lossless, reproducible, loadable; what is wrong is refused before any work."""

from __future__ import annotations

import json
import unicodedata
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_distill.data.bpe import check_folder, describe_texts, save_tokenizer, train_bpe
from hf_distill.teachers.fingerprint import sha256_of_tokenizer

TEXTS = [
    "Ankara'da kar yağıyor, İstanbul'da hava güneşli.",
    "Kitapları okudum ve arkadaşlarıma anlattım.",
    "Öğrenciler 2023'te okulda çalışıyordu; öğretmenler de.",
    "Ilık bir ıhlamur çayı, İzmir'in ışıkları.",
] * 3


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(TEXTS, 320, progress=False)


@given(st.text())
@example("Ankara'da  kar\t\nyağıyor ")
@example("e\u0301 \u0130I\u0307 \U0001f469\u200d\U0001f52c \u0000")
@example(" ")
@settings(deadline=None)
def test_decoding_gives_back_the_text_in_nfc(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    assert tokenizer().decode(ids) == unicodedata.normalize("NFC", text)
    wrapped = tokenizer()(text).input_ids
    assert wrapped == [2, *ids, 3]
    assert tokenizer().unk_token_id not in ids


def test_special_tokens_and_size() -> None:
    found = tokenizer()
    assert len(found) == 320
    assert found.convert_ids_to_tokens(range(5)) == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    assert (found.pad_token_id, found.unk_token_id, found.bos_token_id, found.eos_token_id) == (0, 1, 2, 3)
    assert (found.cls_token_id, found.sep_token_id, found.mask_token_id) == (2, 3, 4)
    assert found("bir", "iki").input_ids.count(3) == 3
    assert found.model_max_length == 512
    bare = train_bpe(TEXTS, 320, wrap=False, model_max_length=64, progress=False)
    assert bare("bir").input_ids == found("bir", add_special_tokens=False).input_ids
    assert bare.model_max_length == 64


def test_words_are_split_as_turkish_is_written() -> None:
    def words(text: str) -> list[str]:
        found = tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [text[start:end] for _, (start, end) in found]

    assert words("Ankara'da 2023'te") == ["Ankara", "'", "da", " 2023", "'", "te"]
    assert words("kar,  yağıyor!") == ["kar", ",", " ", " yağıyor", "!"]


def test_the_same_texts_give_the_same_tokenizer_that_saves_and_loads(tmp_path: Path) -> None:
    again = train_bpe(TEXTS, 320, progress=False)
    assert sha256_of_tokenizer(again) == sha256_of_tokenizer(tokenizer())
    note = save_tokenizer(tokenizer(), tmp_path / "tabi", {"sources": {"kenet": 12}, **describe_texts(TEXTS)})
    assert json.loads((tmp_path / "tabi" / "training.json").read_text(encoding="utf-8")) == note
    assert (note["rows"], note["characters"], note["vocab_size"]) == (12, sum(map(len, TEXTS)), 320)
    assert note["sources"] == {"kenet": 12}
    assert describe_texts(TEXTS[::-1])["texts_sha256"] != note["texts_sha256"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tabi")
    assert sha256_of_tokenizer(loaded) == note["tokenizer_sha256"]
    assert loaded(TEXTS[0]).input_ids == tokenizer()(TEXTS[0]).input_ids
    assert loaded.decode(loaded(TEXTS[0]).input_ids, skip_special_tokens=True) == TEXTS[0]


def test_frequent_words_become_one_token() -> None:
    found = train_bpe(["güneşli güneşli bir gün"] * 20, 400, progress=False)
    assert len(found.tokenize(" güneşli")) == 1
    assert len(found) < 400  # there is no more to join


def test_a_tokenizer_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    save_tokenizer(tokenizer(), tmp_path, {})
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_folder(tmp_path)
    with pytest.raises(FileExistsError, match="holds a tokenizer already"):
        save_tokenizer(tokenizer(), tmp_path, {})
    save_tokenizer(tokenizer(), tmp_path, {"seed": 2}, overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_folder(tmp_path / "tokenizer.json")
    check_folder(tmp_path / "new")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="256 bytes and 5 special tokens alone take 261"):
        train_bpe(TEXTS, 260)
    with pytest.raises(ValueError, match="Row 1 has no text"):
        train_bpe(["a", " "], 300)
    with pytest.raises(ValueError, match="no texts"):
        train_bpe([], 300)
