"""Fields of the configs: weights and schedules, automatic precision, and contradictions that name their fix."""

from __future__ import annotations

import json

import pytest
import torch
from trl import TrlParser

from hf_distill.trainers.alignment_config import MixerAlignmentConfig
from hf_distill.trainers.distill_args import default_bf16
from hf_distill.trainers.embedding_config import TERMS, EmbeddingDistillConfig


def test_defaults_train_the_cosine_term(tmp_path):
    config = EmbeddingDistillConfig(str(tmp_path))
    assert config.active_terms() == ["cosine"]
    assert config.weights_at(0) == {"cosine": 1.0}
    assert config.max_grad_norm == 1.0
    assert config.lr_scheduler_type == "linear"
    assert config.bf16 is default_bf16()
    assert config.use_cpu is not torch.cuda.is_available()
    assert EmbeddingDistillConfig(str(tmp_path), bf16=False).bf16 is False


def test_schedules_as_dict_and_as_json(tmp_path):
    for spec in ({"0": 1.0, "10": 0.0}, {0: 1, 10: 0}, '{"0": 1.0, "10": 0.0}'):
        config = EmbeddingDistillConfig(str(tmp_path), gram_weight=spec, cosine_weight="0.5")
        assert config.weights_at(0) == {"cosine": 0.5, "gram": 1.0}
        assert config.weights_at(5) == {"cosine": 0.5, "gram": 0.5}
        assert config.weights_at(99) == {"cosine": 0.5, "gram": 0.0}


def test_yaml_and_command_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("output_dir: run\ncosine_weight: 2\nhidden_weight: {0: 1.0, 500: 0.1}\nhidden_layer_map: [1, 3]\n")
    parser = TrlParser((EmbeddingDistillConfig,))
    (config,) = parser.parse_args_and_config(
        ["--config", str(file), "--l2_weight", "0.25", "--matryoshka_dims", "16", "8"]
    )
    assert config.weights_at(250) == {"cosine": 2.0, "l2": 0.25, "hidden": pytest.approx(0.55)}
    assert config.layer_map_strategy() == [1, 3]
    assert config.matryoshka_dims == [16, 8]
    (config,) = parser.parse_args_and_config(["--output_dir", "run", "--gram_weight", '{"0": 1, "4": 3}'])
    assert config.weights_at(2)["gram"] == 2.0
    file.write_text("output_dir: run\ncosin_weight: 2\n")
    with pytest.raises(ValueError, match="cosin_weight"):
        parser.parse_args_and_config(["--config", str(file)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cosine_weight": 0}, "nothing to train"),
        ({"cosine_weight": "much"}, "cosine_weight must be a number or a schedule"),
        ({"cosine_weight": -1}, "cosine_weight"),
        ({"gram_weight": {"soon": 1.0}}, "gram_weight"),
        ({"hub_token": "hf_secret"}, "hf auth login"),
        ({"hub_model_id": "user/na me"}, "is no id"),
        ({"metric_for_best_model": "eval_sts-b_test_spearman"}, r"on the test split\. Set it to a validation metric"),
        ({"metric_for_best_model": "test"}, "on the test split"),
        ({"max_minutes": 0}, "max_minutes must be positive"),
        ({"token_budget": -5}, "token_budget must be positive"),
        ({"early_stopping_patience": 3}, "load_best_model_at_end=True"),
        ({"require_gain": True}, "set eval_strategy='steps'"),
        ({"bf16": True, "fp16": True}, "drop fp16"),
        ({"max_minutes": 1.0, "lr_scheduler_type": "cosine"}, "lr_scheduler_type='linear'"),
        ({"hidden_projection": "magic"}, "hidden_projection must be one of"),
        ({"hidden_layer_map": "every other"}, "hidden_layer_map"),
        ({"matryoshka_dims": [0]}, "matryoshka_dims"),
    ],
)
def test_contradictions_name_the_fix(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        EmbeddingDistillConfig(str(tmp_path), **fields)
    assert "hf_secret" not in str(error.value)


def test_alignment_config(tmp_path):
    assert MixerAlignmentConfig(str(tmp_path)).remove_unused_columns is False
    with pytest.raises(ValueError, match="layer_reduction"):
        MixerAlignmentConfig(str(tmp_path), layer_reduction="max")
    with pytest.raises(ValueError, match="remove_unused_columns"):
        MixerAlignmentConfig(str(tmp_path), remove_unused_columns=True)


def test_every_field_has_help_and_json_has_no_paths(tmp_path):
    fields = EmbeddingDistillConfig.__dataclass_fields__
    assert all(fields[f"{term}_weight"].metadata.get("help") for term in TERMS)
    own = {name for base in EmbeddingDistillConfig.__mro__[:2] for name in base.__annotations__}
    assert all(fields[name].metadata.get("help") for name in own if name in fields)
    EmbeddingDistillConfig(str(tmp_path / "run"), gram_weight={"0": 1}).save_json(tmp_path)
    text = (tmp_path / "training_args.json").read_text()
    assert json.loads(text)["gram_weight"] == {"0": 1.0}
    assert str(tmp_path) not in text
    assert "token_secret" not in text
