"""The configuration refuses what contradicts itself, survives saving, and holds no field that nothing reads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

import hf_distill.models
from hf_distill.models.deltanet import HfdDeltaNetConfig

FOLDER = Path(__file__).parents[3] / "hf_distill" / "models" / "deltanet"


def test_defaults_describe_minilm_with_a_ridge_mixer() -> None:
    config = HfdDeltaNetConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (384, 6, 12)
    assert (config.mixer, config.memory, config.head_dim, config.is_causal) == ("ridge", "single", 32, False)
    assert (config.fast_decay_init, config.slow_decay_init, config.state_dropout) == (0.30, 0.85, 0.10)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"memory": "two_decay"}, "delta mixers"),
        ({"mixer": "delta_flip", "use_flux": True}, "memory='two_decay'"),
        ({"mixer": "delta_flip", "use_coupling": True}, "memory='two_decay'"),
        ({"mixer": "delta_flip", "beta_activation": "exp"}, "sigmoid"),
        ({"mixer": "delta_split", "hidden_size": 33, "num_attention_heads": 3}, "delta_flip"),
        ({"hidden_size": 100}, "number of heads"),
        ({"position_embedding_type": "rotary", "hidden_size": 12}, "even head width"),
        ({"conv_size": 4}, "Use 5"),
        ({"local_size": 1}, "at least 2"),
        ({"conv_size": -1}, "at least 2"),
        ({"state_dropout": 1.0}, r"\[0, 1\)"),
        ({"hidden_dropout_prob": -0.1}, r"\[0, 1\)"),
        ({"num_hidden_layers": 0}, "at least 1"),
        ({"ridge_lambda_init": 0.0}, "positive"),
        ({"mixer": "delta_flip", "memory": "two_decay", "fast_decay_init": 1.0}, "strictly between 0 and 1"),
        ({"mixer": "delta_flip", "memory": "two_decay", "slow_decay_init": [0.5, 0.6]}, "list of 12 numbers"),
        ({"decay_spacing": "log", "fast_decay_init": [0.5] * 12}, "'shared'"),
        ({"teacher_layers": [0, 1]}, "one layer for each"),
    ],
)
def test_contradictions_name_the_remedy(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=remedy) as caught:
        HfdDeltaNetConfig(**fields)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("fields", [{"mixer": "attention"}, {"hidden_size": "384"}, {"use_flux": 1}, {"memory": None}])
def test_wrong_values_and_types_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(fields))):
        HfdDeltaNetConfig(**fields)


def test_unknown_field_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="no field `mixr`. Did you mean `mixer`"):
        HfdDeltaNetConfig(mixr="ridge")
    with pytest.raises(ValueError, match="no field `learning_rate`"):
        HfdDeltaNetConfig(learning_rate=1.0)


def test_known_keywords_of_transformers_pass() -> None:
    config = HfdDeltaNetConfig(attn_implementation="sdpa", torch_dtype="float32", name_or_path="x", num_labels=3)
    assert config.num_labels == 3


def test_round_trip_through_a_file_keeps_every_field(tmp_path: Path) -> None:
    config = HfdDeltaNetConfig(
        mixer="delta_flip",
        memory="two_decay",
        use_flux=True,
        use_coupling=True,
        fast_decay_init=[0.3] * 12,
        conv_size=3,
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is HfdDeltaNetConfig
    skip = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in again.to_dict().items() if k not in skip} == {
        k: v for k, v in config.to_dict().items() if k not in skip
    }
    assert again.auto_map == {
        "AutoConfig": "configuration_deltanet.HfdDeltaNetConfig",
        "AutoModel": "modeling_deltanet.HfdDeltaNetModel",
    }


def test_a_file_of_a_later_version_still_loads(tmp_path: Path) -> None:
    HfdDeltaNetConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"a_field_of_tomorrow": 1}))
    assert HfdDeltaNetConfig.from_pretrained(tmp_path).a_field_of_tomorrow == 1


def test_every_field_is_read_by_code_and_documented() -> None:
    own = set(HfdDeltaNetConfig.__annotations__) - {
        "auto_map",
        "teacher_layers",
    }  # read by the Auto classes; copy_teacher
    read = set()
    for file in FOLDER.glob("*.py"):
        if file.name == "configuration_deltanet.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config"):
                read.add(node.attr)
    assert own - read - {"initializer_range"} == set()  # that one is read by PreTrainedModel._init_weights
    assert all(f"        {name} (`" in HfdDeltaNetConfig.__doc__ for name in HfdDeltaNetConfig.__annotations__)


def test_models_package_is_lazy() -> None:
    code = (
        "import sys, hf_distill.models as models; assert 'transformers' not in sys.modules; "
        "assert 'HfdDeltaNetModel' in dir(models); models.HfdDeltaNetConfig; assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[2], timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        hf_distill.models.Nothing  # noqa: B018
