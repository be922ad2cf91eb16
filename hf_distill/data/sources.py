"""Named sources of training text and mixes of them.

Sources that need no network:

    wordnet          glosses and examples, one a text                          text
    wordnet_scenes   sentences like captions, of WordNet's everyday words       text
    wordnet_topics   WordNet in texts of 1 to 256 tokens                       text
    wordnet_pairs    word and gloss, entry and example                         anchor, positive
    news             sentences and paragraphs of news articles of 2017         text
    headlines        headlines and tips of health news desks                    text
    docstrings       prose of 20 to 256 tokens from installed packages         text
    stsb_train       sentences of STS-B's train split, without their scores    text
    kenet            Turkish: glosses and examples of its WordNet              text
    treebanks        Turkish: sentences of forums, blogs and Wikipedia         text
    speeches_tr      Turkish: public speeches in texts of 4 to 120 words       text
    stsb_tr_train    Turkish: sentences of STSb-TR's train split, no scores    text
    path/to/my.jsonl (json, jsonl, csv, tsv, parquet, txt)                     text, or anchor and positive

Sources on the Hub (`HUB_SOURCES`): allnli, qqp, msmarco, wikianswers, snli; all `anchor`, `positive`.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers.utils import logging

from hf_distill.data.files import is_file_name, load_file
from hf_distill.data.headlines import headline_texts
from hf_distill.data.news import news_texts
from hf_distill.data.overlap import normalize_text
from hf_distill.data.prose import installed_docstrings
from hf_distill.data.scenes import wordnet_scenes
from hf_distill.data.stsb import load_stsb
from hf_distill.data.stsb_tr import load_stsb_tr
from hf_distill.data.turkish import kenet_texts, speech_texts, treebank_texts
from hf_distill.data.wordnet import wordnet_pairs, wordnet_sentences, wordnet_topics

logger = logging.get_logger(__name__)

_SHUFFLE_BUFFER = 10_000


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Take a row that is a pair already."""
    return row["anchor"], row["positive"]


