"""Tiny models for the evaluation tests (a random transformer, a random static table), and folders of finished runs.

The runs have results, a recipe and a log, but no weights: reports need none.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from hf_distill.evaluation.paired import PairScores
from hf_distill.evaluation.results import ModelRow, Results
from hf_distill.evaluation.speed import ModelSize, ModelSpeed
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.evaluation.training_summary import Origin, Stage, TrainingSummary

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


_PAIRS = 150


def _make_tokenizer_run(
    folder: Path,
    tokenizer: str = "mft",
    source: str | None = "org/e5",
    seed: int = 42,
    quality: tuple[float, float] = (0.4, 0.7),
    tokens: int = 2_000_000,
    rate: float = 5e-5,
    counted: bool = True,
) -> Path:
    """Write a run of the tokenizer experiment; Pearson of the untrained and the trained student is about `quality`."""
    gold = np.random.default_rng(0).random(_PAIRS)
    noise = np.random.default_rng([seed, *f"{tokenizer} {source}".encode()])
    aims = {"teacher": 0.75, "untrained": quality[0], "student": quality[1]}
    similarities = {"teacher": _similar(gold, aims["teacher"], np.random.default_rng(1))}
    similarities |= {role: _similar(gold, aims[role], noise) for role in ("untrained", "student")}
    rows = []
    for role, values in similarities.items():
        test = {
            "stsb_tr_pearson": float(pearsonr(gold, values).statistic),
            "stsb_tr_spearman": float(spearmanr(gold, values).statistic),
            "bitext_recall_at_1": aims[role] / 2,
        }
        stats = _TOKENIZERS["unigram" if role == "teacher" else tokenizer]
        speed = ModelSpeed(200.0, 4000.0, 5.0, 9.0, "a machine, 2 threads", "bfloat16")
        name = "org/the-teacher" if role == "teacher" else f"{tokenizer}-student"
        fingerprint = "of the teacher" if role == "teacher" else f"{role} {tokenizer} {source} {seed}"
        metrics = {"test": test, "validation": {"stsb_tr_pearson": aims[role] + 0.02}}
        rows.append(ModelRow(role, name, "", ModelSize(24_000_000, 96.0, 24.0), speed, metrics, fingerprint, stats))
    training = TrainingSummary(
        teacher=Origin("org/the-teacher"),
        init_from=None if source is None else Origin(source),
        student="tokenizer",
        settings={},
        losses={"cosine": 1.0},
        sources=[],
        texts=9000,
        overlap_removed=3,
        stages=[
            Stage("warm-up", 100, 1.0, 25_600, tokens // 4),
            Stage("epoch", 300, 3.5, 76_800, tokens - tokens // 4),
        ],
        hardware="a machine, 2 threads, bf16 autocast",
        learning_rate=rate,
        batch="256 rows",
    )
    results = Results(folder.name, rows, 400, "stsb_tr_pearson", seed=seed, minutes=6.0, training=training)
    results.command = "accelerate launch recipes/tokenizer_distill.py --stsb_tr_folder stsb-tr"
    folder.mkdir(parents=True)
    results.write(folder)
    scores = {role: values.tolist() for role, values in similarities.items()}
    PairScores("stsb_tr", "test", gold.tolist(), scores, {row.role: row.fingerprint for row in rows}).write(folder)
    log: list[dict[str, object]] = [{"step": 50, "loss": 0.5}]
    for step in range(0, 401, 100):
        value = quality[0] + (quality[1] - quality[0]) * (step / 400) ** 0.4
        seen = {"num_input_tokens_seen": tokens * step // 400} if counted else {}
        log.append({"step": step, "eval_stsb_tr_pearson": value, "eval_stsb_tr_spearman": value, **seen})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    backbone = "random" if source is None else source.rpartition("/")[2]
    recipe = {"name": f"{tokenizer}-{backbone}", "tokenizer": tokenizer, "model": source or "org/e5"}
    recipe |= {"num_layers": None, "random": source is None, "num_texts": 9000, "training": {"seed": seed}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def _similar(gold: np.ndarray, aim: float, rng: np.random.Generator) -> np.ndarray:
    """Make similarities whose correlation with the scores is `aim`, exactly."""
    gold = (gold - gold.mean()) / gold.std()
    noise = rng.standard_normal(len(gold))
    noise -= noise.mean() + gold * (noise @ gold) / len(gold)
    return 0.5 + 0.1 * (aim * gold + np.sqrt(1 - aim**2) * noise / noise.std())


_TOKENIZERS = {
    name: TokenizerStats(name, 2900, 30_000, size, rate, 9 * rate, 8 * rate, 20 * rate, 0.001, trip, 0.4, 3e5)
    for name, size, rate, trip in (
        ("unigram", 250_002, 1.6, 0.98),
        ("mft", 32_768, 3.3, 0.6),
        ("tabi", 32_768, 1.5, 1.0),
    )
}


@pytest.fixture
def make_tokenizer_run():
    """Give what writes the folder of a run of the tokenizer experiment."""
    return _make_tokenizer_run


@pytest.fixture
def tokenizer_runs(tmp_path):
    """Give the folders of six students, one seed each; one clone gains too little, one random start loses."""
    qualities = {
        ("mft", "org/e5"): (0.40, 0.74),
        ("mft", "org/e5-6layers"): (0.55, 0.62),
        ("mft", None): (0.42, 0.47),
        ("tabi", "org/e5"): (0.35, 0.72),
        ("tabi", "org/e5-6layers"): (0.45, 0.70),
        ("tabi", None): (0.40, 0.36),
    }
    return [
        _make_tokenizer_run(
            tmp_path / f"{tokenizer}-{(source or 'random').rpartition('/')[2]}-seed42",
            tokenizer,
            source,
            quality=quality,
            tokens=2_000_000 if tokenizer == "mft" else 1_000_000,
        )
        for (tokenizer, source), quality in qualities.items()
    ]
