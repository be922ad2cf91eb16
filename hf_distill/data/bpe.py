"""Train a byte-level BPE tokenizer on texts, and keep a note of how it was made beside it.

Byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Radford et al. 2019) has no unknown characters:
decoding gives back the text, in Unicode's NFC form. Words are split without GPT-2's rules for English clitics, which
would tear the Turkish "Ankara'da" into "Ankara", "'d" and "a".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_distill.teachers.files import replace_file
from hf_distill.teachers.fingerprint import hash_texts, sha256_of_tokenizer

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
MASK_TOKEN = "<mask>"
NOTE_NAME = "training.json"
_NUM_BYTES = 256
_BATCH = 1000
# A word with the space before it, a number, a run of other signs, white space.
_WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def train_bpe(
    texts: Sequence[str],
    vocab_size: int = 32_768,
    *,
    min_frequency: int = 2,
    model_max_length: int = 512,
    wrap: bool = True,
    progress: bool = True,
) -> PreTrainedTokenizerFast:
    """Train a lossless byte-level BPE tokenizer for a BERT-like encoder.

    `<s>` also serves as the classification token and `</s>` as the separator; ids 0 to 4 are `<pad>`, `<unk>`, `<s>`,
    `</s>` and `<mask>`. The same texts give the same tokenizer.

    Args:
        texts: What to train on.
        vocab_size: Tokens at most, special tokens and the 256 bytes included.
        min_frequency: Pieces that occur less often are not joined.
        model_max_length: Longest input in tokens, which the tokenizer's truncation knows.
        wrap: Put `<s>` and `</s>` around every text.
        progress: Show a progress bar.

    Returns:
        The tokenizer. It may have fewer tokens than asked for, with a warning, where the texts have no more pieces.

    Raises:
        ValueError: If there are no texts, a row is blank, or the vocabulary cannot hold the bytes.

    Example:
        >>> tokenizer = train_bpe(load_source("kenet")["text"])
        >>> tokenizer.decode(tokenizer("Ankara'da kar yağıyor.", add_special_tokens=False).input_ids)
        "Ankara'da kar yağıyor."
    """
    special = [*SPECIAL_TOKENS.values(), MASK_TOKEN]
    if vocab_size < _NUM_BYTES + len(special):
        raise ValueError(
            f"vocab_size is {vocab_size}, but the {_NUM_BYTES} bytes and {len(special)} special tokens alone take "
            f"{_NUM_BYTES + len(special)}."
        )
    hash_texts(texts)  # names the first row that has no text
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer, length=len(texts))
    if wrap:
        ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
        )
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(
            f"The texts gave only {tokenizer.get_vocab_size():,} of the {vocab_size:,} tokens: no other two pieces "
            f"stand together {min_frequency} times. Give more text, or ask for fewer tokens."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL_TOKENS,
        cls_token=SPECIAL_TOKENS["bos_token"],
        sep_token=SPECIAL_TOKENS["eos_token"],
        mask_token=MASK_TOKEN,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def take_from_hub(
    hub_id: str, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase | None, dict[str, Any]]:
    """Take a tokenizer of the Hub; where that cannot be reached, which is said, one is to be trained in its place.

    Args:
        hub_id: Its id, or a folder.
        revision: Branch, tag or commit on the Hub. Default: the main branch.
        trust_remote_code: Allow a tokenizer with its own code.

    Returns:
        The tokenizer or `None`, and what the note of the tokenizer says of this.

    Raises:
        FileNotFoundError: If the Hub answers that there is none.
    """
    from hf_distill.data.encoded_corpus import load_tokenizer

    try:
        tokenizer = load_tokenizer(hub_id, revision=revision, trust_remote_code=trust_remote_code)
    except ConnectionError:
        logger.warning(f"The Hub is out of reach: in place of {hub_id} a tokenizer is trained here.")
        return None, {"stand_in_for": hub_id}
    return tokenizer, {"from_hub": hub_id, "revision": revision or "main"}


def check_folder(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse to overwrite a tokenizer, before any work.

    Args:
        folder: Where the tokenizer is to be saved.
        overwrite: Whether one that is there may go.

    Raises:
        FileExistsError: If there is one and it may not.
        NotADirectoryError: If there is a file of that name.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a tokenizer needs a folder.")
    if not overwrite and any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise FileExistsError(f"{folder} holds a tokenizer already. Choose another folder, or give --overwrite.")


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, folder: str | Path, made: Mapping[str, Any], *, overwrite: bool = False
) -> dict[str, Any]:
    """Save a tokenizer with a note, `training.json`, of what it is and how it was made.

    Args:
        tokenizer: The tokenizer.
        folder: Where to; `AutoTokenizer.from_pretrained` loads it from there.
        made: What the note says besides, such as the sources and [`describe_texts`].
        overwrite: Replace a tokenizer that is there.

    Returns:
        The note.

    Raises:
        FileExistsError: If there is a tokenizer already.
    """
    folder = Path(folder)
    check_folder(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    note = {
        "vocab_size": len(tokenizer),
        "tokenizer_sha256": sha256_of_tokenizer(tokenizer),
        "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        **made,
    }
    replace_file(folder / NOTE_NAME, (json.dumps(note, indent=2, ensure_ascii=False) + "\n").encode())
    return note


def describe_texts(texts: Sequence[str]) -> dict[str, Any]:
    """Say which texts they are: `rows`, `characters` and `texts_sha256`, a hash over their hashes in their order.

    Args:
        texts: The texts.

    Returns:
        The three entries.

    Raises:
        ValueError: If there are none, or a row is blank.
    """
    hashes, lengths = hash_texts(texts)
    digest = hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()
    return {"rows": len(texts), "characters": int(lengths.sum()), "texts_sha256": digest}


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in batches: the trainer counts the rows of a batch one by one."""
    for start in range(0, len(texts), _BATCH):
        yield list(texts[start : start + _BATCH])


__all__ = ["check_folder", "describe_texts", "save_tokenizer", "take_from_hub", "train_bpe"]
