"""Scenes: short sentences in the manner of captions, composed of WordNet's everyday words, without a network.

Dictionary and news hardly ever say who does what with which thing, in plain words; people compare such sentences all the
time. These say little that is true ("Two dogs are painting a red boat."), which does not matter: the teacher says how
near they are to each other, and the student learns what each word and its place contribute.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from hf_distill.data.overlap import SPLITS, split_by_hash
from hf_distill.data.wordnet import synsets_of

# The fields of WordNet that a kind of word comes from, and how often WordNet's own sentences must use it.
_POOLS = {
    "person": (("noun.person",), 5),
    "animal": (("noun.animal",), 4),
    "thing": (("noun.artifact",), 6),
    "edible": (("noun.food", "noun.plant"), 4),
    "place": (("noun.object", "noun.location"), 6),
    "action": (
        (
            *("verb.body", "verb.change", "verb.communication", "verb.competition", "verb.consumption"),
            *("verb.contact", "verb.creation", "verb.motion", "verb.perception", "verb.possession"),
        ),
        2,
    ),
    "quality": (("adj.all",), 20),
}
_PEOPLE = ("man", "woman", "boy", "girl", "child", "person", "lady", "guy", "baby")
_COLOURS = ("red", "blue", "white", "black", "green", "yellow", "brown", "orange", "gray", "pink", "purple")
_SIZES = ("small", "large", "young", "old", "tall", "little", "big")
_POSTURES = ("sitting", "standing", "lying", "parked", "walking", "resting", "looking")
_PLACES = (
    *("on", "in", "with", "near", "next to", "in front of", "at", "under", "behind", "through", "over"),
    *("across", "from", "into", "onto", "beside"),
)
_COUNTS = ("Two", "Three", "Some", "Several", "A group of", "The", "Many")
_IRREGULAR = {
    **{"man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth"},
    **{"mouse": "mice", "goose": "geese", "knife": "knives", "wife": "wives", "leaf": "leaves", "wolf": "wolves"},
    **{"loaf": "loaves", "shelf": "shelves", "sheep": "sheep", "fish": "fish", "deer": "deer"},
}
_MAX_COUNT, _FREQUENCY_POWER = 400, 0.8
_WORD = re.compile(r"[a-z]+")


class _Pool(NamedTuple):
    """Words of one kind and how often each is drawn, cumulated."""

    words: list[str]
    weights: list[float]

    def draw(self, rng: random.Random) -> str:
        """Draw a word."""
        return rng.choices(self.words, cum_weights=self.weights)[0]


@lru_cache(maxsize=1)
def _pools() -> dict[str, _Pool]:
    """Collect the words that are mostly of one kind, weighted by how often WordNet's own sentences use them."""
    counts: Counter[str] = Counter()
    fields: dict[str, Counter[str]] = defaultdict(Counter)
    for synset in synsets_of("train"):
        for text in (synset.gloss, *synset.examples):
            counts.update(_WORD.findall(text.lower()))
        for rank, lemma in enumerate(synset.lemmas):  # a synset's first word is the usual one for its meaning
            if len(lemma) > 2 and _WORD.fullmatch(lemma):
                fields[lemma][synset.lexname] += 2 if rank == 0 else 1
    pools = {}
    for name, (wanted, min_count) in _POOLS.items():
        uses = {}
        for lemma, found in fields.items():
            if name == "action":  # most verbs are nouns too ("walk"): only the participle tells how often one is meant
                found = Counter({field: count for field, count in found.items() if field.startswith("verb.")})
            count = counts[participle(lemma) if name == "action" else lemma]
            meant = sum(found[field] for field in wanted)  # a quarter is enough: everyday words mean many things
            if count >= min_count and meant and 4 * meant >= found.total():
                uses[lemma] = min(count, _MAX_COUNT) ** _FREQUENCY_POWER
        pools[name] = _Pool(list(uses), list(accumulate(uses.values())))
    return pools


def participle(verb: str) -> str:
    """Write a verb's present participle by the usual rules: `"hop"` -> `"hopping"`, `"ride"` -> `"riding"`."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb):
        return verb + verb[-1] + "ing"
    return verb + "ing"


def plural(noun: str) -> str:
    """Write a noun's plural by the usual rules: `"box"` -> `"boxes"`, `"child"` -> `"children"`."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _one(words: str) -> str:
    """Put the indefinite article in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _described(noun: str, rng: random.Random) -> str:
    """Put an adjective in front of a noun, three times in ten."""
    if rng.random() >= 0.3:
        return noun
    plain = rng.random() < 0.7
    return f"{rng.choice(_COLOURS + _SIZES) if plain else _pools()['quality'].draw(rng)} {noun}"


def _subject(rng: random.Random) -> tuple[str, str]:
    """Say who; returns the words and the form of "to be" that goes with them."""
    kind = rng.choices(("people", "person", "animal"), weights=(40, 33, 27))[0]
    noun = rng.choice(_PEOPLE) if kind == "people" else _pools()[kind].draw(rng)
    if rng.random() < 0.25:
        return f"{rng.choice(_COUNTS)} {_described(plural(noun), rng)}", "are"
    described = _described(noun, rng)
    return (f"The {described}" if rng.random() < 0.5 else _one(described).capitalize()), "is"


def _object(rng: random.Random) -> str:
    """Draw a thing, something edible, an animal or a place."""
    return _pools()[rng.choices(("thing", "edible", "animal", "place"), weights=(60, 24, 8, 8))[0]].draw(rng)


def _scene(rng: random.Random) -> str:
    """Compose one sentence."""
    who, form = _subject(rng)
    doing, where, noun = participle(_pools()["action"].draw(rng)), rng.choice(_PLACES), _object(rng)
    what = rng.choice(
        (_one(_described(noun, rng)), f"the {_described(noun, rng)}", plural(noun), f"some {plural(noun)}")
    )
    scene = rng.choices(
        (
            f"{who} {form} {doing} {what}",
            f"{who} {form} {doing} {where} {what}",
            f"{who} {form} {doing} {what} {where} {_one(_described(_object(rng), rng))}",
            f"{who} {doing} {what}",
            f"{who} {rng.choice(_POSTURES)} {where} {what}",
            f"{who} {where} {what}",
            f"{who} {form} not {doing} {what}",
        ),
        weights=(35, 15, 15, 10, 10, 8, 7),
    )[0]
    return scene + ("." if rng.random() < 0.7 else "")


def wordnet_scenes(split: str = "train", limit: int | None = None, seed: int = 42) -> list[str]:
    """Compose short sentences in the manner of captions from WordNet's everyday words.

    Args:
        split (`str`, *optional*, defaults to `"train"`): `"train"`, `"validation"` or `"test"`; a sentence belongs to
            one split, whatever the seed.
        limit (`int`, *optional*): number of sentences; 100,000 if not given.
        seed (`int`, *optional*, defaults to 42): the sentences depend on it and on nothing else.

    Returns:
        `list[str]`: distinct sentences of about 6 to 20 tokens.

    Raises:
        ValueError: an unknown split or a limit below one.

    Example:
        >>> wordnet_scenes(limit=1)
        ['A lizard is giving greenses under a device']
    """
    if split not in SPLITS:
        raise ValueError(f"WordNet's scenes have no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: give a number of sentences >= 1.")
    rng = random.Random(f"wordnet_scenes {split} {seed}")
    scenes: dict[str, None] = {}  # a set that keeps the order
    while len(scenes) < (100_000 if limit is None else limit):
        scene = _scene(rng)
        if split_by_hash(scene) == split:
            scenes[scene] = None
    return list(scenes)
