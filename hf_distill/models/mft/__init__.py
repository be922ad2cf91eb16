"""The MFT tokenizer of Turkish: morphemes from three dictionaries, as a Hugging Face tokenizer."""

from __future__ import annotations

from .tokenization_mft import HfdMftTokenizer

# Saving copies the code of registered classes next to the tokenizer's configuration.
HfdMftTokenizer.register_for_auto_class("AutoTokenizer")

__all__ = ["HfdMftTokenizer"]
