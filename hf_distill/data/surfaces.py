"""What the entries of a vocabulary stand for in a text, and how another vocabulary spells the same.

A surface form is a text whose leading space marks the start of a word: " ev" is the word, "ler" goes on inside one. The
spelling of word starts is read from the tokenizer itself: `▁ev` (SentencePiece), `Ġev` (byte-level) or, the other way
round, `##ler` (WordPiece).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

_CHARACTER_OF = bytes_to_unicode()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")

Reading = tuple[tuple[int, int], ...]  # (id, characters it covers) of a text, in order


@dataclass(frozen=True)
class Spelling:
    """How a fast tokenizer writes surface forms down.

    Args:
        kind: `"byte_level"`, `"metaspace"`, `"wordpiece"` or `"plain"` (whole words).
        start: What stands for a space.
        inner: What stands before a continuation.
    """

    kind: str
    start: str = ""
    inner: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Spelling:
        """Reads the spelling from the tokenizer's parts.

        Args:
            tokenizer: A fast tokenizer.

        Returns:
            Its spelling.

        Raises:
            ValueError: If words are marked at their end.
        """
        backend = tokenizer.backend_tokenizer
        if type(backend.model).__name__ == "WordPiece":
            return cls("wordpiece", inner=backend.model.continuing_subword_prefix)
        if getattr(backend.model, "end_of_word_suffix", None):
            raise ValueError(
                f"{type(tokenizer).__name__} marks the end of words ({backend.model.end_of_word_suffix!r}). Vocabularies "
                "that mark the start or the inside of words are supported: WordPiece, SentencePiece, byte-level BPE."
            )
        parts = [*_parts(backend.decoder), *_parts(backend.pre_tokenizer)]
        if any(part["type"] == "ByteLevel" for part in parts):
            return cls("byte_level", start=_CHARACTER_OF[ord(" ")])
        for part in parts:
            if part["type"] == "Metaspace":
                return cls("metaspace", start=part["replacement"])
            if part["type"] == "Replace" and part["content"] == " " and "String" in part["pattern"]:
                return cls("metaspace", start=part["pattern"]["String"])
        return cls("plain")

    def spell(self, text: str) -> str:
        """The vocabulary's string for a surface form, whether it has it or not."""
        if self.kind == "byte_level":
            return "".join(_CHARACTER_OF[byte] for byte in text.encode())
        if self.kind == "metaspace":
            return text.replace(" ", self.start)
        if text.startswith(" ") or self.kind == "plain":
            return text.strip(" ")
        return self.inner + text if _in_words(text) else text

    def read(self, token: str) -> str | bytes:
        """The surface form of a vocabulary's string; bytes, where they are only a part of a character."""
        if self.kind == "byte_level":
            if not all(character in _BYTE_OF for character in token):
                return token  # an added token stands for itself
            return _text(bytes(_BYTE_OF[character] for character in token))
        if self.kind == "metaspace":
            byte = _BYTE_TOKEN.fullmatch(token)
            return _text(bytes([int(byte[1], 16)])) if byte else token.replace(self.start, " ")
        if self.inner and token.startswith(self.inner) and token != self.inner:
            return token.removeprefix(self.inner)
        return " " + token if _in_words(token) else token


