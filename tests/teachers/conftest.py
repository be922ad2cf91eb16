"""Fixtures of the teacher tests: a tiny model, and a teacher that is a plain function of the text."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hf_distill.teachers.manifest import TeacherSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@pytest.fixture
def tiny_model(tiny_sentence_transformer: str) -> SentenceTransformer:
    """A fresh tiny SentenceTransformer on CPU."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(tiny_sentence_transformer, device="cpu")


@pytest.fixture
def vectors() -> Callable[[list[str]], np.ndarray]:
    """A deterministic function of texts to vectors of 6 dimensions that are not normalised."""

    def embed(texts: list[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(6) for text in texts])

    return embed


@pytest.fixture
def vector_spec() -> TeacherSpec:
    """The spec that goes with `vectors`."""
    return TeacherSpec(teacher="org/vectors", revision="1", normalize=False)
