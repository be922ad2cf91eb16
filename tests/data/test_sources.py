"""Named sources and mixes: filters really filter, weights and caps hold, errors come before any work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.data import news, sources
from hf_distill.data.length import estimate_tokens, length_profile
from hf_distill.data.overlap import normalize_text
from hf_distill.data.sources import HUB_SOURCES, LOCAL_SOURCES, _Part, _quotas, load_mix, load_source, source_names
from hf_distill.data.wordnet import wordnet_pairs, wordnet_sentences


def _passages(*selected: int) -> dict[str, list]:
    return {
        "is_selected": list(selected),
        "passage_text": [f"passage {i}" for i in range(len(selected))],
        "url": [""] * len(selected),
    }


# What the Hub's data sets look like: rows that count and rows that the filters must leave out.
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "sentence-transformers/all-nli": [{"anchor": f"a {i}", "positive": f"p {i}"} for i in range(6)],
    "sentence-transformers/quora-duplicates": [
        {"sentence1": f"q {i}", "sentence2": f"r {i}", "label": i % 3 == 0} for i in range(9)
    ],
    "microsoft/ms_marco": [
        {"query": "first of two", "passages": _passages(0, 1, 1), "answers": ["x"]},
        {"query": "none selected", "passages": _passages(0, 0), "answers": ["x"]},
        {"query": "no passages", "passages": _passages(), "answers": []},
        {"query": "the first", "passages": _passages(1), "answers": []},
    ],
    "sentence-transformers/wikianswers-duplicates": [{"anchor": f"w {i}", "positive": f"v {i}"} for i in range(50)]
    + [{"anchor": " ", "positive": "empty anchor"}],
    "stanfordnlp/snli": [
        {"premise": f"premise {i}", "hypothesis": f"hypothesis {i}", "label": label}
        for i, label in enumerate([0, 1, 2, -1, 0])
    ],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A Hub of tiny data sets; returns the list of what was asked of it."""
    asked: list[tuple] = []

    def fake(hub_id: str, config: str | None, split: str, streaming: bool) -> Dataset | IterableDataset:
        asked.append((hub_id, config, split, streaming))
        dataset = Dataset.from_list(HUB_ROWS[hub_id])
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr(sources, "load_dataset", fake)
    return asked


