"""Sentences in the manner of captions, composed of WordNet's words."""

from __future__ import annotations

import re

import pytest

from hf_distill.data.length import estimate_tokens
from hf_distill.data.overlap import SPLITS
from hf_distill.data.scenes import participle, plural, wordnet_scenes
from hf_distill.data.sources import load_source


def test_the_seed_decides_and_nothing_else() -> None:
    scenes = wordnet_scenes(limit=300)
    assert scenes == wordnet_scenes(limit=300)
    assert scenes[:100] == wordnet_scenes(limit=100)
    assert len(set(scenes)) == 300
    assert len(set(scenes) & set(wordnet_scenes(limit=300, seed=1))) < 30


def test_no_sentence_stands_in_two_splits() -> None:
    found = [set(wordnet_scenes(split, limit=200)) for split in SPLITS]
    assert sum(map(len, found)) == len(set.union(*found)) == 600


def test_sentences_are_short_and_well_formed() -> None:
    for scene in wordnet_scenes(limit=500):
        assert 3 <= estimate_tokens(scene) <= 40, scene
        assert re.fullmatch(r"[A-Z][a-z]*( [a-z]+)+\.?", scene), scene
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", scene.lower()), scene


@pytest.mark.parametrize(
    ("verb", "form"),
    [("hop", "hopping"), ("ride", "riding"), ("tie", "tying"), ("see", "seeing"), ("play", "playing")],
)
def test_participles(verb: str, form: str) -> None:
    assert participle(verb) == form


@pytest.mark.parametrize(
    ("noun", "form"), [("box", "boxes"), ("child", "children"), ("pony", "ponies"), ("boy", "boys"), ("dog", "dogs")]
)
def test_plurals(noun: str, form: str) -> None:
    assert plural(noun) == form


def test_the_source_has_a_name() -> None:
    assert load_source("wordnet_scenes", limit=5)["text"][:] == wordnet_scenes(limit=5)


@pytest.mark.parametrize(("arguments", "message"), [({"split": "dev"}, "no split"), ({"limit": 0}, "limit is 0")])
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wordnet_scenes(**arguments)
