"""EmbeddingDistillTrainer: what trains, what is logged, saved and selected, and which mistakes it refuses."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from hf_distill.evaluation.sts import STSEvaluator
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig


class ScriptedEvaluator(SentenceEvaluator):
    """Gives scores from a list, and remembers the first weight it saw with each."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores, self.seen = list(scores), []
        self.name, self.primary_metric = "dev", "dev_spearman"

    def __call__(self, model, output_path=None, epoch=-1, steps=-1):
        self.seen.append(next(model.parameters()).detach().clone())
        metrics = {"dev_spearman": self.scores[len(self.seen) - 1]}
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


BEST = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
BEST |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_dev_spearman", "greater_is_better": True}


@pytest.fixture
def narrow_student(tiny_sentence_transformer):
    """A student of width 16 beside the teacher's 32: it needs a head."""
    torch.manual_seed(3)
    base = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    return SentenceTransformer(modules=[base[0], base[1], models.Dense(32, 16), models.Normalize()], device="cpu")


def losses(trainer, key="loss/cosine"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.objective.named_parameters()}


def test_every_parameter_trains_heads_included(make_trainer, narrow_student):
    trainer = make_trainer(student=narrow_student, embedding_projection="learned", max_steps=2)
    before = weights(trainer)
    assert "embedding_head.weight" in before
    trainer.train()
    after = weights(trainer)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert all("pooler" in name for name in still), still
    trainer.save_model(trainer.args.output_dir)
    saved = SentenceTransformer(trainer.args.output_dir, device="cpu")
    assert saved.get_embedding_dimension() == 16
    assert saved.state_dict().keys() == narrow_student.state_dict().keys()


def test_pca_head_starts_better_than_a_random_one(make_trainer, narrow_student):
    heads = {kind: make_trainer(student=narrow_student, embedding_projection=kind) for kind in ("pca", "learned")}
    assert torch.equal(heads["learned"].objective.embedding_head.bias, torch.zeros(32))
    pca = heads["pca"].objective.embedding_head
    assert pca.bias.abs().sum() > 0
    assert torch.allclose(pca.weight.T @ pca.weight, torch.eye(16), atol=1e-5)


def test_training_learns_and_logs_the_mean_of_the_window(make_trainer):
    every, third = (
        make_trainer(max_steps=6, gram_weight=0.5),
        make_trainer(max_steps=6, gram_weight=0.5, logging_steps=3),
    )
    every.train()
    third.train()
    single = losses(every)
    assert single[-1] < single[0]
    assert losses(third) == pytest.approx([sum(single[:3]) / 3, sum(single[3:]) / 3], rel=1e-5)
    for entry in every.state.log_history[:6]:
        assert entry["loss"] == pytest.approx(entry["loss/cosine"] + 0.5 * entry["loss/gram"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "sgd"])
def test_accumulation_equals_the_whole_batch(make_trainer, optimizer):
    fields = {"cosine_weight": 1.0, "l2_weight": 0.5, "bucket_by_length": False, "max_steps": 4, "optim": optimizer}
    whole = make_trainer(per_device_train_batch_size=8, **fields)
    parts = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=2, **fields)
    whole.train()
    parts.train()
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-4)
    assert losses(whole, "loss") == pytest.approx(losses(parts, "loss"), rel=1e-4)
    tolerance = 1e-6 if optimizer == "sgd" else 2e-4
    assert all(torch.allclose(a, weights(parts)[n], atol=tolerance) for n, a in weights(whole).items())


def test_accumulation_weighs_unequal_batches_by_their_rows(make_trainer, texts):
    """Eleven rows as 8 + 3 must give the gradient of 11, not the mean of two means."""
    fields = {
        "data": texts.select(range(11)),
        "bucket_by_length": False,
        "max_steps": 1,
        "optim": "sgd",
        "max_grad_norm": 0,
    }
    parts = make_trainer(per_device_train_batch_size=8, gradient_accumulation_steps=2, **fields)
    whole = make_trainer(per_device_train_batch_size=11, **fields)
    parts.train()
    whole.train()
    assert all(torch.allclose(a, weights(parts)[n], atol=1e-7) for n, a in weights(whole).items())
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)


def test_bf16_keeps_float32_parameters_and_optimiser_state(make_trainer):
    trainer = make_trainer(bf16=True, max_steps=2)
    dtypes = []
    trainer.model[0].auto_model.encoder.layer[0].output.dense.register_forward_hook(
        lambda *a: dtypes.append(a[-1].dtype)
    )
    trainer.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.objective.parameters()} == {torch.float32}
    moments = [state["exp_avg"].dtype for state in trainer.optimizer.state.values()]
    assert set(moments) == {torch.float32}


