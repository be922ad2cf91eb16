"""How vocabularies spell word starts and continuations, and how one reads another's tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from hf_distill.data.surfaces import SourceVocabulary, Spelling, surface_forms

KINDS = ["byte_level_tokenizer", "unigram_tokenizer", "llama_tokenizer", "wordpiece_tokenizer"]


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def words(tokenizer: PreTrainedTokenizerFast, *ids: int) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(ids))


def test_kinds(byte_level_tokenizer, unigram_tokenizer, llama_tokenizer, wordpiece_tokenizer) -> None:
    assert Spelling.of(byte_level_tokenizer) == Spelling("byte_level", start="Ġ")
    assert Spelling.of(unigram_tokenizer) == Spelling.of(llama_tokenizer) == Spelling("metaspace", start="▁")
    assert Spelling.of(wordpiece_tokenizer) == Spelling("wordpiece", inner="##")
    plain = Tokenizer(models.WordLevel({"ev": 0, "<unk>": 1}, unk_token="<unk>"))
    assert Spelling.of(PreTrainedTokenizerFast(tokenizer_object=plain)) == Spelling("plain")


def test_what_is_read_is_spelled_the_same(any_tokenizer) -> None:
    spelling = Spelling.of(any_tokenizer)
    for token, index in any_tokenizer.get_vocab().items():
        form = spelling.read(token)
        if index not in any_tokenizer.added_tokens_decoder and isinstance(form, str):
            whole_byte = token.startswith("<0x")  # a character's byte token has the character's own spelling
            assert whole_byte or spelling.spell(form) == token


def test_spelling() -> None:
    byte_level, wordpiece = Spelling("byte_level", start="Ġ"), Spelling("wordpiece", inner="##")
    metaspace = Spelling("metaspace", start="▁")
    assert [s.spell(" ağ") for s in (byte_level, metaspace, wordpiece)] == ["ĠaÄŁ", "▁ağ", "ağ"]
    assert [s.spell("ağ") for s in (byte_level, metaspace, wordpiece)] == ["aÄŁ", "ağ", "##ağ"]
    assert [s.read(s.spell("   ")) for s in (byte_level, metaspace)] == ["   ", "   "]
    # punctuation is a word of its own for WordPiece
    assert wordpiece.spell(".") == wordpiece.spell(" .") == "."
    assert (wordpiece.read("."), wordpiece.read("ev"), wordpiece.read("##ev")) == (".", " ev", "ev")
    # half a character
    assert byte_level.read("ÄŁ") == "ğ"
    assert byte_level.read("Ä") == b"\xc4"
    assert (metaspace.read("<0x41>"), metaspace.read("<0xC4>")) == ("A", b"\xc4")


def test_surface_forms(any_tokenizer) -> None:
    forms = surface_forms(any_tokenizer)
    assert len(forms) == len(any_tokenizer)
    assert all(forms[index][0] in any_tokenizer.all_special_tokens for index in any_tokenizer.all_special_ids)
    assert any(isinstance(form, tuple) and form[0].startswith(" ") and len(form[0]) > 2 for form in forms)


def test_every_token_finds_itself(any_tokenizer) -> None:
    vocabulary = SourceVocabulary(any_tokenizer)
    for index, form in enumerate(surface_forms(any_tokenizer)):
        if isinstance(form, bytes):
            assert vocabulary.from_bytes(form) == ((index, 1),)
        elif index not in any_tokenizer.added_tokens_decoder and not words(any_tokenizer, index)[0].startswith("<0x"):
            assert vocabulary.exact(form[0])[0][0] == index


def test_compositions_respect_where_a_form_stands(any_tokenizer) -> None:
    """Words are cut as in a text; inside a word the first piece is the continuation, where there is one."""
    vocabulary = SourceVocabulary(any_tokenizer)
    start, inside = " notes", "notes"
    readings = vocabulary.compose([start, inside])
    spelled = {text: words(any_tokenizer, *(index for index, _ in readings[text])) for text in readings}
    expected = any_tokenizer.tokenize("of notes")
    tail = expected[len(any_tokenizer.tokenize("of")) :]
    assert spelled[start] == [token for token in tail if token != any_tokenizer.unk_token]
    marker = vocabulary.spelling.start
    if marker:
        assert not spelled[inside][0].startswith(marker)
        assert "".join(spelled[inside]) == "notes"
    for text, reading in readings.items():
        covered = sum(characters for _, characters in reading)
        assert covered >= len(text.strip()) or any_tokenizer.unk_token in tail


def test_wordpiece_continuations(wordpiece_tokenizer) -> None:
    vocabulary = SourceVocabulary(wordpiece_tokenizer)
    readings = vocabulary.compose(["birdly", " birdly", "%"])
    assert words(wordpiece_tokenizer, *(index for index, _ in readings[" birdly"])) == ["bird", "##ly"]
    assert [characters for _, characters in readings[" birdly"]] == [4, 2]
    # there is no "##bird", so the word's start stands in
    assert readings["birdly"] == readings[" birdly"]
    assert words(wordpiece_tokenizer, *(i for i, _ in vocabulary.compose(["s", "sly"])["sly"])) == ["##s", "##ly"]
    assert readings["%"] == ()  # unknown


def test_white_space_is_the_marker(unigram_tokenizer, wordpiece_tokenizer) -> None:
    vocabulary = SourceVocabulary(unigram_tokenizer)
    marker = unigram_tokenizer.convert_tokens_to_ids("▁")
    assert vocabulary.exact(" ") == ((marker, 1),)
    assert vocabulary.compose(["\n", "\t"]) == {"\n": ((marker, 1),), "\t": ((marker, 1),)}
    assert SourceVocabulary(wordpiece_tokenizer).compose(["\n"]) == {"\n": ()}


def test_bytes(llama_tokenizer, byte_level_tokenizer, wordpiece_tokenizer) -> None:
    part = "€".encode()[:2]
    llama = SourceVocabulary(llama_tokenizer).from_bytes(part)
    assert words(llama_tokenizer, *(index for index, _ in llama)) == ["<0xE2>", "<0x82>"]
    assert len(SourceVocabulary(byte_level_tokenizer).from_bytes(part)) == 2
    assert SourceVocabulary(wordpiece_tokenizer).from_bytes(part) == ()


def test_what_cannot_be_read() -> None:
    class Python(PreTrainedTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="The source tokenizer is a Python; .*fast tokenizer"):
        SourceVocabulary(Python())
    with pytest.raises(ValueError, match=r"surface_forms\(\) that returns"):
        surface_forms(Python())
    ending = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    with pytest.raises(ValueError, match="marks the end of words"):
        surface_forms(PreTrainedTokenizerFast(tokenizer_object=ending))