def _qqp_duplicate(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Take duplicates (label 1); 63 % of the rows are questions that differ."""
    return (row["sentence1"], row["sentence2"]) if row["label"] == 1 else None


def _snli_entailment(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Take entailments (label 0), not neutral rows (1), contradictions (2) or rows without agreement (-1)."""
    return (row["premise"], row["hypothesis"]) if row["label"] == 0 else None


def _msmarco_selected(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Take the query and the first passage that an annotator selected; a third of the queries have none."""
    passages = row["passages"]
    chosen = (
        text for text, is_chosen in zip(passages["passage_text"], passages["is_selected"], strict=True) if is_chosen
    )
    text = next(chosen, None)
    return (row["query"], text) if text else None


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hub and how its rows become pairs.

    Args:
        hub_id (`str`): the data set's id.
        config (`str`): its configuration (subset).
        to_pair (`Callable`): gives (anchor, positive) of a row, or None for a row to leave out.
        cap (`int`): rows taken at most.
        splits (`dict[str, str]`): our split names and the data set's.
        always_stream (`bool`): too big to download for the sake of `cap` rows.
    """

    hub_id: str
    config: str
    to_pair: Callable[[Mapping[str, Any]], tuple[str, str] | None]
    cap: int
    splits: dict[str, str] = field(default_factory=lambda: {"train": "train"})
    always_stream: bool = False


_THREE_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
HUB_SOURCES: dict[str, HubSource] = {
    "allnli": HubSource(
        "sentence-transformers/all-nli",
        "pair",
        _pair,
        350_000,
        {"train": "train", "validation": "dev", "test": "test"},
    ),
    "qqp": HubSource("sentence-transformers/quora-duplicates", "pair-class", _qqp_duplicate, 200_000),
    "msmarco": HubSource("microsoft/ms_marco", "v2.1", _msmarco_selected, 100_000, _THREE_SPLITS, always_stream=True),
    "wikianswers": HubSource(
        "sentence-transformers/wikianswers-duplicates", "pair", _pair, 1_000_000, always_stream=True
    ),
    "snli": HubSource("stanfordnlp/snli", "plain_text", _snli_entailment, 100_000, _THREE_SPLITS),
}
_TEXTS: dict[str, Callable[..., list[str]]] = {
    "docstrings": installed_docstrings,
    "headlines": headline_texts,
    "kenet": kenet_texts,
    "news": news_texts,
    "speeches_tr": speech_texts,
    "treebanks": treebank_texts,
    "wordnet": wordnet_sentences,
    "wordnet_scenes": wordnet_scenes,
    "wordnet_topics": wordnet_topics,
}
LOCAL_SOURCES = tuple(sorted([*_TEXTS, "stsb_train", "stsb_tr_train", "wordnet_pairs"]))
_OPTIONS = {
    "wordnet_topics": {"length_spread"},
    "docstrings": {"packages", "megabytes"},
    "stsb_tr_train": {"folder"},
}
_OFFLINE = (
    "Without a network use the sources wordnet_pairs (pairs), wordnet_topics and docstrings (texts), which every "
    "installation has, or your own file."
)


def source_names() -> list[str]:
    """List the names that `load_source` knows, files aside.

    Returns:
        `list[str]`: the names, sorted.
    """
    return sorted([*LOCAL_SOURCES, *HUB_SOURCES])


def check_source(name: str, options: Iterable[str] = ()) -> None:
    """Check the name and the options of a source without loading anything.

    Args:
        name (`str`): name of a source, or the path of a file.
        options (`Iterable[str]`, *optional*): names of the options given to it.

    Raises:
        ValueError: an unknown name (the known ones are listed) or an option that the source does not have.
    """
    if name not in source_names() and not is_file_name(name):
        close = difflib.get_close_matches(name, source_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown source {name!r}.{hint} Choose one of {', '.join(source_names())}, or the path of a "
            "json, jsonl, csv, tsv, parquet or txt file (.gz too, except parquet)."
        )
    unknown = sorted(set(options) - _OPTIONS.get(name, set()))
    if unknown:
        known = ", ".join(sorted(_OPTIONS.get(name, set()))) or "none"
        raise ValueError(f"Source {name!r} has no option {', '.join(unknown)}; its options: {known}.")


def load_from_hub(
    hub_id: str, config: str | None, split: str, streaming: bool = False, remedy: str = _OFFLINE
) -> Dataset | IterableDataset:
    """Load a data set of the Hub, with one clear error where that cannot be done.

    Args:
        hub_id (`str`): the data set's id.
        config (`str`, *optional*): its configuration.
        split (`str`): its split.
        streaming (`bool`, *optional*, defaults to `False`): read rows over the network as they are asked for.
        remedy (`str`, *optional*): what to do instead, the end of the error message.

    Returns:
        `Dataset` or `IterableDataset`: the data set.

    Raises:
        ConnectionError: the Hub cannot be reached, or does not give the data set.
    """
    try:
        return load_dataset(hub_id, config, split=split, streaming=streaming)
    except OSError as error:  # ConnectionError, DatasetNotFoundError, OfflineModeIsEnabled, HTTP errors
        raise ConnectionError(
            f"The Hub's data set {hub_id} (split {split!r}) cannot be loaded: {error} {remedy}"
        ) from error


def _hub_pairs(source: HubSource, split: str, limit: int, seed: int, streaming: bool) -> Iterator[dict[str, str]]:
    """Yield shuffled pairs of a Hub source until there are `limit`."""
    streaming = streaming or source.always_stream
    rows = load_from_hub(source.hub_id, source.config, source.splits[split], streaming)
    rows = rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER) if streaming else rows.shuffle(seed=seed)
    count = 0
    for row in rows:
        if count == limit:
            return
        pair = source.to_pair(row)
        if pair and pair[0].strip() and pair[1].strip():
            count += 1
            yield {"anchor": pair[0].strip(), "positive": pair[1].strip()}


def _local_texts(name: str, split: str, limit: int | None, seed: int, options: dict[str, Any]) -> Dataset:
    """Make the data set of a source that needs no network."""
    if name == "wordnet_pairs":
        pairs = wordnet_pairs(split, limit, seed)
        return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})
    if name in _TEXTS:
        texts = _TEXTS[name](split=split, limit=limit, seed=seed, **options)
    else:
        if split != "train":
            raise ValueError(f"Source {name!r} has no split {split!r}: it is the train split of STS as bare text.")
        pairs = load_stsb("train") if name == "stsb_train" else load_stsb_tr("train", **options)
        texts = list(dict.fromkeys([*pairs["sentence1"], *pairs["sentence2"]]))
        random.Random(f"{name} {seed}").shuffle(texts)
    return Dataset.from_dict({"text": texts[:limit]})


