"""The packaged WordNet: complete, split without leaks, composed into the lengths that were asked for."""

from __future__ import annotations

import importlib.util
import lzma
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hf_distill.data.length import length_profile
from hf_distill.data.overlap import normalize_text
from hf_distill.data.wordnet import (
    WORDNET_FILE,
    load_wordnet,
    split_of,
    synsets_of,
    wordnet_pairs,
    wordnet_sentences,
    wordnet_topics,
)

RECIPE = Path(__file__).parents[2] / "recipes" / "build_wordnet.py"
DEBIAN_FOLDER = Path("/usr/share/wordnet")


def test_every_synset_is_there() -> None:
    synsets = load_wordnet()
    parts = Counter(synset.lexname.split(".")[0] for synset in synsets)
    assert parts == {"noun": 82115, "verb": 13767, "adj": 18156, "adv": 3621}  # wnstats(7WN)
    assert all(synset.gloss and synset.lemmas and all(synset.lemmas) for synset in synsets)
    assert sum(len(synset.examples) for synset in synsets) > 48_000
    assert load_wordnet() is synsets


def test_known_synset_and_its_hypernyms() -> None:
    synsets = load_wordnet()
    dog = next(s for s in synsets if s.lemmas[0] == "dog" and s.lexname == "noun.animal")
    assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
    assert dog.gloss.startswith("a member of the genus Canis")
    assert dog.examples == ("the dog barked all night",)
    assert synsets[dog.hypernym].lemmas[0] == "canine"
    chain = []
    index = dog.hypernym
    while index >= 0:
        chain.append(synsets[index].lemmas[0])
        index = synsets[index].hypernym
    assert chain[-1] == "entity"
    huge = next(s for s in synsets if s.lemmas[0] == "huge")
    assert "large" in synsets[huge.hypernym].lemmas  # a satellite leads to its head


def test_glosses_hold_no_markup() -> None:
    for synset in load_wordnet()[::7]:
        assert not any("_" in lemma or lemma.endswith(("(p)", "(a)", "(ip)")) for lemma in synset.lemmas)
        assert '"' not in synset.gloss
        assert not any('"' in example or example != example.strip() for example in synset.examples)


def test_split_is_fixed_and_about_three_per_cent() -> None:
    synsets = load_wordnet()
    counts = Counter(map(split_of, synsets))
    assert 0.025 < (counts["validation"] + counts["test"]) / len(synsets) < 0.035
    assert split_of(synsets[0]._replace(lemmas=("other",), examples=())) == split_of(synsets[0])
    assert len(synsets_of("train")) == counts["train"]
    for split in ("validation", "test"):  # a few definitions are an example or a word elsewhere
        assert 0.98 * counts[split] < len(synsets_of(split)) <= counts[split]


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_held_out_texts_are_never_training_texts(held_out: str) -> None:
    train = {normalize_text(text) for text in wordnet_sentences("train")}
    train |= {normalize_text(lemma) for synset in synsets_of("train") for lemma in synset.lemmas}
    texts = wordnet_topics(held_out)
    assert len(texts) > 1500
    assert not train & {normalize_text(text) for text in texts}
    for synset in synsets_of(held_out):
        assert normalize_text(synset.gloss) not in train
        assert not train & {normalize_text(text) for text in synset.lemmas + synset.examples}
    assert not set(texts) & set(wordnet_topics("train", limit=5000))


def test_train_texts_never_hold_a_held_out_gloss() -> None:
    held_out = [s.gloss for split in ("validation", "test") for s in synsets_of(split) if len(s.gloss.split()) > 8]
    everything = "\n".join(wordnet_topics("train", limit=20_000)).lower()
    known = "\n".join(text for s in synsets_of("train") for text in (s.gloss, *s.examples)).lower()
    leaked = [g for g in held_out if g.lower() in everything and g.lower() not in known]
    assert leaked == []


