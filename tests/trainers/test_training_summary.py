"""The training summary: texts and tokens that were really seen, weights and licences that are pinned, no local path."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest

from hf_distill.data.overlap import OverlapReport
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.training_summary import Origin, TrainingSummary
from hf_distill.trainers import tokenizer_stages, training_summary
from hf_distill.trainers.embedding_stages import EmbeddingRecipe
from hf_distill.trainers.tokenizer_jobs import Job
from hf_distill.trainers.tokenizer_materials import Materials
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.training_summary import describe_origin, stage_of, summarise_training


@pytest.mark.parametrize("fields", [{"token_budget": 200}, {"per_device_train_batch_size": 6, "num_train_epochs": 2}])
def test_texts_and_tokens_are_those_of_the_batches(make_trainer, monkeypatch, fields):
    trainer = make_trainer(max_steps=9, **fields)
    seen = []
    original = trainer.compute_loss

    def counting(model, inputs, *args, **kwargs):
        seen.append((len(inputs["input_ids"]), int(inputs["attention_mask"].sum())))
        return original(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", counting)
    trainer.train()
    stage = stage_of("end to end", trainer)
    assert (stage.steps, stage.texts, stage.tokens) == (9, sum(n for n, _ in seen), sum(t for _, t in seen))
    assert 0 < stage.minutes < 5


def test_the_alignment_stage_counts_too(live, texts, tmp_path):
    from hf_distill.models.deltanet import HfdDeltaNetModel
    from hf_distill.trainers.alignment import MixerAlignmentTrainer
    from hf_distill.trainers.alignment_config import MixerAlignmentConfig

    args = MixerAlignmentConfig(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    student = HfdDeltaNetModel.from_teacher(live.encoder)
    trainer = MixerAlignmentTrainer(student, args, texts, teacher=live)
    trainer.train()
    stage = stage_of("alignment", trainer)
    assert (stage.name, stage.steps, stage.texts) == ("alignment", 2, 16)
    assert stage.tokens > 32


def test_summary_of_a_run(make_trainer, live, tiny_sentence_transformer, tmp_path):
    trainer = make_trainer(max_steps=1, gram_weight='{"0": 1.0, "500": 0.1}')
    trainer.train()
    texts = tmp_path / "mine.jsonl"
    texts.touch()
    recipe = EmbeddingRecipe(
        teacher=tiny_sentence_transformer,
        student="layers",
        sources={"wordnet": {"weight": 6}, "allnli": 1, str(texts): 2},
        first_layer_weight=0.15,
    )
    stages = [stage_of("end to end", trainer)]
    summary = summarise_training(
        recipe, trainer, live.model, live.model, OverlapReport(5, 95), stages, {"wordnet": 60}
    )
    assert summary.losses == {"cosine": 1.0, "gram": {"0": 1.0, "500": 0.1}}
    assert [(s.name, s.rows, s.weight, s.hub_id) for s in summary.sources] == [
        ("wordnet", 60, 6.0, None),
        ("allnli", None, 1.0, "sentence-transformers/all-nli"),
        ("mine.jsonl", None, 2.0, None),
    ]
    assert (summary.texts, summary.overlap_removed, summary.batch) == (95, 5, "8 rows")
    assert summary.settings == {"num_layers": 2, "width": 32, "source_layers": 2}
    assert summary.languages == []  # nobody knows what is in the file
    assert "0.15" in summary.teacher.note
    assert any("seed 42" in line for line in summary.not_measured)
    assert "float32" in summary.hardware
    text = json.dumps(asdict(summary))
    assert str(tmp_path.parent) not in text
    assert tiny_sentence_transformer not in text
    assert TrainingSummary.from_dict(json.loads(text)) == summary
    recipe.init = "random"
    assert summarise_training(recipe, trainer, live.model, live.model, OverlapReport(5, 95), stages).init_from is None


def test_origins(live, tiny_sentence_transformer, tmp_path, monkeypatch):
    model = live.model
    monkeypatch.setattr(model, "_model_card_text", "---\nlicense: Apache-2.0\n---\n# t\n")
    local = describe_origin(tiny_sentence_transformer, model)
    assert (local.license, local.on_hub, local.revision) == ("apache-2.0", False, None)
    assert "/" not in local.name
    with open(f"{tiny_sentence_transformer}/model.safetensors", "rb") as weights:
        assert local.sha256 == hashlib.sha256(weights.read()).hexdigest()
    commit = "a" * 40
    monkeypatch.setattr(
        training_summary,
        "try_to_load_from_cache",
        lambda *args, **kwargs: f"{tmp_path}/snapshots/{commit}/modules.json",
    )
    cached = describe_origin("org/teacher", model, "v1")
    assert (cached.name, cached.revision, cached.on_hub, cached.sha256) == ("org/teacher", commit, True, None)
    monkeypatch.setattr(training_summary, "try_to_load_from_cache", lambda *args, **kwargs: None)
    packaged = describe_origin("sentence-transformers/all-MiniLM-L6-v2", model)
    assert packaged.sha256.startswith("53aa51172d14")
    monkeypatch.setattr(model, "_model_card_text", None)
    assert describe_origin("org/teacher", model, "v1").license is None
    assert describe_origin("org/teacher", model, "v1").revision == "v1"


def test_the_model_of_a_run_is_named_and_licensed_by_it(live, tmp_path, monkeypatch):
    """A student that goes on from another run's model: the folder is called `model`, and its card is the stock one."""
    monkeypatch.setattr(live.model, "_model_card_text", None)
    model = tmp_path / "first_student" / "model"
    model.mkdir(parents=True)
    assert describe_origin(str(model), live.model) == Origin("model")
    free, closed = Origin("a", license="mit"), Origin("b")
    for teacher, licence in ((free, "mit"), (closed, None)):
        training = TrainingSummary(
            teacher, free, "layers", {}, {"cosine": 1.0}, [], 1, 0, [], "a machine", 1e-4, "8 rows"
        )
        Results("first_student", [], 1, "stsb_spearman", training=training).write(model.parent)
        assert describe_origin(str(model), live.model) == Origin("first_student", license=licence)


