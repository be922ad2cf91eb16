"""What models say of the same pairs: kept with a run, and the difference of two models with its spread.

Two correlations on the same pairs share most of their chance: their difference is known far better than either. It is
resampled over the pairs, the same ones for both models, and over the seeds where there are several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.evaluation.hashed_json import read_hashed, write_hashed
from hf_distill.evaluation.score_cache import library_versions, model_fingerprint
from hf_distill.teachers.live import best_dtype

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hf_distill.evaluation.score_cache import ScoreCache
    from hf_distill.evaluation.sts import STSEvaluator

SIMILARITIES_FILE = "similarities.json"
SCHEMA_VERSION = 1
_AGAIN = "Delete it and score the run again: run its recipe with the same arguments."
_ROUNDS = 2000


@dataclass(frozen=True)
class PairScores:
    """Similarities of the models of a run on the pairs of a test set.

    Args:
        task (`str`): the task that the pairs are of, `"stsb_tr"`.
        split (`str`): its split.
        scores (`list[float]`): human score of each of `N` pairs.
        similarities (`dict[str, list[float]]`): role of a model to its cosine similarity of each pair.
        fingerprints (`dict[str, str]`): role to the hash of the model, that of its `ModelRow`.
        schema_version (`int`, *optional*): version of this schema.
    """

    task: str
    split: str
    scores: list[float]
    similarities: dict[str, list[float]]
    fingerprints: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def write(self, folder: str | Path) -> Path:
        """Write `similarities.json` into a run's folder, atomically, with a hash of its content."""
        path = Path(folder) / SIMILARITIES_FILE
        write_hashed(path, dataclasses.asdict(self), indent=None)
        return path

    @classmethod
    def read(cls, folder: str | Path) -> PairScores:
        """Read the file of a run.

        Args:
            folder (`str` or `Path`): the run's folder.

        Returns:
            `PairScores`: equal to what was written.

        Raises:
            FileNotFoundError: the run has none.
            ValueError: edited since it was written, damaged, or of another version.
        """
        path = Path(folder) / SIMILARITIES_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}: the run was not scored to the end. Run its recipe again, it goes on from there."
            )
        values = read_hashed(path, SCHEMA_VERSION, _AGAIN)
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{path} lacks a field or has an unknown one ({error}). {_AGAIN}") from error


def pair_similarities(
    model: SentenceTransformer,
    evaluator: STSEvaluator,
    cache: ScoreCache | None = None,
    fingerprint: str | None = None,
) -> np.ndarray:
    """Compute a model's similarities of an evaluator's pairs, or take them from a cache.

    Args:
        model (`SentenceTransformer`): the model.
        evaluator (`STSEvaluator`): the pairs.
        cache (`ScoreCache`, *optional*): where they are kept by the hash of the model.
        fingerprint (`str`, *optional*): that hash, where it is known: a large vocabulary takes seconds.

    Returns:
        `np.ndarray`: float64 `(N,)`.
    """
    if cache is None:
        return evaluator.similarities(model)
    key = {
        "task": f"{evaluator.name}_pairs",
        "split": evaluator.split or "",
        "dtype": best_dtype(model.device) if evaluator.dtype == "auto" else evaluator.dtype,
        "model": fingerprint or model_fingerprint(model),
        "data": evaluator.digest(),
        "versions": library_versions(),
    }
    kept = cache.get_or_compute(
        key, lambda: {str(row): float(value) for row, value in enumerate(evaluator.similarities(model))}
    )
    return np.array(list(kept.values()))


