"""WordNet 3.0, shipped with the package: the training text that needs no network, in every length.

* `load_wordnet` reads the 117,659 synsets of `wordnet.tsv.xz` (made by `recipes/build_wordnet.py`).
* `split_of` holds out a fixed 3 % of the synsets by a hash of the definition: half for validation, half for test.
* `wordnet_sentences`, `wordnet_pairs` and `wordnet_topics` compose single glosses and examples, pairs, and texts of
  1 to 256 tokens out of related synsets. What a held-out split says, the training split never says.

Reference: Fellbaum (ed.), WordNet: An Electronic Lexical Database, MIT Press 1998; its licence stands beside the file.
"""

from __future__ import annotations

import lzma
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hf_distill.data.length import BUCKETS, estimate_tokens
from hf_distill.data.overlap import SPLITS, normalize_text, split_by_hash

WORDNET_FILE = Path(__file__).with_name("wordnet.tsv.xz")
_MAX_TOKENS = BUCKETS[-1][1] - 4  # room for [CLS], [SEP] and the error of the estimate


class Synset(NamedTuple):
    """A set of synonyms with its meaning.

    Args:
        lexname (`str`): lexicographer file, part of speech and field, such as `"noun.animal"`.
        lemmas (`tuple[str, ...]`): the synonyms, most frequent first.
        gloss (`str`): the definition.
        examples (`tuple[str, ...]`): example phrases and sentences, often none.
        hypernym (`int`): index of the more general synset, -1 for none; for a satellite adjective its head, for an
            adverb the adjective it derives from.
    """

    lexname: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    hypernym: int


@lru_cache(maxsize=2)
def load_wordnet(path: Path = WORDNET_FILE) -> list[Synset]:
    """Read the packaged WordNet; the list is kept and shared, so do not change it.

    Args:
        path (`Path`, *optional*): the compressed table.

    Returns:
        `list[Synset]`: 117,659 synsets in the order of the database: nouns, verbs, adjectives, adverbs.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged; names the row where there is one.
    """
    remedy = "Reinstall hf-distill, or remake the file with recipes/build_wordnet.py."
    if not path.is_file():
        raise FileNotFoundError(f"WordNet's data file {path} is missing. {remedy}")
    try:
        table = lzma.decompress(path.read_bytes()).decode("utf-8")
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"WordNet's data file {path} is damaged ({error}). {remedy}") from error
    synsets = []
    for row, line in enumerate(table.splitlines()):
        columns = line.split("\t")
        if len(columns) != 5 or not columns[2].lstrip("-").isdigit():
            raise ValueError(f"{path}, row {row + 1}: not a synset of five columns: {line[:80]!r}. {remedy}")
        lexname, lemmas, back, gloss, examples = columns
        examples = tuple(examples.split("|")) if examples else ()
        synsets.append(
            Synset(lexname, tuple(lemmas.split("|")), gloss, examples, row - int(back) if back != "0" else -1)
        )
    if not synsets:
        raise ValueError(f"WordNet's data file {path} is empty. {remedy}")
    return synsets


def split_of(synset: Synset) -> str:
    """Tell the split of a synset: 97 % train, 1.5 % validation, 1.5 % test.

    The hash is of the definition's normalised text: the split depends on nothing else, and synsets that share a
    definition share the split.

    Args:
        synset (`Synset`): a synset.

    Returns:
        `str`: `"train"`, `"validation"` or `"test"`.
    """
    return split_by_hash(synset.gloss)


def _normal_texts(synsets: list[Synset]) -> set[str]:
    """Collect everything that synsets say, normalised."""
    return {normalize_text(text) for synset in synsets for text in (*synset.lemmas, synset.gloss, *synset.examples)}


@lru_cache(maxsize=1)
def _splits() -> dict[str, list[Synset]]:
    """Divide WordNet into its splits; held-out ones lose what the splits before them say too."""
    splits: dict[str, list[Synset]] = {split: [] for split in SPLITS}
    for synset in load_wordnet():
        splits[split_of(synset)].append(synset)
    taken = _normal_texts(splits["train"])
    for split in SPLITS[1:]:
        kept = []
        for synset in splits[split]:
            if normalize_text(synset.gloss) not in taken:
                lemmas = tuple(lemma for lemma in synset.lemmas if normalize_text(lemma) not in taken)
                examples = tuple(example for example in synset.examples if normalize_text(example) not in taken)
                kept.append(synset._replace(lemmas=lemmas, examples=examples))
        splits[split] = kept
        taken |= _normal_texts(kept)
    return splits