@pytest.mark.parametrize(("layers", "random"), [(None, False), (1, False), (1, True)])
def test_summary_of_a_student_with_another_tokenizer(
    make_trainer, live, tiny_sentence_transformer, tmp_path, monkeypatch, layers, random
):
    """The base model keeps its own name, whatever was cut out of it; random weights keep that of their shape."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    base = Origin("org/base", "a" * 40, "mit", on_hub=True, note="dequantised")
    monkeypatch.setattr(tokenizer_stages, "describe_origin", lambda *args: base)
    job = Job("mft-half", "mft", "org/base", layers, random, 42, tmp_path)
    recipe = TokenizerRecipe(
        teacher="org/base", tokenizers={"mft": "mft"}, backbones={"half": "org/base"}, corpus="c", languages=["tr"]
    )
    materials = Materials({}, None, OverlapReport(5, 95), [], {"org/base": live.model}, live.model, base)
    summary = tokenizer_stages.summarise(job, recipe, materials, trainer)
    cut = {"cut": "1 of its 2 layers"} if layers else {}
    note = "dequantised; 1 of its 2 layers" if layers else "dequantised"
    assert summary.init_from == (None if random else Origin("org/base", "a" * 40, "mit", on_hub=True, note=note))
    own = {"num_layers": 2, "width": 32, "vocabulary": len(trainer.model.tokenizer)}
    assert summary.settings == {**own, "tokenizer": "mft", "backbone": "org/base", **cut}
    assert (summary.student, summary.languages, summary.teacher) == ("tokenizer", ["tr"], base)
    assert TrainingSummary.from_dict(json.loads(json.dumps(asdict(summary)))) == summary
