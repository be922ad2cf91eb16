"""Tiny models for the evaluation tests (a random transformer, a random static table), and folders of finished runs.

The runs have results, a recipe and a log, but no weights: reports need none.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.speed import ModelSize, ModelSpeed

RUN_LOG = [
    {"step": 0, "eval_stsb_spearman": 0.60, "eval_fidelity_cosine": 0.5, "eval_fidelity_cosine_1_32": 0.7},
    *(
        {"step": step, "loss": 1 / step, "loss/cosine": 0.4 / step, "loss/gram": 0.6 / step}
        for step in range(10, 99, 10)
    ),
    {"step": 50, "eval_stsb_spearman": 0.80, "eval_fidelity_cosine": 0.9, "eval_fidelity_cosine_1_32": 0.9},
    {"step": 90, "eval_stsb_spearman": 0.75, "eval_fidelity_cosine": 0.8, "eval_fidelity_cosine_1_32": 0.9},
]


def _model_row(role: str, quality: float, tokens: float = 1000.0, megabytes: float = 90.0) -> ModelRow:
    """Make a row whose scores all follow from one number."""
    test = {
        "stsb_spearman": quality,
        "retrieval_ndcg_at_10": quality / 2,
        **{f"retrieval_ndcg_at_10_{bucket}": quality / 3 for bucket in ("1_32", "33_128", "129_256")},
    }
    if role != "teacher":
        test |= {"fidelity_cosine": quality, "fidelity_cosine_1_32": quality}
    return ModelRow(
        role,
        f"org/the-{role}",
        size=ModelSize(int(megabytes * 250_000), megabytes, megabytes / 4),
        speed=ModelSpeed(tokens / 20, tokens, 5.0, 9.0, "a machine, 2 threads", "bfloat16", 300.0),
        metrics={"test": test, "validation": {"stsb_spearman": quality + 0.02}},
        fingerprint=f"of the {role}",
    )


def _make_run(folder: Path, quality: float = 0.79, seed: int = 1, tokens: float = 800.0, **recipe: object) -> Path:
    """Write a run: results.json, recipe.json and the log of its newest checkpoint."""
    rows = [
        _model_row("teacher", 0.80),
        _model_row("student", quality, tokens, 45.0),
        _model_row("untrained", 0.70),
        _model_row("control", 0.20),
    ]
    command = "accelerate launch recipes/embedding_distill.py"
    results = Results(
        folder.name, rows, 50, "stsb_spearman", command=command, seed=seed, minutes=12.5, notes=["5 rows < 9 & more"]
    )
    (folder / "checkpoint-90").mkdir(parents=True)
    (folder / "checkpoint-90" / "trainer_state.json").write_text(json.dumps({"log_history": RUN_LOG}))
    training = {"cosine": 1.0, "seed": seed}
    (folder / "recipe.json").write_text(json.dumps({"student": "deltanet", "training": training, **recipe}))
    results.write(folder)
    return folder


@pytest.fixture
def make_run():
    """Give what writes the folder of a run."""
    return _make_run


@pytest.fixture
def run_log():
    """Give the log of such a run."""
    return RUN_LOG


@pytest.fixture(scope="session")
def tiny_model(tiny_sentence_transformer):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(tiny_sentence_transformer, device="cpu")


@pytest.fixture(scope="session")
def static_model(tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert).backend_tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
