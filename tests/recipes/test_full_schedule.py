"""Requirement 2's schedule (`deltanet_minilm_full.yaml`): its figures, and two real steps of its terms on a tiny teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_distill.data.sources import load_source
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.embedding import EmbeddingDistillTrainer
from hf_distill.trainers.students import build_student

RECIPES = Path(__file__).parents[2] / "recipes"
CONFIG = RECIPES / "configs" / "embedding" / "deltanet_minilm_full.yaml"
WEIGHTS = {
    "contrastive": 1.0,
    "l2": 1.0,
    "hidden": 1.5,
    "orthogonality": 0.01,
    "state_decorrelation": 0.002,
    "spearman": 0.3,
    "ranking": 0.2,
}


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Reads the config as the recipe does, with some fields changed on the command line."""
    monkeypatch.syspath_prepend(str(RECIPES))
    import embedding_distill

    def read(*arguments):
        return embedding_distill.parse(["--config", str(CONFIG), "--output_dir", str(tmp_path / "run"), *arguments])

    return read


def test_figures_of_the_requirement(parse):
    recipe, args = parse()
    assert args.weights_at(0) == WEIGHTS
    assert (args.contrastive_scale, args.contrastive_label_smoothing, args.ranking_margin) == (20.0, 0.1, 0.05)
    assert (args.max_steps, args.warmup_steps, args.learning_rate, args.weight_decay) == (200_000, 1000, 2e-5, 0.1)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 256
    assert (args.max_grad_norm, args.max_length, args.save_steps, args.seed) == (1.0, 128, 1000, 42)
    assert args.save_steps == args.eval_steps, "every checkpoint has a validation score"
    assert set(recipe.sources) == {"allnli", "qqp", "msmarco", "wikianswers", "snli"}


def test_two_steps_of_its_terms_on_packaged_pairs(parse, tiny_sentence_transformer):
    live = LiveTeacher(tiny_sentence_transformer, dtype="float32", device="cpu")
    few = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--max_length", "32", "--warmup_steps", "0"]
    off = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--bf16", "false"]
    quiet = ["--logging_steps", "1", "--report_to", "none", "--disable_tqdm", "true", "--eval_on_start", "false"]
    recipe, args = parse(*few, *off, *quiet)
    student = build_student(recipe.student, live.model, seed=args.seed, **recipe.student_config)
    mixer = student[0].auto_model.layers[0].mixer
    start = mixer.query.weight.detach().clone()
    assert torch.allclose(start @ start.T, torch.eye(len(start)), atol=1e-5), "the projections start orthogonal"
    pairs = load_source("wordnet_pairs", limit=16)
    trainer = EmbeddingDistillTrainer(student, args, pairs, teacher=live)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert {key.removeprefix("loss/") for key in entry if key.startswith("loss/")} == set(WEIGHTS)
        assert sum(entry[f"loss/{term}"] * weight for term, weight in WEIGHTS.items()) == pytest.approx(
            entry["loss"], rel=1e-3
        )
    assert not torch.equal(mixer.query.weight, start)
