"""Encoded corpora on the loopback Hub: pushed with a card, read back by id; what must not go is refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hub_client import HubClient
from loopback import LoopbackHub

from hf_distill.data.bpe import train_bpe
from hf_distill.data.encoded_corpus import encode_corpus, load_encoded_corpus
from hf_distill.teachers.manifest import TeacherSpec

SPEC = TeacherSpec(teacher="org/vectors", revision="1", prompt="query: ", normalize=False)


def push(path, repo_id, options=None):
    from hf_distill.hub.corpus_dataset import push_corpus

    return push_corpus(path, repo_id, **(options or {}))


def load(repo_id):
    from hf_distill.data.encoded_corpus import load_encoded_corpus

    return load_encoded_corpus(repo_id).to_list()


def embed(texts: list[str]) -> np.ndarray:
    return np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(6) for text in texts])


def write(folder: Path, texts: list[str]) -> Path:
    tokenizer = train_bpe(texts, 300, progress=False)
    origin = {"sources": {"kenet": len(texts)}}
    encode_corpus(texts, {"tabi": tokenizer}, embed, folder, spec=SPEC, shard_rows=16, origin=origin, progress=False)
    return folder


@pytest.fixture(scope="module")
def corpus(tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "c", tiny_texts)


def files(hub: LoopbackHub, repo_id: str) -> dict[str, bytes]:
    found = hub.files(repo_id, "main", repo_type="dataset")
    return {name: data for name, data in found.items() if name != ".gitattributes"}


def test_there_and_back(client: HubClient, shared_hub: LoopbackHub, corpus: Path, tmp_path: Path) -> None:
    url = client.call(push, str(corpus), "user/encoded")
    assert url == f"{shared_hub.endpoint}/datasets/user/encoded"
    found = files(shared_hub, "user/encoded")
    assert sorted(found) == ["README.md", "corpus.json", *(f"data/train-{n:05d}.parquet" for n in range(4))]
    assert len(shared_hub.commits("user/encoded", repo_type="dataset")) == 2, "one commit, after the Hub's own"
    assert pq.read_schema(io.BytesIO(found["data/train-00000.parquet"])).names[-1] == "teacher_embedding_final"
    card = found["README.md"].decode()
    for part in ("`org/vectors`", "query: ", "`tabi_input_ids`", "kenet", 'load_encoded_corpus("user/encoded")', "64"):
        assert part in card
    for data in found.values():
        assert str(corpus).encode() not in data
    assert client.call(load, "user/encoded") == load_encoded_corpus(corpus).to_list()
    # a smaller one replaces it, and no file of the larger one stays
    client.call(push, str(write(tmp_path / "small", ["a small river", "an old mill"])), "user/encoded")
    assert sorted(files(shared_hub, "user/encoded")) == ["README.md", "corpus.json", "data/train-00000.parquet"]


def test_what_is_refused(client: HubClient, shared_hub: LoopbackHub, corpus: Path, tmp_path: Path) -> None:
    error = client.error(push, str(tmp_path), "user/none")
    assert (error.name, "did not finish" in error.message) == ("FileNotFoundError", True)
    secret = write(tmp_path / "secret", ["a small river", "hf_" + "a" * 34])
    error = client.error(push, str(secret), "user/secret")
    assert "hold an access token" in error.message
    shared_hub.add_repo("user/other", {"rows.csv": b"a"}, repo_type="dataset")
    error = client.error(push, str(corpus), "user/other")
    assert "something else than an encoded corpus" in error.message
    shared_hub.add_repo("user/public", {"corpus.json": b"{}"}, repo_type="dataset")
    error = client.error(push, str(corpus), "user/public", {"private": True})
    assert "exists and is public" in error.message
    assert files(shared_hub, "user/public") == {"corpus.json": b"{}"}
