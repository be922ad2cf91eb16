"""The reader of teacher caches: rows by index from memory maps, never as list columns.

A list column of a data set feeds about 8,000 rows a second and keeps float64 on disk; a float16 memory map feeds about
a million and keeps a quarter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_distill.teachers.files import sha256_of_file
from hf_distill.teachers.fingerprint import text_hash
from hf_distill.teachers.manifest import MANIFEST_NAME, Manifest, TeacherSpec
from hf_distill.teachers.shards import open_shard
from hf_distill.teachers.signal import HiddenRows, WriteReport

_FINGERPRINT_CHARS = 12


def teacher_folder(path: str | Path, spec: TeacherSpec) -> Path:
    """Return the sub-folder of ``path`` that holds this teacher's cache, or will hold it."""
    suffix = spec.fingerprint[:_FINGERPRINT_CHARS]
    if Path(path).exists() and not Path(path).is_dir():
        raise NotADirectoryError(f"{path} is a file; a teacher cache needs a folder.")
    existing = sorted(Path(path).glob(f"*-{suffix}"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", spec.teacher.split("/")[-1]).strip("._-") or "teacher"
    return existing[0] if existing else Path(path) / f"{name}-{suffix}"


class TeacherCache:
    """A finished teacher cache, open for reading. Cheap to open, to pickle and to share between workers.

    Args:
        path: Folder of one teacher's cache.
        manifest: Its manifest.

    Attributes:
        report: What writing it cost, if it was just written.

    Example:
        >>> cache = TeacherCache.open("caches", expect=TeacherSpec.of(teacher))
        >>> targets = cache.embeddings(cache.rows_for(texts))
    """

    def __init__(self, path: str | Path, manifest: Manifest) -> None:
        """Map the shards into memory."""
        self.path = Path(path)
        self.manifest = manifest
        self.report: WriteReport | None = None
        self._shards = [open_shard(self.path / shard.file) for shard in manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in manifest.shards])]).astype(np.int64)
        for shard, arrays in zip(manifest.shards, self._shards, strict=True):
            needed = {"text_hash", *manifest.spec.signals}
            shape = arrays["embedding"].shape if "embedding" in arrays else ()
            if (
                not needed <= set(arrays)
                or shape != (shard.rows, manifest.dim)
                or self._starts[-1] != manifest.num_rows
            ):
                raise ValueError(
                    f"{self.path / shard.file} does not agree with {MANIFEST_NAME}: it holds {sorted(arrays)} with "
                    f"embeddings {shape}, expected are {sorted(needed)} with {(shard.rows, manifest.dim)}. Delete it "
                    "and run the job (recipes/cache_teacher.py) again."
                )

    @staticmethod
    def open(path: str | Path, expect: TeacherSpec | None = None) -> TeacherCache:
        """Open a cache.

        Args:
            path: Folder of one teacher's cache, or the folder of several.
            expect: The teacher that is asked for. With it, the right one of several is found, and no other is served.

        Returns:
            The cache.

        Raises:
            FileNotFoundError: If there is none, or a shard is missing.
            ValueError: If it was written by another teacher (both sides are named), or there are several to choose
                from, or a file is damaged.
        """
        path = Path(path)
        folders = (
            [path] if (path / MANIFEST_NAME).is_file() else sorted(p.parent for p in path.glob(f"*/{MANIFEST_NAME}"))
        )
        manifests = [(folder, Manifest.load(folder)) for folder in folders]
        if not manifests:
            Manifest.load(path)
        if expect is not None:
            differences = [manifest.spec.differences(expect) for _, manifest in manifests]
            fitting = [entry for entry, found in zip(manifests, differences, strict=True) if not found]
            if not fitting:
                nearest = min(range(len(manifests)), key=lambda index: len(differences[index]))
                manifests[nearest][1].require(expect, manifests[nearest][0])
            manifests = fitting
        if len(manifests) > 1:
            found = "\n  ".join(f"{folder}: {manifest.spec}" for folder, manifest in manifests)
            raise ValueError(f"{path} holds several caches that fit; name one folder, or ask more exactly:\n  {found}")
        return TeacherCache(*manifests[0])

    def __reduce__(self) -> tuple[type, tuple[Path, Manifest]]:
        """Pickle as a place, not as data: workers map the same files."""
        return type(self), (self.path, self.manifest)

    def __len__(self) -> int:
        """Number of rows."""
        return self.manifest.num_rows

    @property
    def spec(self) -> TeacherSpec:
        """The teacher that wrote the cache."""
        return self.manifest.spec

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.manifest.dim

    def _checked(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        found = np.asarray(rows)
        if found.size == 0:
            return np.empty(0, dtype=np.int64)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise TypeError(f"Rows must be a flat list of whole numbers, not {found.dtype} {found.shape}.")
        if int(found.min()) < 0 or int(found.max()) >= len(self):
            bad = found.min() if found.min() < 0 else found.max()
            raise IndexError(
                f"Row {bad} is outside the teacher cache {self.path}, which has rows 0 to {len(self) - 1}."
            )
        return found

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Yield every shard that is needed, with the places in the request and the rows inside the shard."""
        if len(self._shards) == 1:
            yield self._shards[0], np.arange(len(rows)), rows
            return
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        bounds = np.flatnonzero(np.diff(owner[order], prepend=-1, append=-1))
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            places = order[begin:end]
            shard = int(owner[places[0]])
            yield self._shards[shard], places, rows[places] - self._starts[shard]

    def embeddings(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Gather embeddings.

        Args:
            rows: Row numbers ``(N,)``, in any order, repeated or not.

        Returns:
            float16 ``(N, D)``.

        Raises:
            IndexError: If a row is outside the cache.
        """
        rows = self._checked(rows)
        result = np.empty((len(rows), self.manifest.dim), dtype=np.float16)
        for arrays, places, local in self._by_shard(rows):
            result[places] = arrays["embedding"][local]
        return result

    def hidden(self, layer: int, rows: np.ndarray | Sequence[int]) -> HiddenRows:
        """Gather the hidden states of one layer, without padding.

        Args:
            layer: 0 for the output of the embedding layer, ``i`` for the output of layer ``i``.
            rows: Row numbers ``(N,)``.

        Returns:
            The states of all tokens of these rows, in their order.

        Raises:
            KeyError: If the cache does not hold this layer.
        """
        name = f"hidden_{layer}"
        if name not in self.spec.signals:
            raise KeyError(f"The teacher cache {self.path} holds {self.spec.signals}, not {name!r}.")
        rows = self._checked(rows)
        parts = list(self._by_shard(rows))
        lengths = np.zeros(len(rows), dtype=np.int64)
        for arrays, places, local in parts:
            lengths[places] = arrays["offsets"][local + 1] - arrays["offsets"][local]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        width = self._shards[0][name].shape[1]
        values = np.empty((int(offsets[-1]), width), dtype=np.float16)
        for arrays, places, local in parts:
            source = _ranges(arrays["offsets"][local], lengths[places])
            values[_ranges(offsets[places], lengths[places])] = arrays[name][source]
        return HiddenRows(values, offsets)

    @cached_property
    def text_hashes(self) -> np.ndarray:
        """Hash of every row's text, ``uint64 (N,)``."""
        return np.concatenate([arrays["text_hash"] for arrays in self._shards])

    @cached_property
    def _sorted_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.text_hashes, kind="stable")
        return self.text_hashes[order], order

    def rows_for(self, texts: Iterable[str]) -> np.ndarray:
        """Find the rows of texts; of a text that is there several times, the first.

        Args:
            texts: The texts, exactly as they were cached.

        Returns:
            int64 ``(N,)``.

        Raises:
            KeyError: If a text is not in the cache; the error names the first one.
        """
        texts = texts if isinstance(texts, Sequence) else list(texts)
        wanted = np.frombuffer(b"".join(map(text_hash, texts)), dtype="<u8")
        hashes, order = self._sorted_hashes
        places = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        missing = np.flatnonzero(hashes[places] != wanted)
        if len(missing):
            first = int(missing[0])
            raise KeyError(
                f"{len(missing)} of {len(texts)} texts are not in the teacher cache {self.path}; the first is number "
                f"{first}: {texts[first][:80]!r}. Write the cache from the same texts (recipes/cache_teacher.py)."
            )
        return order[places]

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ValueError: If a shard is damaged; the error names it and the remedy.
            FileNotFoundError: If a shard is missing.
        """
        for entry in (*self.manifest.shards, *self.manifest.projections):
            file = self.path / entry.file
            if not file.is_file():
                raise FileNotFoundError(
                    f"The teacher cache lacks {file}. Run the job (recipes/cache_teacher.py) again."
                )
            if (found := sha256_of_file(file)) != entry.sha256:
                raise ValueError(
                    f"{file} is damaged: its SHA-256 is {found}, the manifest says {entry.sha256}. Run the job "
                    "(recipes/cache_teacher.py) again: it replaces only what is damaged. A projection is fitted anew."
                )


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the concatenation of ``arange(start, start + length)`` over all pairs."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
