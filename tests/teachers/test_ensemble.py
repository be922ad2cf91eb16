"""Ensembles: the geometry of means and concatenations, exact routes, one projection, and members that do not fit."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.projection import ProjectedCache, project_cache
from hf_distill.teachers.writer import write_cache

ROWS = 64


def vectors_of(seed: int, width: int) -> Callable[[list[str]], np.ndarray]:
    """A teacher: a deterministic function of the text, of any length."""

    def embed(texts: list[str]) -> np.ndarray:
        return np.stack(
            [np.random.default_rng([seed, zlib.crc32(text.encode())]).standard_normal(width) + 0.3 for text in texts]
        )

    return embed


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, tiny_texts: list[str]) -> list[TeacherCache]:
    """Teachers of 6, 6 and 9 dimensions, each with a prompt of its own; the second is not normalised."""
    folder = tmp_path_factory.mktemp("ensemble")
    return [
        write_cache(
            tiny_texts,
            vectors_of(seed, width),
            folder,
            spec=TeacherSpec(f"org/t{seed}", prompt=f"{seed}: ", normalize=seed != 1),
            shard_rows=20,
            progress=False,
        )
        for seed, width in enumerate((6, 6, 9))
    ]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def normal(cache: TeacherCache) -> np.ndarray:
    return unit(cache.embeddings(np.arange(ROWS)).astype(np.float64))


weight = st.floats(0.01, 100)
some_rows = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(weights=st.tuples(weight, weight, weight), rows=some_rows)
def test_cosines_of_a_concatenation_are_the_weighted_sum(caches, weights, rows) -> None:
    found = TeacherEnsemble(caches, "concat", weights=weights).embeddings(rows)
    assert found.shape == (len(rows), 21)
    shares = np.array(weights) / sum(weights)
    parts = [normal(cache)[rows] for cache in caches]
    expected = sum(share * (part @ part.T) for share, part in zip(shares, parts, strict=True))
    np.testing.assert_allclose(found @ found.T, expected, atol=2e-6)


@quick
@given(weights=st.tuples(weight, weight), rows=some_rows)
def test_a_mean_is_the_weighted_mean_of_unit_vectors(caches, weights, rows) -> None:
    found = TeacherEnsemble(caches[:2], "mean", weights=weights).embeddings(np.array(rows))
    assert found.dtype == np.float32
    expected = unit(weights[0] * normal(caches[0]) + weights[1] * normal(caches[1]))[rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@quick
@given(routes=st.lists(st.integers(0, 1), min_size=ROWS, max_size=ROWS), rows=some_rows)
def test_routes_are_exact(caches, routes, rows) -> None:
    found = TeacherEnsemble(caches[:2], "route", routes=routes).embeddings(rows)
    expected = np.stack([caches[routes[row]].embeddings([row])[0] for row in rows])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("mode", ["mean", "concat"])
def test_one_teacher_is_that_teacher(caches: list[TeacherCache], mode: str, tiny_texts: list[str]) -> None:
    ensemble = TeacherEnsemble(caches[:1], mode)
    np.testing.assert_allclose(ensemble.embeddings(range(ROWS)), caches[0].embeddings(range(ROWS)), atol=1e-3)
    np.testing.assert_allclose(ensemble.embeddings(range(ROWS)), normal(caches[0]), atol=1e-6)
    assert (len(ensemble), ensemble.dim, ensemble.spec.prompt) == (ROWS, 6, "0: ")
    np.testing.assert_array_equal(ensemble.rows_for(tiny_texts[3:5]), [3, 4])
    np.testing.assert_array_equal(ensemble.text_hashes, caches[0].text_hashes)
    assert ensemble.embeddings([]).shape == (0, 6)


def test_routes_by_the_names_of_a_column(caches: list[TeacherCache]) -> None:
    names = ["org/t1" if row % 3 else "org/t0" for row in range(ROWS)]
    found = TeacherEnsemble(caches[:2], "route", routes=Dataset.from_dict({"teacher": names})["teacher"])
    np.testing.assert_array_equal(found.routes, [int(row % 3 > 0) for row in range(ROWS)])
    with pytest.raises(IndexError, match="Row 64"):
        found.embeddings([64])
    with pytest.raises(IndexError, match="Row -1"):
        found.embeddings([-1])


def test_projection_is_fitted_on_the_training_rows_only(caches: list[TeacherCache]) -> None:
    train = np.arange(0, 40)
    ensemble = TeacherEnsemble(caches, "concat", dim=5, fit_rows=train)
    whole = TeacherEnsemble(caches, "concat").embeddings(range(ROWS)).astype(np.float64)
    directions = np.linalg.svd(whole[train], full_matrices=False)[2][:5]
    np.testing.assert_allclose(np.abs(ensemble.matrix @ directions.T), np.eye(5), atol=1e-3)
    expected = unit(whole @ ensemble.matrix.T)
    np.testing.assert_allclose(ensemble.embeddings(range(ROWS)), expected, atol=1e-5)
    assert 0.4 < ensemble.retained_energy < 1
    assert ensemble.dim == 5
    other = TeacherEnsemble(caches, "concat", dim=5, fit_rows=range(ROWS))
    assert other.spec.fingerprint != ensemble.spec.fingerprint
    same = TeacherEnsemble(caches, "concat", dim=21)
    assert (same.matrix, same.dim) == (None, 21)
    with pytest.raises(ValueError, match="fit_rows=range"):
        TeacherEnsemble(caches, "concat", dim=5)
    with pytest.raises(ValueError, match="no row to fit"):
        TeacherEnsemble(caches, "concat", dim=5, fit_rows=[])
    with pytest.raises(IndexError, match="Row 64"):
        TeacherEnsemble(caches, "concat", dim=5, fit_rows=range(65))


@pytest.mark.parametrize("mode", ["mean", "route"])
def test_members_of_other_widths_are_projected(caches: list[TeacherCache], mode: str) -> None:
    routes = [2 * (row % 2) // 2 for row in range(ROWS)] if mode == "route" else None
    wanted = {"mode": mode, "routes": routes, "dim": 6}
    with pytest.raises(ValueError, match="training rows only"):
        TeacherEnsemble([caches[0], caches[2]], **wanted)
    ensemble = TeacherEnsemble([caches[0], caches[2]], **wanted, fit_rows=range(50))
    assert ensemble.caches[0] is caches[0]
    assert isinstance(ensemble.caches[1], ProjectedCache)
    second = project_cache(caches[2], 6, rows=range(50)).embeddings(range(ROWS))
    first = normal(caches[0])
    expected = unit(first + second) if mode == "mean" else np.where(np.arange(ROWS)[:, None] % 2, second, first)
    np.testing.assert_allclose(ensemble.embeddings(range(ROWS)), expected, atol=1e-3)


def test_other_texts_can_be_combined(caches: list[TeacherCache]) -> None:
    texts = ["yeni bir metin", "ve bir başkası"]
    for options in ({"mode": "concat", "dim": 7}, {"mode": "mean", "dim": 5}):
        ensemble = TeacherEnsemble(caches, **options, fit_rows=range(ROWS))
        rows = [5, 3]
        raw = [cache.embeddings(rows) for cache in caches]
        np.testing.assert_allclose(ensemble.combine(raw), ensemble.embeddings(rows), atol=1e-3)
        assert ensemble.combine([vectors_of(0, 6)(texts), vectors_of(1, 6)(texts), vectors_of(2, 9)(texts)]).shape == (
            2,
            options["dim"],
        )
    with pytest.raises(ValueError, match="2 arrays for the 3 members"):
        ensemble.combine(raw[:2])
    with pytest.raises(ValueError, match="org/t2 gives 5 dimensions, but the array has 4"):
        ensemble.combine([*raw[:2], raw[2][:, :4]])
    with pytest.raises(ValueError, match="Routes belong to the rows"):
        TeacherEnsemble(caches[:2], "route", routes=[0] * ROWS).combine(raw[:2])


def test_pickle_and_identity(caches: list[TeacherCache]) -> None:
    ensemble = TeacherEnsemble(caches, "concat", weights=[2, 1, 1], dim=5, fit_rows=range(ROWS))
    data = pickle.dumps(ensemble)
    assert len(data) < 10_000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.embeddings([7, 1]), ensemble.embeddings([7, 1]))
    assert again.spec == ensemble.spec
    assert ensemble.spec.teacher == "concat(0.5 org/t0, 0.25 org/t1, 0.25 org/t2)"
    assert (ensemble.spec.prompt, ensemble.spec.hidden_layers, ensemble.spec.tokenizer_sha256) == ("", (), "")
    assert [cache.spec.prompt for cache in ensemble.caches] == ["0: ", "1: ", "2: "]
    specs = [
        TeacherEnsemble(caches[:2]).spec,
        TeacherEnsemble(caches[1::-1]).spec,
        TeacherEnsemble(caches[:2], weights=[1, 2]).spec,
        TeacherEnsemble(caches[:2], "concat").spec,
        TeacherEnsemble(caches[:2], "route", routes=[0] * ROWS).spec,
        TeacherEnsemble(caches[:2], "route", routes=[1] * ROWS).spec,
    ]
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert specs[0].teacher == "mean(org/t0, org/t1)"


def test_different_texts_name_both_sides(caches: list[TeacherCache], tmp_path: Path, tiny_texts: list[str]) -> None:
    swapped = [*tiny_texts[:9], tiny_texts[10], tiny_texts[9], *tiny_texts[11:]]
    for texts, message in (
        (swapped, r"org/t0 \(.*\) and org/new \(.*\) hold different texts in 2 of 64 rows; the first is row 9"),
        (tiny_texts[:60], r"org/t0 \(.*\) and org/new \(.*\) have 64 and 60 rows"),
    ):
        other = write_cache(
            texts, vectors_of(4, 6), tmp_path / str(len(texts)), spec=TeacherSpec("org/new"), progress=False
        )
        with pytest.raises(ValueError, match=message):
            TeacherEnsemble([caches[0], other])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sum"}, "Unknown mode 'sum'"),
        ({"mode": "mean", "members": 3}, r"different widths: org/t0 \(6\), org/t1 \(6\), org/t2 \(9\)"),
        ({"mode": "mean", "members": 0}, "at least one cache"),
        ({"weights": [1]}, r"weights must be 2 positive numbers for org/t0 \(6\)"),
        ({"weights": [1, 0]}, "2 positive numbers"),
        ({"weights": [1, float("nan")]}, "2 positive numbers"),
        ({"routes": [0] * ROWS}, "no meaning with mode='mean'"),
        ({"mode": "route"}, "needs routes"),
        ({"mode": "route", "routes": [0] * ROWS, "weights": [1, 1]}, "weights have no meaning"),
        ({"mode": "route", "routes": [0] * 3}, r"shape \(3,\), but the caches have 64 rows"),
        ({"mode": "route", "routes": [0, 1, 2, *[0] * 61]}, r"Row 2 is routed to 2, but the members are \[0, 1\]"),
        ({"mode": "route", "routes": ["org/t0"] * 63 + ["e5"]}, "Row 63 is routed to 'e5'.*'org/t0', 'org/t1'"),
        ({"mode": "route", "routes": [None] * ROWS}, "Row 0 is routed to None"),
        ({"mode": "concat", "dim": 13, "fit_rows": [1]}, "12 dimensions of .* to 13"),
        ({"mode": "mean", "dim": 7, "fit_rows": [1]}, "6 dimensions to 7"),
    ],
)
def test_what_does_not_fit(caches: list[TeacherCache], options: dict, message: str) -> None:
    options = dict(options)
    members = options.pop("members", 2)
    with pytest.raises(ValueError, match=message):
        TeacherEnsemble(caches[:members], **options)


def test_two_members_of_one_name_need_numbers(caches: list[TeacherCache]) -> None:
    with pytest.raises(ValueError, match="same name.*numbers from 0"):
        TeacherEnsemble([caches[0], caches[0]], "route", routes=["org/t0"] * ROWS)


def test_a_student_learns_from_it(
    caches: list[TeacherCache], tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    from hf_distill.trainers.embedding import EmbeddingDistillTrainer
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig

    args = EmbeddingDistillConfig(
        str(tmp_path), max_steps=2, embedding_projection="learned", report_to="none", use_cpu=True, logging_steps=1
    )
    student = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    ensemble = TeacherEnsemble(caches, "concat", dim=12, fit_rows=range(ROWS))
    trainer = EmbeddingDistillTrainer(student, args, Dataset.from_dict({"text": tiny_texts}), teacher=ensemble)
    trainer.train()
    assert trainer.source.embedding_width == 12
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 2
