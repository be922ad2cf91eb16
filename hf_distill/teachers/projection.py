"""A teacher of one width for a student of another: PCA or truncation of cached embeddings.

The principal directions are those of the second moments, without centring: the projection then keeps dot products,
and so cosines, as well as any linear map of this width can, while subtracting the mean would change them all.
"""

from __future__ import annotations

import hashlib
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


def project_cache(cache: TeacherCache, dim: int, method: str = "pca") -> ProjectedCache:
    """Project a cache to ``dim`` dimensions; the fit is stored beside the shards and named in the manifest.

    Args:
        cache: The cache.
        dim: Width to project to, usually the student's.
        method: ``"pca"``: the leading principal directions of the cached embeddings, not centred. ``"truncate"``: the
            first dimensions, for teachers trained with Matryoshka losses.

    Returns:
        The projected cache.

    Raises:
        ValueError: If the teacher is narrower than ``dim`` or the method is unknown.
    """
    if method not in _METHODS:
        raise ValueError(f"Unknown projection {method!r}; choose one of {', '.join(_METHODS)}.")
    if not 1 <= dim <= cache.manifest.dim:
        raise ValueError(
            f"Cannot project the teacher's {cache.manifest.dim} dimensions to {dim}: choose 1 to {cache.manifest.dim}, "
            "or give the student a head (a Dense module) of the teacher's width."
        )
    manifest = cache.manifest
    for known in manifest.projections:
        file = cache.path / known.file
        if (known.method, known.dim) == (method, dim) and file.is_file() and sha256_of_file(file) == known.sha256:
            return _projected(cache, manifest, known)
    moments = _second_moments(cache)
    if method == "pca":
        values, vectors = np.linalg.eigh(moments)
        matrix = vectors[:, ::-1][:, :dim].T
        peaks = np.take_along_axis(matrix, np.abs(matrix).argmax(axis=1)[:, None], axis=1)
        matrix, kept = matrix * np.sign(peaks), values[::-1][:dim].sum()
    else:
        matrix, kept = np.eye(dim, manifest.dim), np.trace(moments[:dim, :dim])
    data = save({"matrix": np.ascontiguousarray(matrix, dtype=np.float32)})
    info = ProjectionInfo(
        file=f"projection-{method}-{dim}.safetensors",
        method=method,
        dim=dim,
        sha256=hashlib.sha256(data).hexdigest(),
        retained_energy=round(float(kept / np.trace(moments)), 6),
    )
    replace_file(cache.path / info.file, data)
    others = tuple(known for known in manifest.projections if known.file != info.file)
    manifest = replace(manifest, projections=(*others, info))
    manifest.save(cache.path)
    return _projected(cache, manifest, info)


def _projected(cache: TeacherCache, manifest: Manifest, info: ProjectionInfo) -> ProjectedCache:
    projected = ProjectedCache(cache.path, manifest, info)
    projected.report = cache.report
    return projected


def _second_moments(cache: TeacherCache) -> np.ndarray:
    """Return the sum of outer products of all embeddings, ``(D, D)``, float64, a block of rows at a time."""
    total = np.zeros((cache.manifest.dim, cache.manifest.dim))
    for start in range(0, len(cache), _FIT_ROWS):
        rows = np.arange(start, min(start + _FIT_ROWS, len(cache)))
        block = TeacherCache.embeddings(cache, rows).astype(np.float64)
        total += block.T @ block
    return total
