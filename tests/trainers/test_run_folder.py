"""A run's folder: what must be the same when the command goes on, room on the disk, and stage 1 after a full disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_distill.evaluation.checkpoints import RECIPE_FILE
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.sts import STSEvaluator
from hf_distill.teachers import files
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers import embedding_stages
from hf_distill.trainers.embedding_stages import EmbeddingRecipe, align
from hf_distill.trainers.run_folder import check_metric, check_space, open_run
from hf_distill.trainers.students import build_student

RECIPE = {"sources": {"mine.jsonl": 1}, "student_config": {"mixer": "ridge"}, "num_texts": 64, "tasks": ["stsb"]}


@pytest.mark.parametrize(
    ("recipe", "training", "message"),
    [
        ({}, {"max_length": 32}, "max_length=None, but now max_length=32"),
        ({}, {"per_device_train_batch_size": 4}, "per_device_train_batch_size=8, but now"),
        ({}, {"token_budget": 512}, "token_budget=None, but now token_budget=512"),
        ({}, {"matryoshka_dims": [16]}, r"matryoshka_dims=None, but now matryoshka_dims=\[16\]"),
        ({}, {"adam_beta2": 0.9}, "adam_beta2=0.999, but now adam_beta2=0.9"),
        ({}, {"gram_weight": 1.0}, "gram_weight=0.0, but now gram_weight=1.0"),
        ({}, {"l2_weight": {"0": 0.5, "9": 0.2}}, "schedules={'l2': {'0': 0.5, '9': 0.1}}, but now"),
        ({"student_config": {"mixer": "delta_flip"}}, {}, "student_config={'mixer': 'ridge'}, but now"),
    ],
)
def test_what_was_asked_for_is_compared_when_the_command_goes_on(
    recipe: dict[str, Any], training: dict[str, Any], message: str, config: Callable
) -> None:
    schedule = {"l2_weight": {"0": 0.5, "9": 0.1}}
    folder = open_run(EmbeddingRecipe(**RECIPE), config(**schedule))
    kept = (folder / RECIPE_FILE).read_bytes()
    changed = EmbeddingRecipe(**{**RECIPE, **recipe})
    with pytest.raises(ValueError, match=message):
        open_run(changed, config(**{**schedule, **training}))
    assert (folder / RECIPE_FILE).read_bytes() == kept
    open_run(EmbeddingRecipe(**{**RECIPE, "tasks": ["stsb", "int8"]}), config(**schedule, max_steps=9))
    changed.fresh = True
    open_run(changed, config(**{**schedule, **training}))
    assert (folder / RECIPE_FILE).read_bytes() != kept
    assert [path.name for path in folder.iterdir()] == [RECIPE_FILE], "it is written in one go"


def test_a_run_of_an_older_version_goes_on(config: Callable) -> None:
    folder = open_run(EmbeddingRecipe(**RECIPE), config())
    file = folder / RECIPE_FILE
    values = json.loads(file.read_text(encoding="utf-8"))
    values["training"] = {name: values["training"][name] for name in ("cosine", "seed", "learning_rate")}
    del values["first_layer_weight"]
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="gram_weight=0.0, but now"):
        open_run(EmbeddingRecipe(**RECIPE), config(gram_weight=1.0))
    open_run(EmbeddingRecipe(**RECIPE), config(max_length=32))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe.json is damaged .*--fresh"):
        open_run(EmbeddingRecipe(**RECIPE), config())


def test_a_checkpoint_to_go_on_from_is_looked_at_first(config: Callable, tmp_path: Path) -> None:
    args = config(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere: trainer_state.json is missing. Give a complete checkpoint"):
        open_run(EmbeddingRecipe(**RECIPE), args)
    with pytest.raises(ValueError, match="drop one of the two"):
        open_run(EmbeddingRecipe(**RECIPE, fresh=True), args)
    assert embedding_stages.control_args(args, EmbeddingRecipe(**RECIPE)).resume_from_checkpoint is None


def test_room_for_the_checkpoints_is_counted(
    config: Callable, live: LiveTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = sum(parameter.numel() for parameter in live.model.parameters())
    recipe = EmbeddingRecipe(**RECIPE, control_minutes=0.0)
    kept = {"save_strategy": "steps", "save_total_limit": 3, "hidden_weight": 1.0}
    folder = open_run(recipe, config(**kept))

    def free(amount: int) -> None:
        usage = files.shutil._ntuple_diskusage(10**9, 10**9 - amount, amount)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda place: usage if place == folder else None)

    there, teacher_width = (folder / RECIPE_FILE).stat().st_size, 768  # of mpnet, much wider than the student
    free(5 * 12 * parameters - there)
    check_space(recipe, config(**kept), live.model, teacher_width)
    free(5 * 12 * parameters - there - 1)
    with pytest.raises(OSError, match=f"The run needs .* MB are free at {folder}.*--save_total_limit"):
        check_space(recipe, config(**kept), live.model, teacher_width)
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"x")  # what a run has written it does not need again
    check_space(recipe, config(**kept), live.model, teacher_width)
    cached = config(**{**kept, "hidden_weight": 0.0})
    needed = 5 * 12 * parameters + recipe.num_texts * (2 * teacher_width + 8) - there - 1
    free(needed)
    check_space(recipe, cached, live.model, teacher_width)
    free(needed - 1)
    with pytest.raises(OSError, match="free at"):
        check_space(recipe, cached, live.model, teacher_width)
    wider = dataclasses.replace(recipe, first_layer_weight=0.5, first_layer_mix="concat")
    free(needed + recipe.num_texts * 2 * teacher_width)
    check_space(wider, cached, live.model, teacher_width)
    free(needed + recipe.num_texts * 2 * teacher_width - 1)
    with pytest.raises(OSError, match="free at"):
        check_space(wider, cached, live.model, teacher_width)
    free(12 * parameters)
    check_space(recipe, config(hidden_weight=1.0), live.model, teacher_width)


def test_the_metric_is_one_that_the_evaluators_give(
    live: LiveTeacher, config: Callable, tiny_texts: list[str]
) -> None:
    pairs = STSEvaluator(tiny_texts[:9], tiny_texts[1:10], range(9), dtype="float32")
    evaluators = [pairs, FidelityEvaluator(tiny_texts, live.model, dtype="float32")]
    width = live.model.get_embedding_dimension()
    for evaluator in evaluators:
        assert sorted(evaluator.metric_names(width)) == sorted(evaluator(live.model))
    fields = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_fidelity_cosine"}
    check_metric(config(**fields), evaluators, width)
    with pytest.raises(ValueError, match="Choose one of stsb_spearman, stsb_pearson, fidelity_pair_rho"):
        check_metric(config(**fields), evaluators, width // 2)
    check_metric(config(metric_for_best_model="eval_fidelity_cosine"), evaluators, width // 2)  # is never evaluated


def test_stage_1_is_there_in_full_or_not_at_all(
    config: Callable, live: LiveTeacher, texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EmbeddingRecipe(**RECIPE, align_minutes=0.02, align_token_budget=512)
    folder = open_run(recipe, args := config()) / "alignment"

    def full(_: Any, file: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedding_stages, "save_model", full)
        with pytest.raises(OSError, match="No space"):
            align(build_student("deltanet", live.model), recipe, args, live, texts)
    assert not (folder / "aligned.safetensors").exists()
    checkpoint = max((folder / "run").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    (checkpoint / "trainer_state.json").write_text("{", encoding="utf-8")
    stage = align(build_student("deltanet", live.model), recipe, args, live, texts)
    assert sorted(path.name for path in folder.iterdir()) == ["aligned.safetensors", "stage.json"]
    assert align(build_student("deltanet", live.model), recipe, args, live, texts) == stage
    (folder / "aligned.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"aligned.safetensors cannot be loaded: .* Delete it"):
        align(build_student("deltanet", live.model), recipe, args, live, texts)
