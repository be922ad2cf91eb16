"""Reading a cache: gathers over shards, hidden rows, texts to rows, damage, and whose cache it is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hf_distill.teachers.cached import TeacherCache, teacher_folder
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@pytest.fixture
def cache(tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec) -> TeacherCache:
    return write_cache(tiny_texts, vectors, tmp_path, spec=vector_spec, shard_rows=10, progress=False)


@pytest.mark.parametrize("shard_rows", [1, 10, 64, 1000])
def test_gather_in_any_order(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec, shard_rows: int
) -> None:
    cache = write_cache(tiny_texts, vectors, tmp_path, spec=vector_spec, shard_rows=shard_rows, progress=False)
    expected = vectors(tiny_texts).astype(np.float16)
    rows = np.random.default_rng(0).integers(0, len(tiny_texts), 200)
    assert cache.embeddings(rows).dtype == np.float16
    np.testing.assert_array_equal(cache.embeddings(rows), expected[rows])
    np.testing.assert_array_equal(cache.embeddings(rows.tolist()), expected[rows])
    assert cache.embeddings([]).shape == (0, 6)
    assert (len(cache), cache.dim) == (len(tiny_texts), 6)


@pytest.mark.parametrize("rows", [[0, 64], [-1], [3, -2]])
def test_rows_outside(cache: TeacherCache, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="rows 0 to 63"):
        cache.embeddings(rows)


@pytest.mark.parametrize("rows", [[0.5], [[1, 2]], ["a"], [True, False]])
def test_rows_of_a_wrong_kind(cache: TeacherCache, rows: list) -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        cache.embeddings(rows)


def test_rows_for_texts(cache: TeacherCache, tiny_texts: list[str]) -> None:
    wanted = [tiny_texts[40], tiny_texts[3], tiny_texts[40]]
    assert cache.rows_for(wanted).tolist() == [40, 3, 40]
    assert cache.rows_for(iter(wanted)).tolist() == [40, 3, 40]
    assert cache.rows_for([]).tolist() == []
    with pytest.raises(KeyError, match="2 of 3 texts.*number 1: 'not there'"):
        cache.rows_for([tiny_texts[0], "not there", "nor this"])


def test_of_equal_texts_the_first(tmp_path: Path, vectors: Callable, vector_spec: TeacherSpec) -> None:
    cache = write_cache(["b", "a", "b", "a"], vectors, tmp_path, spec=vector_spec, shard_rows=2, progress=False)
    assert cache.rows_for(["a", "b"]).tolist() == [1, 0]


def test_pickle_is_a_place_not_data(cache: TeacherCache) -> None:
    data = pickle.dumps(cache)
    assert len(data) < 5000
    np.testing.assert_array_equal(pickle.loads(data).embeddings([5, 63]), cache.embeddings([5, 63]))


def test_hidden_rows(tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    live = LiveTeacher(tiny_model, dtype="float32")
    signals = ("embedding", "hidden_0", "hidden_2")
    cache = write_cache(tiny_texts, live, tmp_path, signals=signals, shard_rows=7, tokens_per_batch=90, progress=False)
    rows = [50, 3, 3, 12, 29]
    for layer in (0, 2):
        found = cache.hidden(layer, rows)
        assert len(found) == 5
        for place, row in enumerate(rows):
            ids, mask = live.pad(live.tokenize([tiny_texts[row]])[0])
            expected = live.forward(ids, mask).hidden_states[layer][0].numpy()
            states = found.values[found.offsets[place] : found.offsets[place + 1]]
            np.testing.assert_allclose(states, expected, atol=5e-3)
    states, mask = found.padded(70)
    assert states.shape == (5, 70, 32)
    assert mask.sum(axis=1).tolist() == np.diff(found.offsets).tolist()
    assert not states[mask == 0].any()
    np.testing.assert_array_equal(states[0, : int(mask[0].sum())], found.values[: found.offsets[1]])
    assert found.padded()[0].shape[1] == np.diff(found.offsets).max()
    with pytest.raises(ValueError, match="more than the 2"):
        found.padded(2)
    with pytest.raises(KeyError, match="hidden_1"):
        cache.hidden(1, rows)
    assert cache.hidden(0, []).offsets.tolist() == [0]


def test_several_teachers_side_by_side(cache: TeacherCache, tiny_texts: list[str], vectors: Callable) -> None:
    root, spec = cache.path.parent, cache.spec
    short = replace(spec, truncate_dim=3)
    write_cache(tiny_texts, vectors, root, spec=short, progress=False)
    assert len(list(root.iterdir())) == 2
    assert TeacherCache.open(root, expect=short).dim == 3
    assert TeacherCache.open(root, expect=spec).dim == 6
    assert TeacherCache.open(cache.path).dim == 6
    with pytest.raises(ValueError, match="several caches"):
        TeacherCache.open(root)
    with pytest.raises(ValueError, match="prompt: the cache has '', expected is 'query: '"):
        TeacherCache.open(root, expect=replace(spec, prompt="query: "))
    with pytest.raises(ValueError, match="truncate_dim: the cache has None, expected is 3"):
        TeacherCache.open(cache.path, expect=short)


def test_no_cache(tmp_path: Path, vector_spec: TeacherSpec) -> None:
    with pytest.raises(FileNotFoundError, match="holds no manifest.json"):
        TeacherCache.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no manifest.json"):
        TeacherCache.open(tmp_path / "nowhere", expect=vector_spec)


def test_folder_names(tmp_path: Path, vector_spec: TeacherSpec) -> None:
    folder = teacher_folder(tmp_path, replace(vector_spec, teacher="org/A b:c"))
    assert folder.parent == tmp_path
    assert folder.name.startswith("A_b_c-")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        teacher_folder(tmp_path / "file", vector_spec)


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_and_mended(
    cache: TeacherCache, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec
) -> None:
    cache.verify()
    shard = cache.path / cache.manifest.shards[3].file
    good = shard.read_bytes()
    del cache.__dict__["_shards"]
    _flip(shard, -5)
    damaged = TeacherCache.open(cache.path)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged.*Run the job"):
        damaged.verify()
    mended = write_cache(tiny_texts, vectors, cache.path.parent, spec=vector_spec, shard_rows=10, progress=False)
    assert (mended.report.rows, mended.report.reused_rows) == (10, 54)
    assert shard.read_bytes() == good
    mended.verify()


def test_missing_or_short_shards(cache: TeacherCache) -> None:
    shard = cache.path / cache.manifest.shards[1].file
    data = shard.read_bytes()
    for bad in (data[:40], data[: len(data) // 2], b"", b"\xff" * 200):
        shard.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{shard.name}.*[Rr]un the job"):
            TeacherCache.open(cache.path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name}.*Run the job"):
        TeacherCache.open(cache.path)
    with pytest.raises(FileNotFoundError, match="Run the job"):
        cache.verify()


def test_a_shard_of_another_shape(cache: TeacherCache) -> None:
    first, second = (cache.path / shard.file for shard in (cache.manifest.shards[0], cache.manifest.shards[-1]))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="does not agree with manifest.json"):
        TeacherCache.open(cache.path)
