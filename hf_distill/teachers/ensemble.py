"""Several teachers as one: their caches of the same texts, combined row by row as they are read.

The trainer reads a [`TeacherEnsemble`] as it reads a `TeacherCache`. Every member keeps its own prompt, tokenizer and
length: they are in its own manifest, and were applied when its cache was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.projection import ProjectedCache, principal_directions, project_cache, second_moments

MODES = ("mean", "concat", "route")


class TeacherEnsemble:
    """Caches of several teachers over the same texts, read as one.

    | `mode`   | the answer for a row                                                                          |
    |----------|-----------------------------------------------------------------------------------------------|
    | `mean`   | weighted mean of the members' vectors, each of length 1, scaled to length 1 again             |
    | `concat` | the members' vectors side by side: its cosines are the weighted sum of the members' cosines   |
    | `route`  | the vector of the member that `routes` names for this row                                     |

    A mean needs members that live in one space: one model with several prompts, or models that were aligned. The axes
    of unrelated models have nothing to do with each other; `concat`, brought to the student's width by `dim`, keeps what
    both of them say.

    Args:
        caches: Members. All hold the same texts in the same order, which is checked by the hashes of the texts.
        mode: `"mean"`, `"concat"` or `"route"`.
        weights: Weight of each member in a mean or a concatenation; by default all weigh the same.
        routes: For `"route"`: of every row of the caches, the number of the member that answers it (from 0) or the name
            of its teacher; an array or a column of a data set.
        dim: Width to project to by PCA without centring: every member of another width for a mean or routes, all
            members together for a concatenation. By default nothing is projected.
        fit_rows: Rows that the projections are fitted on: those of the training texts. Needed where one is fitted;
            `range(len(cache))` if the caches hold training texts only.

    Attributes:
        caches: The members, projected where they have to be.
        mode: See above.
        weights: The weights, scaled to sum to 1, `(M,)`; equal with routes.
        routes: Number of the member that answers each row, `(N,)`, or `None`.
        matrix: The projection `(dim, D)` of a concatenation, float32, or `None`.
        retained_energy: Share of the energy that it keeps on the rows it was fitted on; 1 without a projection.
        spec: What identifies the ensemble, as for a cache.

    Raises:
        ValueError: If the members hold different texts or widths that do not fit, or an argument does not fit the mode;
            the message names both members, or the row.

    Example:
        >>> e5 = write_cache(texts, "intfloat/multilingual-e5-small", "caches")
        >>> use = write_cache(texts, "use-multilingual-v3", "caches")
        >>> both = TeacherEnsemble([e5, use], "concat", dim=384, fit_rows=range(len(texts)))
        >>> both.embeddings([3, 1, 2]).shape
        (3, 384)
    """

    def __init__(
        self,
        caches: Sequence[TeacherCache],
        mode: str = "mean",
        *,
        weights: Sequence[float] | None = None,
        routes: Sequence[int] | Sequence[str] | np.ndarray | None = None,
        dim: int | None = None,
        fit_rows: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Unknown mode {mode!r} of a teacher ensemble; choose one of {', '.join(MODES)}.")
        if not caches:
            raise ValueError("A teacher ensemble needs at least one cache.")
        _check_same_texts(caches)
        self.mode = mode
        self.caches = list(caches)
        self.weights = _checked_weights(weights, self.caches, mode)
        self.routes = _checked_routes(routes, self.caches, mode)
        self.matrix: np.ndarray | None = None
        self.retained_energy = 1.0
        if mode != "concat":
            self.caches = _of_one_width(self.caches, dim, fit_rows)
        elif dim is not None:
            self._fit(dim, fit_rows)
        self.spec = self._describe()

    def _fit(self, dim: int, fit_rows: Sequence[int] | np.ndarray | None) -> None:
        """Fits the projection of a concatenation, if it is wider than asked for."""
        width = self.dim
        if not 1 <= dim <= width:
            raise ValueError(f"Cannot project the {width} dimensions of {_names(self.caches)} to {dim}.")
        if dim < width:
            moments = second_moments(self.embeddings, _training_rows(fit_rows), width)
            matrix, self.retained_energy = principal_directions(moments, dim)
            self.matrix = np.ascontiguousarray(matrix, dtype=np.float32)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.caches[0])

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        if self.mode != "concat":
            return self.caches[0].dim
        return sum(cache.dim for cache in self.caches) if self.matrix is None else len(self.matrix)

    @property
    def text_hashes(self) -> np.ndarray:
        """Hash of every row's text, `uint64 (N,)`."""
        return self.caches[0].text_hashes

    def rows_for(self, texts: Iterable[str]) -> np.ndarray:
        """Finds the rows of texts; see [`TeacherCache.rows_for`]."""
        return self.caches[0].rows_for(texts)

    def embeddings(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Gathers the combined embeddings.

        Args:
            rows: Row numbers `(N,)`, in any order, repeated or not.

        Returns:
            float32 `(N, dim)`.

        Raises:
            IndexError: If a row is outside the caches.
        """
        if self.routes is None:
            return self.combine([cache.embeddings(rows) for cache in self.caches])
        rows = self.caches[0]._checked(rows)
        members = self.routes[rows]
        result = np.empty((len(rows), self.dim), dtype=np.float32)
        for member in np.unique(members):
            places = np.flatnonzero(members == member)
            result[places] = self.caches[member].embeddings(rows[places])
        return result

    def combine(self, vectors: Sequence[np.ndarray]) -> np.ndarray:
        """Combines the members' answers to any texts, for instance to those that the ensemble is evaluated on.

        Args:
            vectors: What each member says, `(N, D)` each: as its cache gives it, or as its teacher does.

        Returns:
            float32 `(N, dim)`, rows of length 1.

        Raises:
            ValueError: With routes, which are only known for the rows of the caches, or if the arrays do not fit.
        """
        if self.mode == "route":
            raise ValueError("Routes belong to the rows of the caches: for other texts, choose the teacher yourself.")
        if len(vectors) != len(self.caches):
            raise ValueError(f"There are {len(vectors)} arrays for the {len(self.caches)} members of the ensemble.")
        parts = [_unit(_fitted(cache, part)) for cache, part in zip(self.caches, vectors, strict=True)]
        if self.mode == "mean":
            return _unit(sum(weight * part for weight, part in zip(self.weights, parts, strict=True)))
        joined = np.concatenate(
            [np.sqrt(weight) * part for weight, part in zip(self.weights, parts, strict=True)], axis=1
        )
        return _unit(joined if self.matrix is None else joined @ self.matrix.T)

    def _describe(self) -> TeacherSpec:
        """The spec: what differs between the members is empty, and the hash stands for all of them."""
        specs = [cache.spec for cache in self.caches]
        identity = {
            "mode": self.mode,
            "weights": self.weights.tolist(),
            "members": [spec.fingerprint for spec in specs],
            "projections": [cache.projection.sha256 for cache in self.caches if isinstance(cache, ProjectedCache)],
            "routes": None if self.routes is None else hashlib.sha256(self.routes.astype("<i8").tobytes()).hexdigest(),
            "matrix": None if self.matrix is None else hashlib.sha256(self.matrix.astype("<f4").tobytes()).hexdigest(),
        }
        weighted = self.mode != "route" and len(set(self.weights.tolist())) > 1
        names = [
            f"{weight:.3g} {spec.teacher}" if weighted else spec.teacher
            for weight, spec in zip(self.weights, specs, strict=True)
        ]
        prompts, tokenizers = {spec.prompt for spec in specs}, {spec.tokenizer_sha256 for spec in specs}
        return TeacherSpec(
            teacher=f"{self.mode}({', '.join(names)})",
            weights_sha256=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            tokenizer_sha256=tokenizers.pop() if len(tokenizers) == 1 else "",
            prompt=prompts.pop() if len(prompts) == 1 else "",
            normalize=self.mode != "route" or all(spec.normalize for spec in specs),
            dtype="float32",
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _fitted(cache: TeacherCache, vectors: np.ndarray) -> np.ndarray:
    """Vectors of a member in the width that its cache has, projected if they come from the teacher itself."""
    if isinstance(cache, ProjectedCache) and vectors.shape[1] == cache.manifest.dim != cache.dim:
        return cache.project(vectors)
    if vectors.shape[1] != cache.dim:
        raise ValueError(f"{cache.spec.teacher} gives {cache.dim} dimensions, but the array has {vectors.shape[1]}.")
    return vectors


def _names(caches: Sequence[TeacherCache]) -> str:
    return ", ".join(f"{cache.spec.teacher} ({cache.dim})" for cache in caches)


def _check_same_texts(caches: Sequence[TeacherCache]) -> None:
    """Refuses caches of different texts, naming both and the first row that differs."""
    first = caches[0]
    for other in caches[1:]:
        remedy = "Write both from the same list of texts (recipes/cache_teacher.py)."
        between = f"the caches of {first.spec.teacher} ({first.path}) and {other.spec.teacher} ({other.path})"
        if len(first) != len(other):
            raise ValueError(f"The texts differ: {between} have {len(first)} and {len(other)} rows. {remedy}")
        wrong = np.flatnonzero(first.text_hashes != other.text_hashes)
        if len(wrong):
            raise ValueError(
                f"The texts differ: {between} hold different texts in {len(wrong)} of {len(first)} rows; the first is row "
                f"{wrong[0]}. {remedy}"
            )


def _checked_weights(weights: Sequence[float] | None, caches: Sequence[TeacherCache], mode: str) -> np.ndarray:
    """The weights, with the sum 1."""
    if weights is None:
        return np.full(len(caches), 1 / len(caches))
    if mode == "route":
        raise ValueError("weights have no meaning with mode='route', where one teacher answers a row; leave them out.")
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (len(caches),) or not np.isfinite(found).all() or (found <= 0).any():
        raise ValueError(f"weights must be {len(caches)} positive numbers for {_names(caches)}, not {list(weights)}.")
    return found / found.sum()


def _checked_routes(
    routes: Sequence[int] | Sequence[str] | np.ndarray | None, caches: Sequence[TeacherCache], mode: str
) -> np.ndarray | None:
    """The number of the member that answers each row."""
    if mode != "route":
        if routes is not None:
            raise ValueError(f"routes have no meaning with mode={mode!r}; use mode='route', or leave them out.")
        return None
    if routes is None:
        raise ValueError("mode='route' needs routes: for every row of the caches, which teacher answers it.")
    found = routes if isinstance(routes, np.ndarray) else np.asarray(list(routes))
    if found.shape != (len(caches[0]),):
        raise ValueError(f"routes have the shape {found.shape}, but the caches have {len(caches[0])} rows.")
    choices: list = list(range(len(caches)))
    if found.dtype.kind not in "iu":
        choices = [cache.spec.teacher for cache in caches]
        if len(set(choices)) < len(choices):
            raise ValueError(f"Two members have the same name: {', '.join(choices)}. Give routes as numbers from 0.")
    members = np.full(len(found), -1, dtype=np.int64)
    for member, choice in enumerate(choices):
        members[found == choice] = member
    if (members < 0).any():
        row = int(np.argmax(members < 0))
        raise ValueError(f"Row {row} is routed to {found.tolist()[row]!r}, but the members are {choices}.")
    return members


def _training_rows(fit_rows: Sequence[int] | np.ndarray | None) -> np.ndarray:
    if fit_rows is None:
        raise ValueError(
            "A projection is fitted on training rows only: say which these are with fit_rows, for instance "
            "fit_rows=range(len(cache)) if the caches hold nothing but training texts."
        )
    return np.unique(np.asarray(fit_rows, dtype=np.int64))


def _of_one_width(
    caches: Sequence[TeacherCache], dim: int | None, fit_rows: Sequence[int] | np.ndarray | None
) -> list[TeacherCache]:
    """Members of the same width: as they are, or projected."""
    if dim is None:
        if len({cache.dim for cache in caches}) > 1:
            raise ValueError(
                f"The teachers have different widths: {_names(caches)}. Project them to one of them with dim=..., or use "
                "mode='concat'."
            )
        return list(caches)
    return [
        cache if cache.dim == dim else project_cache(cache, dim, rows=_training_rows(fit_rows)) for cache in caches
    ]


__all__ = ["MODES", "TeacherEnsemble"]