def synsets_of(split: str) -> list[Synset]:
    """List the synsets of a split.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.

    Returns:
        `list[Synset]`: the synsets in the order of the database. A held-out one keeps only the lemmas and examples
        that stand nowhere in the training split, so it may have none.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"WordNet has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    return _splits()[split]


def _sentence(text: str) -> str:
    """Write a gloss or an example as a sentence: a capital in front, a full stop behind."""
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")


def _defined(synset: Synset) -> str:
    """Write a synset as a sentence that says what its first word means; the bare gloss where it has no word."""
    if not synset.lemmas:
        return _sentence(synset.gloss)
    lemma = synset.lemmas[0]
    if synset.lexname.startswith("verb"):
        return f"To {lemma} is to {synset.gloss}."
    if not synset.lexname.startswith("noun"):
        return f"{lemma[:1].upper()}{lemma[1:]} means {synset.gloss}."
    if lemma[:1].isupper():
        return f"{lemma} is {synset.gloss}."
    return f"{'An' if lemma[:1] in 'aeiou' else 'A'} {lemma} is {synset.gloss}."


def _entry(synset: Synset) -> str:
    """Write a synset as an entry of a dictionary."""
    return f"{', '.join(synset.lemmas)}: {synset.gloss}." if synset.lemmas else _sentence(synset.gloss)


def _with_examples(synset: Synset) -> str:
    """Write the gloss and its examples as sentences."""
    return " ".join(map(_sentence, (synset.gloss, *synset.examples)))


def _examples(synset: Synset) -> str:
    """Write the examples alone as sentences; nothing where there are none."""
    return " ".join(map(_sentence, synset.examples))


def _words(synset: Synset) -> str:
    """List the words alone."""
    return ", ".join(synset.lemmas)


def _gloss(synset: Synset) -> str:
    """Give the bare gloss as WordNet has it."""
    return synset.gloss


def _first_word(synset: Synset) -> str:
    """Give the first word or phrase alone."""
    return synset.lemmas[0] if synset.lemmas else ""


# Ways to write a synset, how it is joined to the next one, and how often it is chosen, for one synset and for many.
_Style = tuple[Callable[[Synset], str], str, float]
_SINGLE_STYLES: tuple[_Style, ...] = (
    (_gloss, "", 0.30),
    (_examples, "", 0.22),
    (_entry, "", 0.12),
    (_with_examples, "", 0.12),
    (_defined, "", 0.12),
    (_first_word, "", 0.08),
    (_words, "", 0.04),
)
_JOINED_STYLES: tuple[_Style, ...] = (
    (_with_examples, " ", 0.30),
    (_defined, " ", 0.25),
    (_gloss, "; ", 0.15),
    (_entry, " ", 0.15),
    (_examples, " ", 0.12),
    (_words, ", ", 0.03),
)


def _pick(styles: tuple[_Style, ...], rng: random.Random) -> _Style:
    """Draw a style by its share."""
    return rng.choices(styles, weights=[style[2] for style in styles])[0]


def _relatives(position: int, pool: list[Synset], children: dict[int, list[int]], rng: random.Random) -> Iterator[int]:
    """Yield positions of synsets to follow the one at `position`: siblings, then neighbours of its field, then any."""
    kind = rng.random()
    if kind < 0.55 and pool[position].hypernym >= 0:
        siblings = children[pool[position].hypernym]
        yield from rng.sample(siblings, min(len(siblings), 32))
    if kind < 0.90:  # the database keeps kindred synsets together, field by field
        window = [
            near
            for near in range(max(position - 24, 0), min(position + 25, len(pool)))
            if pool[near].lexname == pool[position].lexname
        ]
        yield from rng.sample(window, len(window))
    while True:  # one text in ten has no topic at all
        yield rng.randrange(len(pool))


def _compose(
    position: int, pool: list[Synset], children: dict[int, list[int]], low: int, high: int, rng: random.Random
) -> str:
    """Join the synset at `position` with its relatives to a text of about `low` to `high` tokens."""
    write, joint, _ = _pick(_JOINED_STYLES, rng)
    target = rng.randint(low, high)
    parts: list[str] = []
    used: set[int] = set()
    length = 0
    tries = 0
    for near in _chain_first(position, _relatives(position, pool, children, rng)):
        tries += 1
        if length >= target or tries > 400:
            break
        text = write(pool[near]) if near not in used else ""
        cost = estimate_tokens(text) + (joint != " ")
        if text and length + cost <= high:
            used.add(near)
            parts.append(text)
            length += cost
        elif text and length >= low:
            break
    return joint.join(parts)


def _chain_first(first: int, rest: Iterator[int]) -> Iterator[int]:
    """Yield `first`, then the rest."""
    yield first
    yield from rest


def wordnet_topics(
    split: str = "train",
    limit: int | None = None,
    seed: int = 42,
    length_spread: Sequence[float] = (0.5, 0.3, 0.2),
) -> list[str]:
    """Compose texts of 1 to 256 tokens: single words, glosses and examples, and paragraphs about one topic.

    A pass takes every synset once, in a shuffled order, as the start of a text. A short text is the synset alone: a
    word, its gloss, its examples, a dictionary entry, a sentence that defines it. A medium or long one goes on with
    synsets under the same hypernym or near it in the same field (one in ten: with any), all written in one style,
    until it reaches a length drawn uniformly from its bucket.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`.
        limit (`int`, *optional*): number of texts; one pass (about 114,000 for train) if not given. More than a pass
            gives further passes with other neighbours and styles.
        seed (`int`, *optional*, defaults to 42): the texts and their order depend on it and on nothing else.
        length_spread (`Sequence[float]`, *optional*): weights of the buckets 1-32, 33-128 and 129-256 tokens.

    Returns:
        `list[str]`: distinct texts, shuffled.

    Raises:
        ValueError: an unknown split, a limit below one, or weights that are no three non-negative numbers.
    """
    weights = [float(weight) for weight in length_spread]
    if len(weights) != len(BUCKETS) or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"length_spread is {length_spread!r}: give {len(BUCKETS)} weights >= 0, not all zero.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: give a number of texts >= 1, or None for one pass over WordNet.")
    pool = synsets_of(split)
    children: dict[int, list[int]] = defaultdict(list)
    for position, synset in enumerate(pool):
        children[synset.hypernym].append(position)
    rng = random.Random(f"wordnet_topics {split} {seed}")
    texts: dict[str, None] = {}  # a set that keeps the order
    order = list(range(len(pool)))
    while True:
        before = len(texts)
        rng.shuffle(order)
        for position in order:
            bucket = rng.choices(range(len(BUCKETS)), weights=weights)[0]
            if bucket == 0:
                text = _pick(_SINGLE_STYLES, rng)[0](pool[position]) or pool[position].gloss
            else:
                text = _compose(
                    position, pool, children, BUCKETS[bucket][0], min(BUCKETS[bucket][1], _MAX_TOKENS), rng
                )
            if text:
                texts[text] = None
            if len(texts) == limit:
                return list(texts)
        if limit is None or len(texts) == before:
            return list(texts)


def wordnet_sentences(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """List every gloss and every example as a text of its own.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        limit (`int`, *optional*): at most so many; all (about 157,000 for train) if not given.
        seed (`int`, *optional*, defaults to 42): of the shuffled order.

    Returns:
        `list[str]`: distinct texts.
    """
    texts = list(dict.fromkeys(text for synset in synsets_of(split) for text in (synset.gloss, *synset.examples)))
    random.Random(f"wordnet_sentences {split} {seed}").shuffle(texts)
    return texts[:limit]


def wordnet_pairs(split: str = "train", limit: int | None = None, seed: int = 42) -> list[tuple[str, str]]:
    """Pair texts that mean the same, for contrastive terms without a network.

    A synset with examples gives (entry, example) for each; every synset gives (word, gloss).

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`.
        limit (`int`, *optional*): at most so many; all if not given.
        seed (`int`, *optional*, defaults to 42): of the shuffled order.

    Returns:
        `list[tuple[str, str]]`: distinct (anchor, positive) pairs.
    """
    pairs: dict[tuple[str, str], None] = {}
    for synset in synsets_of(split):
        for example in synset.examples:
            pairs[_entry(synset), example] = None
        if synset.lemmas:
            pairs[_words(synset), synset.gloss] = None
    shuffled = list(pairs)
    random.Random(f"wordnet_pairs {split} {seed}").shuffle(shuffled)
    return shuffled[:limit]