@pytest.mark.parametrize("spread", [(0.5, 0.3, 0.2), (0.2, 0.3, 0.5), (0, 0, 1)])
def test_lengths_follow_the_spread(spread: tuple[float, ...], teacher_path: str) -> None:
    tokenizer = Tokenizer.from_file(str(Path(teacher_path) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = wordnet_topics(limit=1200, length_spread=spread)
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    profile = length_profile(lengths)
    for bucket, share in zip(profile, spread, strict=False):
        assert bucket.share == pytest.approx(share, abs=0.09), profile
    assert sum(length > 256 for length in lengths) < 0.08 * len(lengths)
    assert max(lengths) < 420


def test_topics_are_deterministic_distinct_and_varied() -> None:
    first = wordnet_topics(limit=3000, seed=1)
    assert first == wordnet_topics(limit=3000, seed=1)
    assert first[:1000] == wordnet_topics(limit=1000, seed=1)
    assert first != wordnet_topics(limit=3000, seed=2)
    assert len(set(first)) == 3000
    assert sum(" " not in text for text in first) > 30  # single words
    assert sum(text.startswith(("A ", "An ")) and " is " in text for text in first) > 100  # running prose
    assert sum("; " in text for text in first) > 100
    assert sum(text.count(". ") >= 8 for text in first) > 200


def test_joined_synsets_share_a_topic() -> None:
    by_gloss = {synset.gloss: synset for synset in synsets_of("train")}
    joined = [text.split("; ") for text in wordnet_topics(limit=4000, length_spread=(0, 1, 0))]
    groups = [[by_gloss[part] for part in parts if part in by_gloss] for parts in joined]
    groups = [group for group in groups if len(group) > 2]
    alike = sum(len({synset.lexname for synset in group}) == 1 for group in groups)
    assert len(groups) > 100
    assert alike > 0.6 * len(groups)


def test_a_limit_above_one_pass_gives_new_texts() -> None:
    texts = wordnet_topics("test", limit=4000)
    assert len(texts) == len(set(texts)) == 4000
    assert len(wordnet_topics("test", limit=100_000, length_spread=(1, 0, 0))) < 100_000  # ends when nothing is new


def test_pairs_and_sentences() -> None:
    pairs = wordnet_pairs(limit=2000)
    assert len(set(pairs)) == 2000
    assert all(anchor and positive and anchor != positive for anchor, positive in pairs)
    assert pairs == wordnet_pairs(limit=2000)
    examples = {example for synset in load_wordnet() for example in synset.examples}
    assert 0.2 < sum(positive in examples for _, positive in pairs) / 2000 < 0.5
    assert len(wordnet_sentences(limit=10)) == 10
    assert set(wordnet_sentences("validation")).isdisjoint(wordnet_sentences("train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "no split 'dev'.*validation"),
        ({"limit": 0}, "limit is 0"),
        ({"length_spread": (1, 1)}, "give 3 weights"),
        ({"length_spread": (1, -1, 1)}, "give 3 weights"),
        ({"length_spread": (0, 0, 0)}, "not all zero"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wordnet_topics(**arguments)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\. Reinstall"):
        load_wordnet(tmp_path / "none.xz")
    (tmp_path / "cut.xz").write_bytes(WORDNET_FILE.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_wordnet(tmp_path / "cut.xz")
    (tmp_path / "bad.xz").write_bytes(lzma.compress(b"noun.animal\tdog\t0\ta dog\t\nnoun.animal\tcat\n"))
    with pytest.raises(ValueError, match="row 2: not a synset"):
        load_wordnet(tmp_path / "bad.xz")
    (tmp_path / "empty.xz").write_bytes(lzma.compress(b""))
    with pytest.raises(ValueError, match="is empty"):
        load_wordnet(tmp_path / "empty.xz")


def test_licence_is_beside_the_file_which_is_small() -> None:
    notice = WORDNET_FILE.with_name("wordnet-LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert WORDNET_FILE.stat().st_size < 3_500_000


NOUNS = """  1 This is the licence.
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which exists
00001930 05 n 02 hunting_dog 0 Canis 1 001 @ 00001740 n 0000 | a dog; used to hunt; "the dog barked"; "good dog"
"""
VERBS = '00001740 29 v 01 breathe 0 000 01 + 02 00 | draw air; "I can breathe better\n'
ADJECTIVES = """00001740 00 a 01 able 0 001 ! 00002098 a 0101 | having power
00001930 00 s 01 capable(p) 0 001 & 00001740 a 0000 | e.g., "capable of it"
"""
ADVERBS = "00001740 02 r 01 ably 0 001 \\ 00001740 a 0101 | in an able manner\n"


def _builder():  # noqa: ANN202
    spec = importlib.util.spec_from_file_location("build_wordnet", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_script_reads_the_database_format(tmp_path: Path) -> None:
    for name, content in (("noun", NOUNS), ("verb", VERBS), ("adj", ADJECTIVES), ("adv", ADVERBS)):
        (tmp_path / f"data.{name}").write_text(content, encoding="utf-8")
    builder = _builder()
    digest = builder.main(tmp_path, tmp_path / "out.xz")
    synsets = load_wordnet(tmp_path / "out.xz")
    assert [s.hypernym for s in synsets] == [-1, 0, -1, -1, 3, 3]
    assert synsets[1] == (
        "noun.animal",
        ("hunting dog", "Canis"),
        "a dog; used to hunt",
        ("the dog barked", "good dog"),
        0,
    )
    assert synsets[2].examples == ("I can breathe better",)
    assert (synsets[4].lemmas, synsets[4].examples) == (("capable",), ("capable of it",))
    assert builder.main(tmp_path, tmp_path / "again.xz") == digest
    (tmp_path / "data.adv").unlink()
    with pytest.raises(SystemExit, match=r"data\.adv is missing"):
        builder.main(tmp_path, tmp_path / "out.xz")


@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="WordNet's database is not installed")
def test_packaged_file_is_what_the_build_script_makes() -> None:
    assert _builder().build_table(DEBIAN_FOLDER).encode("utf-8") == lzma.decompress(WORDNET_FILE.read_bytes())