def test_weight_decay_on_matrices_only(make_trainer):
    trainer = make_trainer(weight_decay=0.1)
    trainer.create_optimizer()
    decayed, free = ([p.ndim for p in group["params"]] for group in trainer.optimizer.param_groups)
    assert set(decayed) == {2}
    assert set(free) == {1}


def test_rows_given_or_looked_up_or_tokenised_before_are_the_same(make_trainer, cache, texts):
    looked_up = make_trainer()
    given = texts.add_column("text_row", cache.rows_for(texts["text"][:]))
    ids = looked_up.train_dataset.select_columns(["text_input_ids", "text_row"])
    histories = []
    for trainer in (looked_up, make_trainer(data=given), make_trainer(data=ids)):
        trainer.train()
        histories.append(losses(trainer))
    assert histories[0] == histories[1] == histories[2]


def test_streamed_data_and_pairs(make_trainer, texts, pairs):
    streamed = make_trainer(data=texts.to_iterable_dataset(), max_steps=3)
    streamed.train()
    assert len(losses(streamed)) == 3
    paired = make_trainer(data=pairs, contrastive_weight=1.0, spearman_weight=0.3, ranking_weight=0.2, max_steps=3)
    paired.train()
    assert len(losses(paired, "loss/contrastive")) == 3


def test_scheduled_weights_follow_the_steps(make_trainer):
    trainer = make_trainer(gram_weight={"0": 4.0, "2": 0.0}, max_steps=4)
    trainer.train()
    assert len(losses(trainer, "loss/gram")) == 2
    second = trainer.state.log_history[1]
    assert second["loss"] == pytest.approx(second["loss/cosine"] + 2.0 * second["loss/gram"], rel=1e-4)


