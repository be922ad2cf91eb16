"""The MFT tokenizer (`turkish-tokenizer` 0.2.26) behind the interface of every Hugging Face tokenizer.

MFT cuts a Turkish word into a root, suffixes and, where neither fits, byte-pair pieces, each found by longest match in
a dictionary. Words are lower-cased after an `<uppercase>` token, and a space is a token of its own. Several surface forms
share an id: "lar" and "ler" are one suffix, "kitap" and "kitab" one root. So

* ids are the package's own, to the letter (a test compares them), and `tokenize` gives the surface forms that stand in
  the text;
* `convert_tokens_to_ids` knows every surface form, while `convert_ids_to_tokens` and `get_vocab` give one per id, the
  first of the dictionary;
* `decode` is the package's: it chooses surface forms by vowel harmony and is not an inverse. About two texts in five
  come back different, an unknown character as "▁u▁".

This file travels with every saved tokenizer and needs transformers and the package only.
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizer

try:
    from turkish_tokenizer import TurkishTokenizer
except ImportError:
    TurkishTokenizer = None

_INSTALL = "pip install turkish-tokenizer==0.2.26"
# SHA-256 of the three dictionaries of 0.2.26. Ids of another version mean other tokens.
_DICTIONARIES = "4a3b3b063adf488ff4518ee5f07d0592c0f13c29dc439e1aab054a31fabc7418"
_REMEMBERED_WORDS = 200_000


class HfdMftTokenizer(PreTrainedTokenizer):
    """Morphological tokenizer of Turkish with a vocabulary of 32,768 ids.

    Padding is id 5, end of sequence 6, unknown 1; there is no token for the beginning. Offsets into the text are not
    available. With `is_split_into_words=True` the words are tokenized one by one, with no space tokens between them.

    Args:
        model_max_length (`int`, defaults to 512): Longest sequence in tokens.
        append_eos (`bool`, defaults to `False`): Put `<eos>` after every sequence (a special token: `add_special_tokens`
            switches it off). The published corpora in this tokenizer's ids have none.
        **kwargs: Of every Hugging Face tokenizer, such as `padding_side`.

    Raises:
        ImportError: If the package is missing or has other dictionaries than 0.2.26.

    Example:
        >>> tokenizer = HfdMftTokenizer()
        >>> tokenizer.tokenize("Kitapları okudum")
        ['<uppercase>', 'kitap', 'ları', ' ', 'oku', 'du', 'm']
    """

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, model_max_length: int = 512, append_eos: bool = False, **kwargs: Any) -> None:
        self._package = _load_package()
        self._first_form = [forms[0] for _, forms in sorted(self._package.reverse_dict.items())]
        self._words: dict[str, list[str]] = {}
        self.append_eos = append_eos
        kwargs.update(special_tokens_pattern="eos" if append_eos else "none", token_type_ids_pattern="all_zeros")
        names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unknown>"}
        super().__init__(model_max_length=model_max_length, append_eos=append_eos, **{**names, **kwargs})

    @property
    def vocab_size(self) -> int:
        """Ids of the dictionaries, without tokens added later."""
        return len(self._first_form)

    def get_vocab(self) -> dict[str, int]:
        """One token an id, the first surface form, and the added tokens."""
        return {**{token: index for index, token in enumerate(self._first_form)}, **self._added_tokens_encoder}

    def surface_forms(self) -> list[tuple[str, ...]]:
        """What every id stands for in a text: how another model's vectors find this vocabulary.

        A leading space marks the start of a word. Roots and pieces are starts of words, suffixes are not. `<uppercase>`
        counts as a space: it stands before every capital and means next to nothing. Special and reserved ids stand for
        nothing. Chosen by the untrained clone of multilingual-e5-small on 750 validation pairs of STSb-TR, Pearson: 0.697
        with the capital letters for `<uppercase>` and pieces at both places, 0.726 with a space for `<uppercase>`, 0.737 with
        pieces at starts only (and 0.684 with roots at both places).

        Returns:
            A tuple of texts for each id, added tokens last.
        """
        suffixes = set(self._package.suffixes.values())
        texts = []
        for index, forms in sorted(self._package.reverse_dict.items()):
            if forms[0] == "<uppercase>":
                texts.append((" ",))
            elif forms[0] in ("<unknown>", "<pad>", "<eos>") or forms[0].startswith("special_"):
                texts.append(())
            elif forms[0].isspace():
                texts.append(tuple(forms))
            else:
                texts.append(tuple(form if index in suffixes else f" {form}" for form in forms))
        return texts + [(self._added_tokens_decoder[i].content,) for i in range(self.vocab_size, len(self))]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Cuts a text into surface forms.

        The dictionaries know `<pad>`, `<eos>` and `<unknown>`, so nothing has to be split off first, unless tokens were
        added.

        Args:
            text: Any text.
            **kwargs: Of [`~PreTrainedTokenizer.tokenize`].

        Returns:
            Tokens.
        """
        return self._tokenize(text) if len(self) == self.vocab_size else super().tokenize(text, **kwargs)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes nothing: the dictionaries are the package's."""
        return ()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The package's text of these tokens."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """As the package does: words between single spaces, each cut alone, so that a word's tokens can be kept."""
        tokens = []
        for position, word in enumerate(text.split(" ")):
            if position:
                tokens.append(" ")
            found = self._words.get(word)
            if found is None:
                found = self._package.tokenize(word)
                if len(self._words) < _REMEMBERED_WORDS:
                    self._words[word] = found
            tokens += found
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        return self._package.vocab.get(token, self._package.unknown_marker["id"])

    def _convert_id_to_token(self, index: int) -> str:
        self._check([index])
        return self._first_form[index]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        self._check(ids)
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [index for index in ids if index not in special]
        texts = []
        for own, run in groupby(ids, key=lambda index: index < self.vocab_size):
            part = list(run)
            texts.append(self._package.decode(part) if own else "".join(self.convert_ids_to_tokens(part)))
        return "".join(texts)

    def _check(self, ids: list[int]) -> None:
        """Refuses ids that the package would render as something else or fail on."""
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(
                    f"The id {index} lies outside the MFT vocabulary of {len(self)}: another tokenizer's?"
                )

    def _encode_plus(self, *args: Any, return_offsets_mapping: bool = False, **kwargs: Any) -> Any:
        if return_offsets_mapping:
            raise NotImplementedError("The MFT tokenizer keeps no offsets; call it with return_offsets_mapping=False.")
        return super()._encode_plus(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # the words seen so far are no part of the tokenizer: a data set's fingerprint must not depend on them
        return {**self.__dict__, "_words": {}}


def _load_package() -> Any:
    """The package's tokenizer, if its dictionaries are those of 0.2.26."""
    if TurkishTokenizer is None:
        raise ImportError(f"The MFT tokenizer needs the package turkish-tokenizer: {_INSTALL}")
    package = TurkishTokenizer()
    tables = [getattr(package, name, None) for name in ("roots", "suffixes", "bpe_tokens")]
    if hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest() != _DICTIONARIES:
        raise ImportError(
            "The installed turkish-tokenizer has other dictionaries than version 0.2.26, so the same ids would mean "
            f"other tokens. Install that version: {_INSTALL}"
        )
    return package


__all__ = ["HfdMftTokenizer"]
