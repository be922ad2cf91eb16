"""The checkpoint that a run goes on from: whole, and of the same student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel
from hf_distill.trainers.run_checkpoints import damage_of, last_complete, require_same_student
from hf_distill.trainers.students import build_student


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def test_a_checkpoint_that_was_cut_off_is_left_out(make_trainer: Any, tmp_path: Path) -> None:
    assert last_complete(tmp_path / "nowhere") is None
    make_trainer(max_steps=4, save_strategy="steps", save_steps=2).train()
    run = tmp_path / "run"
    assert last_complete(run) == str(run / "checkpoint-4")
    newest, kept = run / "checkpoint-4", tmp_path / "kept"
    shutil.copytree(newest, kept)
    for name in ("trainer_state.json", "distill_state.json"):
        (newest / name).unlink()
        assert damage_of(newest) == f"{name} is missing"
        shutil.copy(kept / name, newest / name)
        (newest / name).write_text((kept / name).read_text(encoding="utf-8")[:-4], encoding="utf-8")
        assert damage_of(newest) == f"{name} is cut off"
        shutil.copy(kept / name, newest / name)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        cut(newest / name)
        assert damage_of(newest) == f"{name} is cut off"
        assert last_complete(run) == str(run / "checkpoint-2")
        shutil.copy(kept / name, newest / name)
    assert damage_of(newest) is None
    (newest / "model.safetensors").unlink()
    assert damage_of(newest) == "its weights are missing"
    shutil.rmtree(run / "checkpoint-2")
    assert last_complete(run) is None


STUDENT = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({"mixer": "delta_causal"}, {"mixer": "delta_flip"}, "mixer is 'delta_causal' there and 'delta_flip' here"),
        ({"ridge_center": False}, {}, "ridge_center is False there and True here"),
        ({"beta_activation": "exp"}, {"beta_activation": "sigmoid"}, "beta_activation"),
        ({"num_attention_heads": 2}, {}, "num_attention_heads is 2 there and 4 here"),
    ],
)
def test_another_student_of_the_same_shapes_is_refused(
    before: dict[str, Any], now: dict[str, Any], name: str, tmp_path: Path
) -> None:
    HfdDeltaNetConfig(**{**STUDENT, **before}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"another configuration than this run's: .*{name}"):
        require_same_student(tmp_path, HfdDeltaNetConfig(**{**STUDENT, **now}))
    require_same_student(tmp_path, HfdDeltaNetConfig(**{**STUDENT, **before, "pad_token_id": 3}, use_cache=True))


def test_another_version_or_none_at_all_passes_and_another_model_does_not(tmp_path: Path) -> None:
    config = HfdDeltaNetConfig(**STUDENT)
    require_same_student(tmp_path, config)
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    del values["ridge_center"]
    file.write_text(json.dumps({**values, "transformers_version": "4.0.0", "of_the_future": 1}), encoding="utf-8")
    require_same_student(tmp_path, config)
    file.write_text(json.dumps({**values, "model_type": "bert"}), encoding="utf-8")
    with pytest.raises(ValueError, match="model_type is 'bert' there and 'hfd_deltanet' here"):
        require_same_student(tmp_path, config)


def test_the_trainers_refuse_a_checkpoint_of_another_student(
    make_trainer: Any, live: Any, texts: Any, tmp_path: Path
) -> None:
    from hf_distill.trainers.alignment import MixerAlignmentTrainer
    from hf_distill.trainers.alignment_config import MixerAlignmentConfig

    fields = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make_trainer(student=build_student("deltanet", live.model, mixer="delta_causal"), **fields).train()
    other = make_trainer(student=build_student("deltanet", live.model, mixer="delta_flip"), **fields)
    with pytest.raises(ValueError, match="mixer is 'delta_causal' there and 'delta_flip' here"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))

    def align(**student: Any) -> MixerAlignmentTrainer:
        args = MixerAlignmentConfig(str(tmp_path / "align"), **fields, report_to="none", disable_tqdm=True)
        return MixerAlignmentTrainer(HfdDeltaNetModel.from_teacher(live.encoder, **student), args, texts, teacher=live)

    align(ridge_center=False).train()
    with pytest.raises(ValueError, match="ridge_center is False there and True here"):
        align().train(resume_from_checkpoint=str(tmp_path / "align" / "checkpoint-1"))
