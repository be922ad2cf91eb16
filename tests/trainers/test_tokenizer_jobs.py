"""What makes two runs of the tokenizer experiment the same: every field that makes students differ is compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_jobs import Job, describe_job, differing_field

QUIET = {"bf16": False, "report_to": "none", "disable_tqdm": True}


def describe(strategy: str = "mean", hidden_size: int | None = None, **fields: Any) -> dict[str, Any]:
    job = Job("a-b", "a", "model", 1, False, 7, Path("run"), hidden_size)
    return describe_job(job, strategy, EmbeddingDistillConfig("out", **{**QUIET, **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.1),
        ("warmup_phase_steps", 3),
        ("lr_scheduler_type", "cosine"),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("bf16", True),
        ("adam_beta1", 0.8),
        ("adam_beta2", 0.98),
        ("adam_epsilon", 1e-6),
        ("max_grad_norm", 0.5),
        ("optim", "sgd"),
        ("too_long", "drop"),
        ("bucket_by_length", False),
        ("embedding_projection", "pca"),
        ("matryoshka_dims", [16]),
    ],
)
def test_a_field_that_makes_students_differ(field: str, value: Any) -> None:
    first, other = describe(), describe(**{field: value})
    assert json.loads(json.dumps(first)) == first
    assert differing_field(first, describe()) is None
    name, old, new = differing_field(first, other)
    assert (name, old, new) == (f"training.{field}", first["training"][field], other["training"][field])


def test_terms_and_processes_count() -> None:
    first = describe()
    assert differing_field(first, describe(gram_weight=0.5))[0] == "training.gram"
    assert differing_field(describe(gram_weight=0.5), first) == ("training.gram", 0.5, None)
    schedule = describe(cosine_weight={"0": 1.0, "500": 0.1})  # the same at the first step
    assert differing_field(first, schedule) == ("training.cosine", 1.0, {"0": 1.0, "500": 0.1})
    four = copy.deepcopy(first)
    four["training"]["world_size"] = 4
    assert differing_field(four, first) == ("training.world_size", 4, 1)


def test_runs_of_before_are_compared_in_what_they_say() -> None:
    before = describe()
    for name in ("lr_scheduler_type", "adam_beta2", "world_size", "optim"):
        del before["training"][name]
    del before["hidden_size"]
    assert differing_field(before, describe(adam_beta2=0.9, optim="sgd")) is None
    assert differing_field(before, describe(learning_rate=0.1))[0] == "training.learning_rate"
    assert differing_field(before, describe(hidden_size=16)) == ("hidden_size", None, 16)
    assert differing_field(before, describe("first")) == ("strategy", "mean", "first")
    del before["training"]["weight_decay"]
    assert differing_field(before, describe())[0] == "training.weight_decay"
