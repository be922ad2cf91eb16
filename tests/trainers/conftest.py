"""Builders of tiny trainers: a 2-layer student, a cached or live teacher, a quiet config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig

QUIET = {"report_to": "none", "disable_tqdm": True, "bf16": False, "logging_steps": 1, "warmup_steps": 0}


def make_student(folder: str, seed: int = 1, noise: float = 0.3) -> SentenceTransformer:
    """The tiny sentence transformer with disturbed weights, the same for the same seed."""
    model = SentenceTransformer(folder, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * parameter.std().nan_to_num(0.0) * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def student(tiny_sentence_transformer: str) -> SentenceTransformer:
    return make_student(tiny_sentence_transformer)


@pytest.fixture(scope="session")
def live(tiny_sentence_transformer: str) -> LiveTeacher:
    return LiveTeacher(tiny_sentence_transformer, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def cache(live: LiveTeacher, tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    spec = TeacherSpec.of(live.model, teacher="tiny", dtype="float32")
    return write_cache(tiny_texts, live.model, tmp_path_factory.mktemp("cache"), spec=spec, progress=False)


@pytest.fixture(scope="session")
def texts(tiny_texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": tiny_texts})


@pytest.fixture(scope="session")
def pairs(tiny_texts: list[str]) -> Dataset:
    return Dataset.from_dict({"anchor": tiny_texts[0::2], "positive": tiny_texts[1::2]})


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., EmbeddingDistillConfig]:
    def build(**fields: Any) -> EmbeddingDistillConfig:
        defaults = {"output_dir": str(tmp_path / "run"), "max_steps": 3, "per_device_train_batch_size": 8, **QUIET}
        return EmbeddingDistillConfig(**{**defaults, "learning_rate": 1e-3, "save_strategy": "no", **fields})

    return build


@pytest.fixture
def make_trainer(
    tiny_sentence_transformer: str, cache: TeacherCache, texts: Dataset, config: Callable[..., EmbeddingDistillConfig]
) -> Callable[..., EmbeddingDistillTrainer]:
    """Trainer of a fresh student on single texts and the cache, with any config field or argument replaced."""

    def build(*, student: SentenceTransformer | None = None, data: Any = None, teacher: Any = cache, **fields: Any):
        arguments = {key: fields.pop(key) for key in ("evaluator", "eval_dataset", "callbacks") if key in fields}
        args = config(**fields)
        set_seed(args.seed)
        model = make_student(tiny_sentence_transformer) if student is None else student
        return EmbeddingDistillTrainer(model, args, texts if data is None else data, teacher=teacher, **arguments)

    return build