def test_nothing_saved_is_a_pickled_config(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert not list(tmp_path.rglob("training_args.bin"))
    final = {path.name for path in (tmp_path / "final").rglob("*") if path.is_file()}
    assert not {name for name in final if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert "distill_heads.safetensors" not in final
    assert json.loads((tmp_path / "final" / "training_args.json").read_text())["cosine_weight"] == 1.0
    assert str(tmp_path) not in (tmp_path / "final" / "training_args.json").read_text()


def test_best_checkpoint_is_loaded_with_its_heads_and_its_card(make_trainer, narrow_student, tmp_path):
    evaluator = ScriptedEvaluator([0.5, 0.9, 0.4])
    fields = {"embedding_projection": "learned", "max_steps": 3, "evaluator": evaluator, **BEST}
    trainer = make_trainer(student=narrow_student, **fields)
    heads = []
    trainer.add_callback(_Snapshot(heads, trainer))
    trainer.train()
    assert trainer.state.best_global_step == 2
    assert torch.equal(next(trainer.model.parameters()), evaluator.seen[1])
    assert torch.equal(trainer.objective.embedding_head.weight, heads[1])
    assert not torch.equal(heads[1], heads[2])
    trainer.save_model(str(tmp_path / "final"))
    card = (tmp_path / "final" / "README.md").read_text()
    assert "value: 0.9" in card
    assert "value: 0.4" not in card
    assert "knowledge-distillation" in card


class _Snapshot(__import__("transformers").TrainerCallback):
    def __init__(self, heads, trainer):
        self.heads, self.trainer = heads, trainer

    def on_evaluate(self, *args, **kwargs):
        self.heads.append(self.trainer.objective.embedding_head.weight.detach().clone())


def test_the_last_step_is_evaluated_and_can_be_chosen(make_trainer):
    evaluator = ScriptedEvaluator([0.5, 0.9])
    trainer = make_trainer(max_steps=3, evaluator=evaluator, **{**BEST, "eval_steps": 2, "save_steps": 2})
    trainer.train()
    assert trainer.state.best_global_step == 3
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")


def test_a_resumed_run_keeps_the_score_of_its_untrained_start(make_trainer, tmp_path):
    fields = {**BEST, "require_gain": True, "max_steps": 3}
    make_trainer(evaluator=ScriptedEvaluator([0.5, 0.6, 0.7, 0.8]), **fields).train()
    evaluator = ScriptedEvaluator([0.65])
    resumed = make_trainer(evaluator=evaluator, **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(evaluator.seen) == 1, "only step 3 is evaluated"
    summary = resumed.check_gain(control=0.1)
    assert (summary.start, summary.best) == (0.5, 0.7)


def test_early_stopping(make_trainer):
    evaluator = ScriptedEvaluator([0.5, 0.6, 0.55, 0.58, 0.9, 0.9])
    trainer = make_trainer(max_steps=6, evaluator=evaluator, early_stopping_patience=2, **BEST)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == 0.6


def test_validation_loss_has_terms_too(make_trainer, texts):
    trainer = make_trainer(eval_dataset=texts, eval_strategy="steps", eval_steps=2, max_steps=2, gram_weight=1.0)
    start = trainer.evaluate()
    trainer.train()
    end = trainer.state.log_history[2]
    assert end["eval_loss/cosine"] < start["eval_loss"]
    assert "eval_loss/gram" in end
    assert trainer.state.log_history[0]["loss/cosine"] == pytest.approx(losses(trainer)[0])


def test_frozen_parts_stay(make_trainer):
    trainer = make_trainer(freeze=["word_embeddings"], max_steps=2)
    before = weights(trainer)
    trainer.train()
    name = next(name for name in before if "word_embeddings" in name)
    assert torch.equal(before[name], weights(trainer)[name])
    with pytest.raises(ValueError, match="freeze='nothing_like_it'"):
        make_trainer(freeze=["nothing_like_it"])


def test_nan_stops_the_run_with_advice(make_trainer):
    trainer = make_trainer(max_steps=3, l2_weight=1.0)
    with torch.no_grad():
        trainer.model[0].auto_model.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss/cosine is nan at step 1.*resume"):
        trainer.train()


def test_the_teacher_stays_as_it_is(make_trainer, live):
    before = {name: value.clone() for name, value in live.model.state_dict().items()}
    make_trainer(teacher=live, hidden_weight=1.0, max_steps=2).train()
    assert not live.model.training
    assert all(torch.equal(value, live.model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("data", "fields", "message"),
    [
        (DatasetDict({"a": Dataset.from_dict({"text": ["one"]})}), {}, "load_mix"),
        (Dataset.from_dict({"text": []}), {}, "no rows"),
        (Dataset.from_dict({"sentence": ["one"]}), {}, "rename_column"),
        (Dataset.from_dict({"text": ["", "one"]}), {}, "Row 0 has no text"),
        (Dataset.from_dict({"text_input_ids": [[2, 3]]}), {}, "neither 'text_row'"),
        (Dataset.from_dict({"text_input_ids": [[2, 7777]], "text_row": [0]}), {}, r"Row 0 .* 7777"),
        (Dataset.from_dict({"text_input_ids": [[2, 3]], "text_row": [6400]}), {}, "points to row 6400"),
        (
            Dataset.from_dict({"text_input_ids": [[2, 3]], "text_row": [0]}),
            {"prompts": "query: "},
            "tokenised already",
        ),
        (Dataset.from_dict({"text": ["one"]}), {"contrastive_weight": 1.0, "cosine_weight": 0}, "wordnet_pairs"),
    ],
)
def test_bad_data_is_refused_before_the_first_step(make_trainer, data, fields, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(data=data, **fields)


def test_a_text_that_the_cache_lacks_is_named(make_trainer):
    with pytest.raises(KeyError, match="a text nobody cached"):
        make_trainer(data=Dataset.from_dict({"text": ["a text nobody cached"]}))


def test_missing_data_and_teacher(student, config):
    from hf_distill.trainers.embedding import EmbeddingDistillTrainer

    with pytest.raises(ValueError, match="train_dataset is missing"):
        EmbeddingDistillTrainer(student, config())
    with pytest.raises(ValueError, match="teacher=None"):
        EmbeddingDistillTrainer(student, config(), Dataset.from_dict({"text": ["one"]}))


def test_token_budget_batches(make_trainer, caplog):
    caplog.set_level(logging.ERROR)
    trainer = make_trainer(token_budget=128, num_train_epochs=2, max_steps=-1)
    sizes = []
    original = trainer.source.answer
    trainer.source.answer = lambda inputs, *rest: (
        sizes.append(inputs["attention_mask"].shape) or original(inputs, *rest)
    )
    trainer.train()
    assert len(sizes) == 2 * len(trainer.get_train_dataloader())
    assert len({rows for rows, _ in sizes}) > 2
    assert isinstance(trainer.args, EmbeddingDistillConfig)


def test_an_evaluator_of_the_test_split_is_refused(make_trainer):
    pairs = {"sentence1": ["a cat", "a dog"], "sentence2": ["the cat", "a car"], "score": [0.9, 0.1]}
    evaluator = STSEvaluator.from_dataset(Dataset.from_dict(pairs, split="test"))
    with pytest.raises(ValueError, match="'stsb' reads the test split"):
        make_trainer(evaluator=evaluator)