def load_source(
    name: str,
    split: str = "train",
    limit: int | None = None,
    seed: int = 42,
    streaming: bool = False,
    **options: Any,
) -> Dataset:
    """Load a named source of text, shuffled.

    Args:
        name (`str`): a name of `source_names()`, or the path of a file.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or a held-out `"validation"` or `"test"` where
            the source has one. Held-out text of WordNet and of the docstrings is in no training text.
        limit (`int`, *optional*): rows at most. Hub sources have a cap of their own besides.
        seed (`int`, *optional*, defaults to 42): of the shuffling.
        streaming (`bool`, *optional*, defaults to `False`): of a Hub source, read no more than is needed; the rows
            read are shuffled within a buffer of 10,000.
        **options (`Any`): `length_spread` of `wordnet_topics`; `packages` and `megabytes` of `docstrings`; `folder` of
            `stsb_tr_train`.

    Returns:
        `Dataset`: the column `text`, or `anchor` and `positive`.

    Raises:
        ValueError: an unknown name, split or option, a limit below one, a bad row in a file.
        FileNotFoundError: a file that is not there, or a Turkish source whose package is not installed.
        ConnectionError: a Hub source without a network.

    Example:
        ```python
        held_out = load_source("wordnet_topics", split="validation", limit=500, length_spread=[0, 0, 1])
        ```
    """
    check_source(name, options)
    if limit is not None and limit < 1:
        raise ValueError(f"Source {name!r}: limit is {limit}; give a number of rows >= 1, or None for all.")
    if name in LOCAL_SOURCES:
        return _local_texts(name, split, limit, seed, options)
    if name not in HUB_SOURCES:
        if split != "train":
            raise ValueError(f"The file {name} has no split {split!r}: give each split a file of its own.")
        dataset = load_file(name).shuffle(seed=seed)
        return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    source = HUB_SOURCES[name]
    if split not in source.splits:
        raise ValueError(f"Source {name!r} has no split {split!r}: choose one of {', '.join(source.splits)}.")
    rows = list(_hub_pairs(source, split, min(limit or source.cap, source.cap), seed, streaming))
    if not rows:
        raise ValueError(f"No row of {source.hub_id} (split {split!r}) passed the filter of source {name!r}.")
    return Dataset.from_list(rows)


@dataclass
class _Part:
    """One entry of a mix: what was asked of a source and what it has given."""

    weight: float
    cap: float
    arguments: dict[str, Any]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def load(self, name: str, quota: int, flat: bool, seed: int) -> bool:
        """Load `quota` rows; True where the source had fewer, which lowers the cap to what there was."""
        limit = math.ceil(quota / 2) if flat else quota  # flat: each pair gives two texts
        dataset = load_source(name, limit=limit, seed=seed, **self.arguments)
        rows = list(zip(*(dataset[column] for column in dataset.column_names), strict=True))
        self.rows = ([(text,) for row in rows for text in row] if flat else rows)[:quota]
        if len(self.rows) < quota:
            self.cap = len(self.rows)
            return True
        return False


