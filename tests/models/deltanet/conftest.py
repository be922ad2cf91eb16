"""Fixtures of the DeltaNet model tests: tiny students with nothing at its neutral start, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel

# Every mixer, and every named part of the memory at least once.
VARIANTS = {
    "ridge": {"mixer": "ridge"},
    "ridge_plain_exp": {"mixer": "ridge", "ridge_center": False, "beta_activation": "exp"},
    "ridge_conv_local": {"mixer": "ridge", "conv_size": 3, "local_size": 5},
    "causal": {"mixer": "delta_causal", "conv_size": 4, "local_size": 3},
    "ridge_one_beta": {"mixer": "ridge", "token_beta": False},
    "flip_one_beta": {"mixer": "delta_flip", "token_beta": False},
    "causal_two_decay": {"mixer": "delta_causal", "memory": "two_decay", "use_flux": True, "use_coupling": True},
    "causal_joint": {"mixer": "delta_causal", "memory": "joint_residual", "use_flux": True, "conv_size": 2},
    "flip": {"mixer": "delta_flip", "use_head_norm": True, "use_output_gate": True},
    "flip_joint": {
        "mixer": "delta_flip",
        "memory": "joint_residual",
        "use_flux": True,
        "use_coupling": True,
        "conv_size": 3,
    },
    "flip_two_decay": {"mixer": "delta_flip", "memory": "two_decay", "use_coupling": True},
    "split": {"mixer": "delta_split", "local_size": 3, "use_output_gate": True},
    "split_joint": {"mixer": "delta_split", "memory": "joint_residual", "decay_spacing": "log"},
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., HfdDeltaNetConfig]:
    """Makes two-layer, 16-wide configurations."""

    def tiny_config(**fields: Any) -> HfdDeltaNetConfig:
        sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        more = {"intermediate_size": 24, "max_position_embeddings": 64, "state_dropout": 0.0, "ridge_lambda_init": 0.3}
        return HfdDeltaNetConfig(**(sizes | more | fields))

    return tiny_config


@pytest.fixture(scope="session")
def build(tiny_config: Callable[..., HfdDeltaNetConfig]) -> Callable[..., HfdDeltaNetModel]:
    """Builds a tiny student in evaluation mode whose parameters are all away from their neutral start."""

    def build(seed: int = 0, dtype: torch.dtype = torch.float64, **fields: Any) -> HfdDeltaNetModel:
        torch.manual_seed(seed)
        model = HfdDeltaNetModel(tiny_config(**fields)).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.5 if parameter.ndim > 1 and "embeddings" not in name else 0.2
                parameter.add_(scale * torch.randn_like(parameter))
        return model.eval()

    return build


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The fields of one variant."""
    return VARIANTS[request.param]