EXPECTED = {
    "allnli": {f"a {i}": f"p {i}" for i in range(6)},
    "qqp": {"q 0": "r 0", "q 3": "r 3", "q 6": "r 6"},
    "msmarco": {"first of two": "passage 1", "the first": "passage 0"},
    "wikianswers": {f"w {i}": f"v {i}" for i in range(50)},
    "snli": {"premise 0": "hypothesis 0", "premise 4": "hypothesis 4"},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", sorted(HUB_SOURCES))
def test_hub_sources_filter_their_rows(hub: list[tuple], name: str, streaming: bool) -> None:
    dataset = load_source(name, streaming=streaming)
    assert dataset.column_names == ["anchor", "positive"]
    assert dict(zip(dataset["anchor"], dataset["positive"], strict=True)) == EXPECTED[name]
    source = HUB_SOURCES[name]
    assert hub == [(source.hub_id, source.config, "train", streaming or source.always_stream)]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_sources_are_shuffled_by_seed_and_limited(hub: list[tuple], streaming: bool) -> None:
    anchors = load_source("wikianswers", streaming=streaming)["anchor"][:]
    assert anchors != sorted(anchors, key=lambda text: int(text[2:]))
    assert load_source("wikianswers", streaming=streaming)["anchor"][:] == anchors
    assert load_source("wikianswers", streaming=streaming, limit=7)["anchor"][:] == anchors[:7]
    assert load_source("wikianswers", streaming=streaming, seed=1)["anchor"][:] != anchors


def test_hub_caps_hold(hub: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    small = HUB_SOURCES["allnli"].__class__(**{**HUB_SOURCES["allnli"].__dict__, "cap": 4})
    monkeypatch.setitem(HUB_SOURCES, "allnli", small)
    assert len(load_source("allnli")) == len(load_source("allnli", limit=5)) == 4
    assert {name: s.cap for name, s in HUB_SOURCES.items()} | {"allnli": 0} == {
        "allnli": 0, "qqp": 200_000, "msmarco": 100_000, "wikianswers": 1_000_000, "snli": 100_000,
    }  # fmt: skip


def test_hub_splits(hub: list[tuple]) -> None:
    load_source("allnli", split="validation")
    assert hub[-1][2] == "dev"
    with pytest.raises(ValueError, match="'qqp' has no split 'test': choose one of train"):
        load_source("qqp", split="test")


def test_hub_data_that_the_filter_empties(hub: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HUB_ROWS, "stanfordnlp/snli", [{"premise": "p", "hypothesis": "h", "label": 2}])
    with pytest.raises(ValueError, match="No row of stanfordnlp/snli"):
        load_source("snli")


@pytest.mark.parametrize("name", sorted(HUB_SOURCES))
def test_offline_error_names_the_stand_ins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="cannot be loaded.*Without a network use.*wordnet_pairs.*your own file"):
        load_source(name)


@pytest.mark.parametrize("name", ["wordnet", "wordnet_topics", "wordnet_pairs", "stsb_train"])
def test_local_sources(name: str) -> None:
    dataset = load_source(name, limit=50)
    assert dataset.column_names == (["anchor", "positive"] if name == "wordnet_pairs" else ["text"])
    assert len(dataset) == 50
    assert all(text.strip() for column in dataset.column_names for text in dataset[column])
    assert dataset[:] == load_source(name, limit=50)[:]
    assert dataset[:] != load_source(name, limit=50, seed=1)[:]


def test_docstrings_source_takes_options() -> None:
    dataset = load_source("docstrings", limit=5, packages=["numpy"], megabytes=0.5)
    assert len(dataset) == 5
    held_out = load_source("wordnet_topics", split="validation", limit=5, length_spread=[0, 0, 1])
    assert min(len(text.split()) for text in held_out["text"]) > 60


def test_bad_names_splits_and_options() -> None:
    with pytest.raises(ValueError, match="Unknown source 'wordnet_topic'. Did you mean 'wordnet_topics'") as error:
        load_source("wordnet_topic")
    assert all(name in str(error.value) for name in source_names())
    assert set(source_names()) == {*LOCAL_SOURCES, *HUB_SOURCES}
    with pytest.raises(ValueError, match="'wordnet' has no option length_spread; its options: none"):
        load_source("wordnet", length_spread=[1, 1, 1])
    with pytest.raises(ValueError, match="'stsb_train' has no split 'test'"):
        load_source("stsb_train", split="test")
    with pytest.raises(ValueError, match="limit is 0"):
        load_source("wordnet", limit=0)


def _origin(texts: list[str], pools: dict[str, set[str]]) -> Counter:
    return Counter(next(name for name, pool in pools.items() if text in pool) for text in texts)


def test_mix_follows_weights_and_caps(hub: list[tuple]) -> None:
    pools = {"allnli": set(EXPECTED["allnli"]), "snli": set(EXPECTED["snli"])}
    pools |= {"wordnet": {anchor for anchor, _ in wordnet_pairs()}}
    spec = {"wordnet_pairs": 3, "allnli": {"weight": 1, "cap": 4}, "snli": 1}
    mix = load_mix(spec, total=100)
    assert mix.column_names == ["anchor", "positive"]
    assert _origin(mix["anchor"][:], pools) == {"wordnet": 94, "allnli": 4, "snli": 2}  # snli has but two
    assert mix[:] == load_mix(spec, total=100)[:]
    assert mix["anchor"][:] != load_mix(spec, total=100, seed=1)["anchor"][:]
    order = [text in pools["wordnet"] for text in mix["anchor"]]
    assert order != sorted(order)


@pytest.mark.slow
@pytest.mark.skipif(news.package_file() is None, reason=f"not installed: {news.REMEDY}")
def test_the_default_mix_has_every_length_from_the_first_rows() -> None:
    file = Path(__file__).parents[2] / "recipes" / "configs" / "embedding" / "deltanet_minilm.yaml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))["sources"]
    spec["docstrings"] |= {"packages": ["numpy"], "megabytes": 0.5}  # reading all packages takes most of a minute
    texts = load_mix(spec, total=600)["text"][:]
    for part in (texts, texts[:150]):
        profile = {bucket.name: bucket.share for bucket in length_profile(estimate_tokens(text) + 2 for text in part)}
        assert all(profile[name] >= 0.05 for name in ("1-32", "33-128", "129-256")), profile


def test_mix_of_texts_and_pairs_is_texts(hub: list[tuple]) -> None:
    mix = load_mix({"wordnet": 1, "allnli": 1}, total=20)
    assert mix.column_names == ["text"]
    texts = set(mix["text"])
    assert len(mix) == len(texts) == 20
    nli = {*EXPECTED["allnli"], *EXPECTED["allnli"].values()}
    assert len(texts & nli) == 10
    assert texts - nli <= set(wordnet_sentences())


def test_mix_drops_duplicates_across_sources(hub: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    same = [{"premise": "A 0!", "hypothesis": "p 0.", "label": 0}, {"premise": "new", "hypothesis": "one", "label": 0}]
    monkeypatch.setitem(HUB_ROWS, "stanfordnlp/snli", same)
    mix = load_mix({"allnli": 1, "snli": 1}, total=100)
    assert len(mix) == 7
    keys = [normalize_text(f"{row['anchor']} / {row['positive']}") for row in mix]
    assert len(set(keys)) == 7


@pytest.mark.parametrize(
    ("spec", "total", "message"),
    [
        ({}, 10, "The mix is empty"),
        ({"wordnet": 1, "nope": 1}, 10, "Unknown source 'nope'"),
        ({"wordnet": 0}, 10, "'wordnet': weight is 0"),
        ({"wordnet": -1.0}, 10, "weight is -1.0"),
        ({"wordnet": float("nan")}, 10, "weight is nan"),
        ({"wordnet": True}, 10, "weight is True"),
        ({"wordnet": "much"}, 10, "weight is 'much'"),
        ({"wordnet": {"cap": 0}}, 10, "cap is 0"),
        ({"wordnet": {"wieght": 2}}, 10, "no option wieght"),
        ({"wordnet": 1}, 0, "total is 0"),
        ({"wordnet": 1}, 1.5, "total is 1.5"),
    ],
)
def test_bad_mix_fails_before_anything_is_loaded(spec: dict, total: int, message: str, hub: list[tuple]) -> None:
    with pytest.raises(ValueError, match=message):
        load_mix({"allnli": 1, **spec} if spec else spec, total)
    assert hub == []


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100), st.one_of(st.just(float("inf")), st.integers(0, 50))), min_size=1, max_size=6
    ),
    st.integers(1, 200),
)
def test_quotas_fill_the_total_and_keep_the_caps(entries: list[tuple[float, float]], total: int) -> None:
    parts = {str(i): _Part(weight, cap, {}) for i, (weight, cap) in enumerate(entries)}
    quotas = _quotas(parts, total)
    assert sum(quotas.values()) == min(total, sum(part.cap for part in parts.values()))
    for name, quota in quotas.items():
        assert 0 <= quota <= parts[name].cap
    free = [name for name in parts if quotas[name] < parts[name].cap]
    for a in free:  # sources below their cap share by weight, to rounding
        for b in free:
            assert abs(quotas[a] * parts[b].weight - quotas[b] * parts[a].weight) <= 1.001 * (
                parts[a].weight + parts[b].weight
            )
