"""Vocabulary pruning: a smaller tokenizer that cuts the kept texts as before, and the model's tables cut to match.

The pruned tokenizer is the old one's definition (tokenizer.json) with fewer entries. What an entry needs stays with it: the
characters it is made of and, for byte-pair encoding, the merges that build it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_distill.data.embedding_tables import check_vocabulary, replace_vocabulary

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
_TEXTS_PER_BATCH = 1000


def prune_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, keep_ids_or_texts: Iterable[int] | Iterable[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[int, int]]:
    """A copy of a model with fewer tokens.

    Special and added tokens, single bytes, and the characters and merges of kept tokens always stay. The texts given are cut
    into the same tokens as before, so the model's output for them does not change. (Only a word that WordPiece gave up
    on, `[UNK]`, may come out differently.)

    Args:
        model: With a table of token vectors; left as it is.
        tokenizer: Its fast tokenizer (WordPiece, byte-pair encoding, Unigram or whole words); left as it is.
        keep_ids_or_texts: The ids to keep, or texts whose tokens to keep.

    Returns:
        The model, its tokenizer, and from old ids to new ones, both ascending.

    Raises:
        ValueError: If the tokenizer is not a fast one, nothing is to be kept, or an id does not exist.

    Example:
        >>> small, tokenizer, id_map = prune_vocabulary(model, tokenizer, dataset["text"])
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: only a vocabulary in a tokenizer.json can be pruned."
        )
    check_vocabulary(model, tokenizer)
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = _wanted(tokenizer, keep_ids_or_texts)
    top = max(kept)
    if top >= model.get_input_embeddings().num_embeddings:
        raise ValueError(f"The tokenizer has ids up to {top}, beyond the model's table: this is not its tokenizer.")
    kept |= {token["id"] for token in definition["added_tokens"]} | set(tokenizer.all_special_ids)
    kept = _with_parts(definition["model"], kept)
    id_map = {old: new for new, old in enumerate(sorted(kept))}
    _renumber(definition, id_map)
    pruned = _like(tokenizer, Tokenizer.from_str(json.dumps(definition)))
    small, rows = copy.deepcopy(model), torch.tensor(sorted(kept))
    replace_vocabulary(small, pruned, lambda table: table[rows.to(table.device)])
    return small, pruned, id_map


def _wanted(tokenizer: PreTrainedTokenizerFast, keep: Iterable[int] | Iterable[str]) -> set[int]:
    """The ids asked for."""
    keep, known = list(keep), set(tokenizer.get_vocab().values())
    if not keep:
        raise ValueError("keep_ids_or_texts is empty. Give the ids to keep, or texts whose tokens to keep.")
    if all(isinstance(text, str) for text in keep):
        wanted: set[int] = set()
        for start in range(0, len(keep), _TEXTS_PER_BATCH):
            batch = tokenizer(keep[start : start + _TEXTS_PER_BATCH], return_attention_mask=False, verbose=False)
            wanted.update(*batch["input_ids"])
        return wanted
    wrong = next((index for index in keep if isinstance(index, str) or index not in known), None)
    if wrong is not None:
        raise ValueError(
            f"keep_ids_or_texts holds {wrong!r}, which is no id of the tokenizer's {len(known)}. Give ids or texts, not both."
        )
    return {int(index) for index in keep}


def _with_parts(model: dict[str, Any], kept: set[int]) -> set[int]:
    """The kept ids and all that they need to be found in a text."""
    entries = model["vocab"]
    ids = {entry[0]: index for index, entry in enumerate(entries)} if isinstance(entries, list) else dict(entries)
    strings = {index: token for token, index in ids.items()}
    needed = {token for token in ids if _BYTE_TOKEN.fullmatch(token)}
    needed |= {model["unk_token"]} if model.get("unk_token") else set()
    if model["type"] == "Unigram":
        # the cost of an unknown character hangs on the lowest score: its piece stays
        scores = [score for _, score in entries]
        needed |= {entries[index][0] for index in (scores.index(min(scores)), model["unk_id"]) if index is not None}
    needed |= {strings[index] for index in kept if index in strings}
    prefix = model.get("continuing_subword_prefix") or ""
    if model["type"] == "BPE":
        needed |= _bytes_and_merge_parts(model, needed, prefix)
    if model["type"] != "WordLevel":
        for token in list(needed):
            for character in token.removeprefix(prefix):
                needed |= {character, prefix + character}
    return kept | {ids[token] for token in needed if token in ids}


def _bytes_and_merge_parts(model: dict[str, Any], tokens: set[str], prefix: str) -> set[str]:
    """All single characters of a byte alphabet, and every token that some merge builds one of `tokens` from."""
    builders: dict[str, list[str]] = {}
    for first, second in _merges(model):
        builders.setdefault(first + second.removeprefix(prefix), []).extend((first, second))
    parts, open_tokens = set(), list(tokens)
    while open_tokens:
        new = [part for part in builders.get(open_tokens.pop(), []) if part not in parts]
        parts.update(new)
        open_tokens += new
    singles = {token for token in model["vocab"] if len(token) == 1}
    return parts | (singles if len(singles) <= 256 else set())


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a byte-pair model, in either of the two notations of tokenizer.json."""
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _renumber(definition: dict[str, Any], id_map: dict[int, int]) -> None:
    """Drops what is not in `id_map` from a tokenizer's definition and gives the rest its new ids."""
    model = definition["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in id_map]
        model["unk_id"] = id_map.get(model["unk_id"])
    else:
        vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
        model["vocab"] = {token: id_map[index] for token, index in vocabulary if index in id_map}
    if model["type"] == "BPE":
        prefix, known = model.get("continuing_subword_prefix") or "", model["vocab"]
        model["merges"] = [
            [first, second]
            for first, second in _merges(model)
            if first in known and second in known and first + second.removeprefix(prefix) in known
        ]
    for token in definition["added_tokens"]:
        token["id"] = id_map[token["id"]]
    if definition.get("padding"):
        definition["padding"]["pad_id"] = id_map[definition["padding"]["pad_id"]]
    _renumber_template(definition.get("post_processor"), id_map)


def _renumber_template(node: Any, id_map: dict[int, int]) -> None:
    """New ids for the special tokens that a post-processor puts around a text."""
    if isinstance(node, list):
        for part in node:
            _renumber_template(part, id_map)
    if not isinstance(node, dict):
        return
    for token in (node.get("special_tokens") or {}).values():
        token["ids"] = [id_map[index] for index in token["ids"]]
    for name in ("sep", "cls"):
        if name in node:
            node[name][1] = id_map[node[name][1]]
    _renumber_template(node.get("processors"), id_map)


def _like(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with another backend and the same special tokens and settings."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        extra_special_tokens=tokenizer.extra_special_tokens,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        chat_template=tokenizer.chat_template,
    )


__all__ = ["prune_vocabulary"]
