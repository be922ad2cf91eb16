"""Projections: orthonormal, as good as a projection of this width can be, stored, and refused where they cannot be."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.projection import project_cache, rotate_towards
from hf_distill.teachers.writer import write_cache


@pytest.fixture
def cache(tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec) -> TeacherCache:
    """Embeddings of 12 dimensions that lie in 6 of them, turned, with a mean far from 0."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0][:6]

    def embed(texts: list[str]) -> np.ndarray:
        return (vectors(texts) + 1.0) @ turn

    spec = replace(vector_spec, normalize=True)
    return write_cache(tiny_texts, embed, tmp_path, spec=spec, shard_rows=10, progress=False)


def test_pca_keeps_all_cosines_where_the_rank_allows(cache: TeacherCache) -> None:
    rows = np.arange(64)
    whole = cache.embeddings(rows).astype(np.float32)
    projected = project_cache(cache, 6)
    small = projected.embeddings(rows)
    assert small.shape == (64, projected.dim) == (64, 6)
    assert small.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(small @ small.T, whole @ whole.T, atol=5e-3)
    np.testing.assert_allclose(projected.matrix @ projected.matrix.T, np.eye(6), atol=1e-6)
    assert projected.projection.retained_energy > 0.999
    np.testing.assert_allclose(projected.project(whole), small, atol=1e-6)


def test_pca_is_the_best_of_its_width(cache: TeacherCache) -> None:
    whole = cache.embeddings(np.arange(64)).astype(np.float64)
    energies = np.sort(np.linalg.svd(whole, compute_uv=False) ** 2)[::-1]
    projected = project_cache(cache, 3)
    assert projected.projection.retained_energy == pytest.approx(energies[:3].sum() / energies.sum(), abs=1e-4)
    assert projected.projection.retained_energy > project_cache(cache, 3, "truncate").projection.retained_energy
    peaks = np.abs(projected.matrix).argmax(axis=1)
    assert (projected.matrix[np.arange(3), peaks] > 0).all()


def test_rotation_finds_the_space_of_a_student(cache: TeacherCache) -> None:
    projected, rows = project_cache(cache, 6), np.arange(0, 64, 2)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    rotated = rotate_towards(projected, projected.embeddings(rows) @ turn, rows)
    everything = np.arange(64)
    np.testing.assert_allclose(rotated.embeddings(everything), projected.embeddings(everything) @ turn, atol=1e-5)
    np.testing.assert_allclose(rotated.matrix @ rotated.matrix.T, np.eye(6), atol=1e-6)
    reopened = TeacherCache.open(cache.path).manifest.projections
    assert {info.method for info in reopened} == {"pca", "pca_rotated"}


def test_rotation_wants_one_vector_a_row(cache: TeacherCache) -> None:
    with pytest.raises(ValueError, match="are needed: one a row"):
        rotate_towards(project_cache(cache, 6), np.zeros((3, 5)), [0, 1, 2])


def test_truncation(cache: TeacherCache) -> None:
    whole = cache.embeddings([7, 8]).astype(np.float32)[:, :5]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(project_cache(cache, 5, "truncate").embeddings([7, 8]), expected, atol=1e-6)


def test_it_is_a_cache_and_is_stored(cache: TeacherCache, tiny_texts: list[str]) -> None:
    first = project_cache(cache, 4)
    assert len(first) == 64
    assert first.rows_for(tiny_texts[5:6]).tolist() == [5]
    assert first.report is cache.report
    reopened = TeacherCache.open(cache.path.parent, expect=cache.spec)
    assert [entry.dim for entry in reopened.manifest.projections] == [4]
    reopened.verify()
    file = cache.path / first.projection.file
    written = file.stat()
    second = project_cache(reopened, 4)
    assert file.stat() == written
    np.testing.assert_array_equal(second.matrix, first.matrix)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(second)).embeddings([3]), first.embeddings([3]))
    both = project_cache(second, 2)
    assert [entry.dim for entry in both.manifest.projections] == [4, 2]


def test_a_damaged_projection_is_found_and_fitted_anew(cache: TeacherCache) -> None:
    projected = project_cache(cache, 4)
    file = cache.path / projected.projection.file
    data = bytearray(file.read_bytes())
    data[-2] ^= 64
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged.*fitted anew"):
        projected.verify()
    np.testing.assert_array_equal(project_cache(projected, 4).matrix, projected.matrix)
    projected.verify()


def test_it_can_be_fitted_on_some_rows_only(cache: TeacherCache) -> None:
    train = np.arange(40)
    whole, part = project_cache(cache, 3), project_cache(cache, 3, rows=train)
    directions = np.linalg.svd(cache.embeddings(train).astype(np.float64), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(part.matrix @ directions.T), np.eye(3), atol=1e-4)
    assert np.abs(part.matrix - whole.matrix).max() > 1e-4
    both = project_cache(part, 3)
    assert both.projection == whole.projection
    assert project_cache(both, 3, rows=train[::-1].tolist()).projection == part.projection
    assert project_cache(both, 3, rows=range(64)).projection == whole.projection
    both.verify()
    with pytest.raises(ValueError, match="no row to fit"):
        project_cache(cache, 3, rows=[])
    with pytest.raises(IndexError, match="Row 64"):
        project_cache(cache, 3, rows=[3, 64])


@pytest.mark.parametrize(
    ("dim", "method", "message"), [(13, "pca", "12 dimensions to 13"), (0, "pca", "to 0"), (3, "svd", "'svd'")]
)
def test_bad_requests(cache: TeacherCache, dim: int, method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project_cache(cache, dim, method)