class SourceVocabulary:
    """Finds the ids that a source tokenizer has for surface forms.

    Args:
        tokenizer: A fast tokenizer.

    Raises:
        ValueError: If it is none, or marks words in an unknown way.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                f"The source tokenizer is a {type(tokenizer).__name__}; vectors can be taken over from a fast tokenizer "
                "only (one that is saved as tokenizer.json)."
            )
        self.tokenizer = tokenizer
        self.spelling = Spelling.of(tokenizer)
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self._strings = {index: token for token, index in self.ids.items()}
        probe = tokenizer("a", add_special_tokens=False)["input_ids"]
        # SentencePiece's dummy prefix, and WordPiece by nature: "a" is read as " a"
        self._assumes_start = bool(probe) and str(self.spelling.read(self._strings[probe[0]])).startswith(" ")

    def exact(self, text: str) -> Reading:
        """The one id of exactly this surface form, or nothing."""
        index = self.ids.get(self.spelling.spell(text))
        return () if index is None else ((index, max(len(text.strip()), 1)),)

    def compose(self, texts: Iterable[str]) -> dict[str, Reading]:
        """The ids of surface forms as the tokenizer cuts them, without special tokens and unknowns.

        Many tokenizers take every text for the start of a word. Where the surface form goes on inside one, SentencePiece's
        model is asked without the marker; elsewhere the first piece is exchanged for its continuation, if the vocabulary
        has it. White space that a tokenizer drops is read as the word-start marker.

        Args:
            texts: Surface forms.

        Returns:
            The reading of each; empty, where nothing is known.
        """
        texts = list(dict.fromkeys(texts))
        if not texts:
            return {}
        sent = [text.removeprefix(" ") for text in texts] if self._assumes_start else texts
        batch = self.tokenizer(sent, add_special_tokens=False, return_attention_mask=False, verbose=False)
        found = dict(zip(texts, batch["input_ids"], strict=True))
        if self._assumes_start and self.spelling.kind == "metaspace":
            found |= {text: self._inside(text) for text in texts if not text.startswith(" ")}
        return {text: self._reading(text, ids) for text, ids in found.items()}

    def from_bytes(self, part: bytes) -> Reading:
        """The ids of single bytes, if the vocabulary has all of them; else nothing."""
        if self.spelling.kind == "byte_level":
            names = [_CHARACTER_OF[byte] for byte in part]
        else:
            names = [f"<0x{byte:02X}>" for byte in part]
        found = [self.ids.get(name) for name in names]
        return () if None in found else tuple((index, 1) for index in found)

    def _inside(self, text: str) -> list[int]:
        """Ids of a text that does not start a word: the model alone, past what puts the marker there."""
        backend = self.tokenizer.backend_tokenizer
        text = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        spelled = self.spelling.spell(text).removeprefix(self.spelling.start)
        return [token.id for token in backend.model.tokenize(spelled)]

    def _reading(self, text: str, ids: list[int]) -> Reading:
        """Ids of a text with the characters that each covers."""
        ids = [index for index in ids if index != self.tokenizer.unk_token_id]
        if ids and not text.startswith(" "):
            first = self.spelling.read(self._strings[ids[0]])
            if isinstance(first, str) and first.startswith(" "):
                inside = self.ids.get(self.spelling.spell(first[1:]), ids[0])
                ids = ids[1:] if first == " " and text.strip() else [inside, *ids[1:]]
        if not ids and text.isspace() and self.spelling.start in self.ids:
            ids = [self.ids[self.spelling.start]]
        return tuple((index, max(len(self.spelling.read(self._strings[index]).strip()), 1)) for index in ids)


def surface_forms(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, ...] | bytes]:
    """What each id of a tokenizer stands for in a text.

    Args:
        tokenizer: A fast tokenizer, or a Python one with a method `surface_forms()` that answers this question, as
            `HfdMftTokenizer` has.

    Returns:
        For every id its surface forms, several where they share it, none where it stands for nothing; or bytes that are
        only a part of a character.

    Raises:
        ValueError: If the tokenizer is neither.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        own = getattr(tokenizer, "surface_forms", None)
        if not callable(own):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer and does not say what its ids stand for. Give it a "
                "method surface_forms() that returns a tuple of texts for every id (a leading space marks a word's start)."
            )
        return own()
    spelling, strings = Spelling.of(tokenizer), {index: token for token, index in tokenizer.get_vocab().items()}
    forms: list[tuple[str, ...] | bytes] = []
    for index in range(max(strings) + 1):
        if index not in strings or index in tokenizer.added_tokens_decoder:
            forms.append((strings[index],) if index in strings else ())
            continue
        form = spelling.read(strings[index])
        forms.append(form if isinstance(form, bytes) else (form,))
    return forms


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """The parts of a decoder or pre-tokenizer, those of sequences too."""
    if component is None:
        return
    nodes = [json.loads(component.__getstate__())]
    while nodes:
        node = nodes.pop(0)
        yield node
        nodes += [*node.get("decoders", []), *node.get("pretokenizers", [])]


def _text(part: bytes) -> str | bytes:
    """A text, where the bytes are whole characters."""
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        return part


def _in_words(token: str) -> bool:
    """Whether a WordPiece string belongs to words: punctuation stands alone and is spelled the same everywhere."""
    return token[:1].isalnum()


__all__ = ["Reading", "SourceVocabulary", "Spelling", "surface_forms"]
