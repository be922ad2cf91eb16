"""A teacher of one width for a student of another: PCA or truncation of cached embeddings.

The principal directions are those of the second moments, without centring: the projection then keeps dot products,
and so cosines, as well as any linear map of this width can, while subtracting the mean would change them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.files import replace_file, sha256_of_file
from hf_distill.teachers.manifest import Manifest, ProjectionInfo
from hf_distill.teachers.shards import open_shard

_METHODS = ("pca", "truncate")
_FIT_ROWS = 8192


class ProjectedCache(TeacherCache):
    """A [`TeacherCache`] whose embeddings are projected when they are read.

    Args:
        path: Folder of the cache.
        manifest: Its manifest.
        projection: The entry of the projection in the manifest.

    Attributes:
        matrix: The projection ``(dim, D)``, float32, with orthonormal rows.
    """

    def __init__(self, path: str | Path, manifest: Manifest, projection: ProjectionInfo) -> None:
        """Map the shards and read the matrix."""
        super().__init__(path, manifest)
        self.projection = projection
        self.matrix: np.ndarray = np.array(open_shard(self.path / projection.file)["matrix"])

    def __reduce__(self) -> tuple[type, tuple[Path, Manifest, ProjectionInfo]]:
        """Pickle as a place, not as data."""
        return type(self), (self.path, self.manifest, self.projection)

    @property
    def dim(self) -> int:
        """Width of the embeddings after the projection."""
        return self.projection.dim

    def embeddings(self, rows: np.ndarray | list[int]) -> np.ndarray:
        """Gather embeddings, projected and scaled to length 1: float32 ``(N, dim)``."""
        return self.project(super().embeddings(rows))

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Project embeddings of the teacher, ``(N, D)``, cached or live, to length-1 rows ``(N, dim)``, float32."""
        projected = np.asarray(embeddings, dtype=np.float32) @ self.matrix.T
        return projected / np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)


def project_cache(
    cache: TeacherCache, dim: int, method: str = "pca", rows: Sequence[int] | np.ndarray | None = None
) -> ProjectedCache:
    """Project a cache to ``dim`` dimensions; the fit is stored beside the shards and named in the manifest.

    Args:
        cache: The cache.
        dim: Width to project to, usually the student's.
        method: ``"pca"``: the leading principal directions of the cached embeddings, not centred. ``"truncate"``: the
            first dimensions, for teachers trained with Matryoshka losses.
        rows: Rows to fit on: those of the training texts, if the cache holds others too. By default all rows.

    Returns:
        The projected cache.

    Raises:
        ValueError: If the teacher is narrower than ``dim``, the method is unknown, or there is no row to fit on.
        IndexError: If a row is outside the cache.
    """
    if method not in _METHODS:
        raise ValueError(f"Unknown projection {method!r}; choose one of {', '.join(_METHODS)}.")
    if not 1 <= dim <= cache.manifest.dim:
        raise ValueError(
            f"Cannot project the teacher's {cache.manifest.dim} dimensions to {dim}: choose 1 to {cache.manifest.dim}, "
            "or give the student a head (a Dense module) of the teacher's width."
        )
    manifest = cache.manifest
    fit = np.arange(len(cache)) if rows is None else np.unique(np.asarray(rows, dtype=np.int64))
    part = "" if len(fit) == len(cache) else f"-{hashlib.sha256(fit.tobytes()).hexdigest()[:12]}"
    name = f"projection-{method}-{dim}{part}.safetensors"
    for known in manifest.projections:
        file = cache.path / known.file
        if known.file == name and file.is_file() and sha256_of_file(file) == known.sha256:
            return _projected(cache, manifest, known)
    moments = second_moments(lambda rows: TeacherCache.embeddings(cache, rows), fit, manifest.dim)
    if method == "pca":
        matrix, kept = principal_directions(moments, dim)
    else:
        matrix, kept = np.eye(dim, manifest.dim), np.trace(moments[:dim, :dim]) / np.trace(moments)
    return _store(cache, manifest, method, matrix, kept, name)


def _store(
    cache: TeacherCache, manifest: Manifest, method: str, matrix: np.ndarray, kept: float, name: str | None = None
) -> ProjectedCache:
    """Write a projection beside the shards and name it in the manifest; by default the name holds its hash."""
    data = save({"matrix": np.ascontiguousarray(matrix, dtype=np.float32)})
    digest = hashlib.sha256(data).hexdigest()
    info = ProjectionInfo(
        file=name or f"projection-{method}-{len(matrix)}-{digest[:12]}.safetensors",
        method=method,
        dim=len(matrix),
        sha256=digest,
        retained_energy=round(float(kept), 6),
    )
    replace_file(cache.path / info.file, data)
    others = tuple(known for known in manifest.projections if known.file != info.file)
    manifest = replace(manifest, projections=(*others, info))
    manifest.save(cache.path)
    return _projected(cache, manifest, info)


def rotate_towards(cache: ProjectedCache, vectors: np.ndarray, rows: Sequence[int] | np.ndarray) -> ProjectedCache:
    """Turn a projection into the space where a student starts (orthogonal Procrustes, Schönemann 1966).

    Principal directions are one basis among many: cosines do not change with it, but a student whose weights come from
    another model would spend its training on turning its space into that basis.

    Args:
        cache: The projected cache.
        vectors: What the student's source says about some rows, `(N, dim)`.
        rows: These rows `(N,)`.

    Returns:
        The cache with the rotated projection, stored beside the other one and named in the manifest.

    Raises:
        ValueError: If the widths differ.
    """
    if vectors.shape != (len(rows), cache.dim):
        raise ValueError(f"The vectors are {vectors.shape}, but {(len(rows), cache.dim)} are needed: one a row.")
    left, _, right = np.linalg.svd(cache.embeddings(rows).astype(np.float64).T @ vectors.astype(np.float64))
    matrix = (left @ right).T @ cache.matrix
    return _store(cache, cache.manifest, "pca_rotated", matrix, cache.projection.retained_energy)


def _projected(cache: TeacherCache, manifest: Manifest, info: ProjectionInfo) -> ProjectedCache:
    projected = ProjectedCache(cache.path, manifest, info)
    projected.report = cache.report
    return projected


def second_moments(read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, width: int) -> np.ndarray:
    """Sum of the outer products of embeddings, a block of rows at a time.

    Args:
        read: Gives the embeddings `(n, width)` of rows `(n,)`.
        rows: The rows.
        width: Width of the embeddings.

    Returns:
        float64 `(width, width)`.

    Raises:
        ValueError: If there is no row.
    """
    if not len(rows):
        raise ValueError("There is no row to fit the projection on: give the rows of the training texts.")
    total = np.zeros((width, width))
    for start in range(0, len(rows), _FIT_ROWS):
        block = read(rows[start : start + _FIT_ROWS]).astype(np.float64)
        total += block.T @ block
    return total


def principal_directions(moments: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
    """Leading eigenvectors of second moments `(D, D)`.

    Args:
        moments: Sum of outer products.
        dim: Number of directions.

    Returns:
        The directions `(dim, D)`, orthonormal rows by falling energy, each signed so that its largest component is
        positive, and the share of the energy that they keep.
    """
    values, vectors = np.linalg.eigh(moments)
    matrix = vectors[:, ::-1][:, :dim].T
    peaks = np.take_along_axis(matrix, np.abs(matrix).argmax(axis=1)[:, None], axis=1)
    return matrix * np.sign(peaks), float(values[::-1][:dim].sum() / np.trace(moments))