def write_pair_scores(
    folder: str | Path,
    models: Mapping[str, tuple[str, SentenceTransformer]],
    evaluator: STSEvaluator,
    cache: ScoreCache | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Path:
    """Keep the similarities of a run's models with the run.

    Args:
        folder (`str` or `Path`): the run's folder.
        models (`Mapping[str, tuple[str, SentenceTransformer]]`): role to (name, model), as for `score_models`.
        evaluator (`STSEvaluator`): the test pairs, in float32.
        cache (`ScoreCache`, *optional*): with the one that `score_models` had, nothing is computed again.
        fingerprints (`Mapping[str, str]`, *optional*): role to the hash of the model, where it is known.

    Returns:
        `Path`: `similarities.json`.
    """
    known = fingerprints or {role: model_fingerprint(model) for role, (_, model) in models.items()}
    return PairScores(
        task=evaluator.name,
        split=evaluator.split or "",
        scores=evaluator.scores.tolist(),
        similarities={
            role: pair_similarities(model, evaluator, cache, known[role]).tolist()
            for role, (_, model) in models.items()
        },
        fingerprints={role: known[role] for role in models},
    ).write(folder)


@dataclass(frozen=True)
class Difference:
    """Difference of two models' Pearson correlations on the same pairs.

    Args:
        mean (`float`): first minus second, the mean over the seeds.
        low (`float`): lower end of the 95 % interval, resampled over pairs and seeds.
        high (`float`): its upper end.
        deviation (`float`): standard deviation of the difference over the seeds, with `n - 1`; 0 for one seed.
        seeds (`int`): number of seeds.
    """

    mean: float
    low: float
    high: float
    deviation: float
    seeds: int


def paired_difference(
    scores: Sequence[float],
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same pairs, over one or several seeds.

    Each round draws pairs with replacement, the same for both models and all seeds, and then seeds with replacement.

    Args:
        scores (`Sequence[float]`): human scores of `N` pairs.
        first (`Sequence[Sequence[float]]`): similarities of one model, `(S, N)`, a row for each seed.
        second (`Sequence[Sequence[float]]`): those of the other, for the same seeds.
        rounds (`int`, *optional*, defaults to 2000): number of rounds.
        seed (`int`, *optional*, defaults to 0): of the drawing.

    Returns:
        `Difference`: first minus second.

    Raises:
        ValueError: different numbers of pairs or seeds, or none.

    Example:
        >>> paired_difference(scores, [mft_seed1, mft_seed2], [tabi_seed1, tabi_seed2])
        Difference(mean=0.021, low=0.004, high=0.038, deviation=0.003, seeds=2)
    """
    gold, one, two = np.asarray(scores, float), np.atleast_2d(first), np.atleast_2d(second)
    if one.shape != two.shape or one.shape[1] != len(gold) or not one.size:
        raise ValueError(
            f"Models are compared on the same pairs and seeds: {len(gold)} scores, similarities {one.shape} and {two.shape}."
        )
    found = pearson(gold, one) - pearson(gold, two)
    rng = np.random.default_rng(seed)
    pairs, seeds = len(gold), len(one)
    weights = rng.multinomial(pairs, np.full(pairs, 1 / pairs), size=rounds)
    drawn = pearson(gold, one, weights) - pearson(gold, two, weights)
    chosen = rng.integers(seeds, size=(rounds, seeds))
    means = np.take_along_axis(drawn, chosen, axis=1).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    deviation = float(found.std(ddof=1)) if seeds > 1 else 0.0
    return Difference(float(found.mean()), float(low), float(high), deviation, seeds)


def pearson(scores: np.ndarray, similarities: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Correlate several models' similarities with one set of scores, also in samples that count pairs several times.

    Args:
        scores (`np.ndarray`): `(N,)`.
        similarities (`np.ndarray`): `(S, N)`.
        weights (`np.ndarray`, *optional*): how often each pair counts, `(R, N)`; once by default.

    Returns:
        `np.ndarray`: `(S,)`, or `(R, S)` with weights; 0 where a correlation is undefined.
    """
    counts = np.ones((1, len(scores))) if weights is None else weights
    total = counts.sum(axis=1, keepdims=True)
    x, y = scores - scores.mean(), similarities - similarities.mean(axis=1, keepdims=True)
    mean_x, mean_y = counts @ x[:, None] / total, counts @ y.T / total
    covariance = counts @ (x[:, None] * y.T) / total - mean_x * mean_y
    spread_x, spread_y = counts @ x[:, None] ** 2 / total - mean_x**2, counts @ y.T**2 / total - mean_y**2
    scale = np.sqrt(np.maximum(spread_x * spread_y, 0))
    found = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)
    return found if weights is not None else found[0]


__all__ = [
    "SIMILARITIES_FILE",
    "Difference",
    "PairScores",
    "pair_similarities",
    "paired_difference",
    "pearson",
    "write_pair_scores",
]
