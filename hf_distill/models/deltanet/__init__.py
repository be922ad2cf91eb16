"""The DeltaNet sentence encoder: configuration, model and their registration with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from .configuration_deltanet import HfdDeltaNetConfig
from .modeling_deltanet import HfdDeltaNetModel, HfdDeltaNetOutput

AutoConfig.register(HfdDeltaNetConfig.model_type, HfdDeltaNetConfig, exist_ok=True)
AutoModel.register(HfdDeltaNetConfig, HfdDeltaNetModel, exist_ok=True)
# Saving copies the code of registered classes next to the weights.
HfdDeltaNetConfig.register_for_auto_class("AutoConfig")
HfdDeltaNetModel.register_for_auto_class("AutoModel")

__all__ = ["HfdDeltaNetConfig", "HfdDeltaNetModel", "HfdDeltaNetOutput"]
