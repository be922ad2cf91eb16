"""Held-out text for evaluation, from what every installation has: Python's own documentation and WordNet.

Nothing here is ever trained on: `data.prose` drops training prose that overlaps with the standard library's, and
`data.wordnet` keeps whole synsets out of its training split. Both sources are divided once more, by hash, into what
selects checkpoints (`"validation"`) and what is read once at the end (`"test"`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_distill.data.length import BUCKETS
from hf_distill.data.prose import Passage, stdlib_passages
from hf_distill.data.wordnet import synsets_of, wordnet_topics
from hf_distill.evaluation.encode import count_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPLITS = ("validation", "test")
_TOPIC_TEXTS = 3000
# Sizes at which all tasks together take half a minute with a 22M encoder on two cores.
_PASSAGES = {"validation": 600, "test": 1200}
_MODULE_TEXTS = {"train": 20, "validation": 300, "test": 500}  # for train: of each family

# Fields of WordNet's nouns with enough held-out synsets to train a probe and to test it.
LEXNAMES = (
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.communication",
    "noun.food",
    "noun.location",
    "noun.person",
    "noun.plant",
    "noun.state",
    "noun.substance",
)

# What a module of the standard library is about. Modules that newer versions of Python lack are simply absent there.
MODULE_FAMILIES = {
    "language reference": "topic",
    "windows and drawing": "tkinter turtle",
    "mail": "email smtplib imaplib mailbox poplib mailcap nntplib mimetypes quopri",
    "web and network": "http urllib wsgiref xmlrpc ftplib socketserver socket ssl telnetlib cgi cgitb ipaddress webbrowser",
    "concurrency": "asyncio threading concurrent multiprocessing queue selectors sched subprocess",
    "markup": "xml html plistlib",
    "tests, debugging and profiling": "unittest doctest pdb bdb trace traceback profile pstats cProfile timeit "
    "tracemalloc faulthandler",
    "numbers": "_pydecimal statistics fractions random numbers decimal datetime _pydatetime calendar colorsys",
    "imports and packaging": "importlib pkgutil runpy zipimport distutils modulefinder venv site sysconfig zipapp",
    "files and archives": "shutil tarfile zipfile bz2 lzma gzip pathlib tempfile os _pyio io fileinput glob filecmp "
    "posixpath ntpath genericpath fnmatch shelve dbm _compression",
    "logging and options": "logging configparser optparse argparse getopt warnings",
    "text": "difflib textwrap string re codecs json csv base64 pprint locale gettext stringprep _strptime shlex cmd",
    "introspection": "typing inspect types ast dis enum dataclasses abc symtable tokenize functools copyreg pickle "
    "pickletools weakref contextlib collections reprlib",
}
_FAMILY_OF = {module: family for family, modules in MODULE_FAMILIES.items() for module in modules.split()}


class LabelledTexts(NamedTuple):
    """Texts with a class each.

    Args:
        texts (`list[str]`): the texts.
        labels (`list[str]`): the class of each.
    """

    texts: list[str]
    labels: list[str]


def _hash(text: str) -> int:
    """Hash a text; all divisions and choices here depend on nothing else."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"hfd-eval").digest()
    return int.from_bytes(digest, "big")


def _require_split(split: str) -> None:
    """Refuse a split that held-out text does not have."""
    if split not in SPLITS:
        raise ValueError(f"Held-out text has no split {split!r}: choose one of {', '.join(SPLITS)}.")


@lru_cache(maxsize=1)
def _quarters() -> list[list[Passage]]:
    """Divide the standard library's passages in four, each ordered by hash: 0 and 1 are validation, 2 and 3 test."""
    quarters: list[list[Passage]] = [[], [], [], []]
    for passage in sorted(stdlib_passages(), key=lambda passage: _hash(f"order {passage.body}")):
        quarters[_hash(passage.body) % 4].append(passage)
    return quarters


def _passages_of(split: str) -> list[Passage]:
    """List all passages of a split."""
    _require_split(split)
    first, second = _quarters()[:2] if split == "validation" else _quarters()[2:]
    return first + second


def held_out_sentences() -> list[str]:
    """List every text that the evaluation on packaged data is made of, for `data.overlap.remove_overlap`.

    Returns:
        `list[str]`: summaries and bodies of the standard library's passages, definitions and examples of the held-out
        synsets, of both splits.
    """
    passages = [
        text for split in SPLITS for passage in _passages_of(split) for text in (passage.summary, passage.body)
    ]
    synsets = [synset for split in SPLITS for synset in synsets_of(split)]
    return passages + [text for synset in synsets for text in (synset.gloss, *synset.examples)]


def retrieval_passages(split: str) -> list[Passage]:
    """Choose the passages of a split for retrieval; the first sentence is the query for the rest.

    Args:
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `list[Passage]`: 600 or about 1,160 passages of 20 to 250 tokens, in a fixed order. The set depends on the
        version of Python.

    Raises:
        ValueError: there is no such split.
    """
    return hashed_passages(split)[: _PASSAGES[split]]


