"""The card of a teacher cache: what it says, its metadata, and the code on it, which runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard
from loopback import LoopbackHub

from hf_distill.hub.cache_card import write_cache_card
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.manifest import Manifest, ShardInfo, TeacherSpec
from hf_distill.teachers.writer import write_cache


@pytest.fixture
def manifest() -> Manifest:
    """A cache of a model with everything that a card can tell."""
    spec = TeacherSpec(
        teacher="org/teacher",
        revision="abc123",
        weights_sha256="1" * 64,
        tokenizer_sha256="2" * 64,
        prompt="query | \n<b>: ",
        pooling="mean",
        truncate_dim=32,
        max_seq_length=128,
        dtype="bfloat16",
        signals=("embedding", "hidden_0", "hidden_3"),
    )
    return Manifest(spec, 1234, 32, (ShardInfo("a.safetensors", 1234, 56789, "3" * 64),))


def test_everything_is_said(manifest: Manifest, tmp_path: Path) -> None:
    text = write_cache_card(tmp_path, manifest, "user/vectors", with_texts=True, revision="v2").read_text()
    lines = [re.sub(" +", " ", line) for line in text.splitlines()]
    for line in (
        "# vectors",
        "| teacher | org/teacher |",
        "| revision | abc123 |",
        f"| SHA-256 of the weights | {'1' * 64} |",
        f"| SHA-256 of the tokenizer | {'2' * 64} |",
        "| prompt | 'query \\| \\n&lt;b&gt;: ' |",
        "| pooling | mean |",
        "| normalised to length 1 | yes |",
        "| dimensions | 32 (the first 32) |",
        "| longest input, tokens | 128 |",
        "| precision of the teacher | bfloat16 |",
        "| rows | 1,234 |",
        "| tokens | 56,789 |",
        f"| fingerprint | {manifest.spec.fingerprint} |",
        "| `text` | string | the text |",
        "| `embedding` | float16, 32 | the teacher's embedding |",
        "| `hidden_0` | float16, tokens x width | output of the embedding layer, a vector a token |",
        "| `hidden_3` | float16, tokens x width | output of layer 3, a vector a token |",
        'rows = load_dataset("user/vectors", revision="v2", split="train", streaming=True)',
    ):
        assert line in lines, line


def test_metadata(manifest: Manifest, tmp_path: Path) -> None:
    data = DatasetCard.load(write_cache_card(tmp_path, manifest, "user/vectors", with_texts=False)).data.to_dict()
    assert data["tags"] == ["hf_distill", "knowledge-distillation", "teacher-cache", "embeddings"]
    assert data["license"] == "unknown"
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    text = (tmp_path / "README.md").read_text()
    assert "| `text` " not in text
    assert "The texts are not part of this data set" in text


def test_the_code_on_it_runs(client, shared_hub: LoopbackHub, tmp_path: Path) -> None:
    def push(path, repo_id, texts):
        from hf_distill.hub.cache_dataset import push_cache
        from hf_distill.teachers.cached import TeacherCache

        push_cache(TeacherCache.open(path), repo_id, texts=texts)

    def run(blocks, folder, texts):
        import os

        before, names = os.getcwd(), {"texts": texts}
        os.chdir(folder)
        try:
            for block in blocks:
                exec(block, names)
        finally:
            os.chdir(before)
        return [len(list(names["rows"])), names["targets"].astype(float).tolist()]

    texts = [f"text {number}" for number in range(9)]
    vectors = np.arange(27.0).reshape(9, 3)
    spec = TeacherSpec(teacher="counting", normalize=False)
    cache = write_cache(texts, lambda some: vectors[: len(some)], tmp_path / "here", spec=spec, progress=False)
    client.call(push, str(cache.path), "user/snippets", texts)
    card = shared_hub.files("user/snippets", repo_type="dataset")["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    rows, targets = client.call(run, blocks, str(tmp_path), texts[::-1])
    assert rows == 9
    np.testing.assert_array_equal(targets, cache.embeddings(np.arange(9)[::-1]))
    assert len(TeacherCache.open(tmp_path / "teacher_caches")) == 9