def _parse_mix(spec: Mapping[str, float | Mapping[str, Any]]) -> dict[str, _Part]:
    """Check every entry of a mix before anything is loaded."""
    if not spec:
        raise ValueError(f"The mix is empty: give a weight for at least one of {', '.join(source_names())}.")
    parts = {}
    for name, entry in spec.items():
        arguments = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weight, cap = arguments.pop("weight", 1.0), arguments.pop("cap", None)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"Mix, source {name!r}: weight is {weight!r}; give a number above 0, or drop the source.")
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
            raise ValueError(f"Mix, source {name!r}: cap is {cap!r}; give a number of rows >= 1.")
        check_source(name, set(arguments) - {"split", "streaming"})
        parts[name] = _Part(float(weight), math.inf if cap is None else cap, arguments)
    return parts


def _quotas(parts: Mapping[str, _Part], total: int) -> dict[str, int]:
    """Divide `total` rows by weight; what a capped source cannot take goes to the others by their weights."""
    quotas: dict[str, float] = {}
    open_parts = dict(parts)
    while open_parts:
        unit = (total - sum(quotas.values())) / sum(part.weight for part in open_parts.values())
        full = {name: part.cap for name, part in open_parts.items() if part.weight * unit >= part.cap}
        quotas |= full or {name: part.weight * unit for name, part in open_parts.items()}
        open_parts = {name: part for name, part in open_parts.items() if name not in quotas}
    whole = {name: int(quotas[name]) for name in parts}
    missing = round(sum(quotas.values())) - sum(whole.values())
    for name in sorted(parts, key=lambda name: whole[name] - quotas[name])[:missing]:  # largest remainders
        whole[name] += 1
    return whole


def _is_pair_source(name: str) -> bool:
    """Tell whether a source gives pairs; a file is opened for it."""
    if name in HUB_SOURCES or name == "wordnet_pairs":
        return True
    return name not in LOCAL_SOURCES and "anchor" in load_file(name).column_names


def load_mix(
    spec: Mapping[str, float | Mapping[str, Any]], total: int, seed: int = 42, counts: dict[str, int] | None = None
) -> Dataset:
    """Mix sources by weight into one shuffled data set without duplicates.

    Args:
        spec (`Mapping`): per source its weight, or a mapping of `weight` (1 if not given), `cap` (rows at most),
            `split`, `streaming` and the source's own options.
        total (`int`): rows wanted. A source that has fewer than its share leaves the rest to the others; duplicates,
            also across sources, are dropped and not made up for.
        seed (`int`, *optional*, defaults to 42): of the sources and of the order.
        counts (`dict[str, int]`, *optional*): is filled with the rows that each source gave, duplicates left out.

    Returns:
        `Dataset`: `anchor` and `positive` if all sources are pairs; else `text`, a pair giving two texts.

    Raises:
        ValueError: an empty mix, an unknown source or option, a bad weight, cap or total.
        FileNotFoundError: a file that is not there.
        ConnectionError: a Hub source without a network.

    Example:
        ```python
        load_mix({"wordnet_topics": {"weight": 3, "length_spread": [0.4, 0.3, 0.3]}, "docstrings": 1}, total=60_000)
        ```
    """
    parts = _parse_mix(spec)
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise ValueError(f"Mix: total is {total!r}; give a number of rows >= 1.")
    pairs = {name: _is_pair_source(name) for name in parts}
    all_pairs = all(pairs.values())
    short = True
    while short:
        short = False
        for name, quota in _quotas(parts, total).items():
            part = parts[name]
            if quota > len(part.rows):
                short |= part.load(name, quota, pairs[name] and not all_pairs, seed)
            part.rows = part.rows[:quota]
    merged: dict[str, tuple[str, ...]] = {}
    for name, part in parts.items():
        before = len(merged)
        for row in part.rows:
            merged.setdefault("\n".join(map(normalize_text, row)), row)
        logger.info("Mix: %s gave %d rows, %d of them new.", name, len(part.rows), len(merged) - before)
        if counts is not None:
            counts[name] = len(merged) - before
    rows = list(merged.values())
    random.Random(f"load_mix {seed}").shuffle(rows)
    columns = ("anchor", "positive") if all_pairs else ("text",)
    return Dataset.from_dict({column: [row[i] for row in rows] for i, column in enumerate(columns)})