def hashed_passages(split: str) -> list[Passage]:
    """List all passages of a split in a fixed order that has nothing to do with what they say.

    Args:
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `list[Passage]`: some thousand passages; neighbours are unrelated.

    Raises:
        ValueError: there is no such split.
    """
    return sorted(_passages_of(split), key=lambda passage: _hash(passage.body))


def module_texts(split: str) -> LabelledTexts:
    """Pair passages with the family of their module: what part of Python is this about?

    Args:
        split (`str`): `"train"` (for the probe on top of the embeddings, 20 of each family), `"validation"` (300) or
            `"test"` (500).

    Returns:
        `LabelledTexts`: summary and body of passages whose module belongs to a family.

    Raises:
        ValueError: there is no such split.
    """
    if split != "train":
        _require_split(split)
    quarters = {"train": _quarters()[:1], "validation": _quarters()[1:2], "test": _quarters()[2:]}[split]
    texts, labels = [], []
    for passage in (passage for row in zip_longest(*quarters) for passage in row if passage is not None):
        family = _FAMILY_OF.get(passage.label.partition(":")[0])
        full = (labels.count(family) if split == "train" else len(labels)) >= _MODULE_TEXTS[split]
        if family is not None and not full:
            texts.append(f"{passage.summary} {passage.body}")
            labels.append(family)
    return LabelledTexts(texts, labels)


def lexname_texts(split: str) -> LabelledTexts:
    """Pair the definitions of nouns with WordNet's field: is this an animal, a food, a person?

    Args:
        split (`str`): `"train"` (for the probe, half of the held-out validation synsets), `"validation"` (the other
            half) or `"test"` (the held-out test synsets).

    Returns:
        `LabelledTexts`: glosses, about 10 words each, and one of the 12 fields of `LEXNAMES`.

    Raises:
        ValueError: there is no such split.
    """
    if split != "train":
        _require_split(split)
    texts: dict[str, str] = {}
    for synset in synsets_of("test" if split == "test" else "validation"):
        half = ("train", "validation")[_hash(synset.gloss) % 2]
        if synset.lexname in LEXNAMES and split in ("test", half):
            texts.setdefault(synset.gloss, synset.lexname)
    return LabelledTexts(list(texts), list(texts.values()))


def heldout_texts(
    tokenizer: PreTrainedTokenizerBase | Tokenizer,
    split: str = "validation",
    per_bucket: int = 200,
    seed: int = 42,
    max_length: int = 256,
) -> list[str]:
    """Choose held-out texts of every length, half from WordNet and half from the standard library where it has them.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `Tokenizer`): counts the tokens, so usually the teacher's.
        split (`str`, *optional*, defaults to `"validation"`): `"validation"` or `"test"`.
        per_bucket (`int`, *optional*, defaults to 200): texts with 1-32, 33-128 and 129-256 tokens each.
        seed (`int`, *optional*, defaults to 42): of the choice.
        max_length (`int`, *optional*, defaults to 256): longer texts are left out.

    Returns:
        `list[str]`: `per_bucket` distinct texts of each bucket up to `max_length`, in order; the same ones every time.

    Raises:
        ValueError: an unknown split, `per_bucket` below one, or more texts wanted than there are.
    """
    _require_split(split)
    if per_bucket < 1:
        raise ValueError(f"per_bucket is {per_bucket}: give at least one text for each length bucket.")
    prose = [text for passage in _passages_of(split) for text in (passage.summary, passage.body)]
    sources = [wordnet_topics(split, limit=_TOPIC_TEXTS, seed=seed), list(dict.fromkeys(prose))]
    rng = random.Random(f"heldout_texts {split} {seed}")
    pools = [_by_bucket(tokenizer, source, max_length, rng) for source in sources]
    chosen: list[str] = []
    for bucket, (low, high) in enumerate(BUCKETS):
        if low > max_length:  # a teacher with a shorter limit
            break
        glosses, prose = (pool[bucket] for pool in pools)
        from_prose = prose[: max(per_bucket // 2, per_bucket - len(glosses))]
        texts = list(dict.fromkeys(from_prose + glosses))[:per_bucket]
        if len(texts) < per_bucket:
            raise ValueError(
                f"Held-out text has {len(texts)} {split} texts of {low} to {high} tokens, not {per_bucket}. "
                "Lower per_bucket."
            )
        chosen += texts
    return chosen


def _by_bucket(
    tokenizer: PreTrainedTokenizerBase | Tokenizer, texts: Sequence[str], max_length: int, rng: random.Random
) -> list[list[str]]:
    """Sort texts into the length buckets by their number of tokens, shuffled within each."""
    lengths = count_tokens(tokenizer, texts)
    buckets = []
    for low, high in BUCKETS:
        rows = np.flatnonzero((lengths >= low) & (lengths <= min(high, max_length)))
        members = [texts[row] for row in rows]
        rng.shuffle(members)
        buckets.append(members)
    return buckets
