"""Mistral 7B (arXiv 2310.06825): `MistralForCausalLM`. Llama whose layers may all have a sliding window."""

from typing import Any

from jaxgrpo.models import llama
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    llama.refuse(hf, "hidden_act", "silu", {"silu": "silu"})
    llama.refuse(hf, "layer_types", None, {None: "the same for all layers"})
    windows = llama.windows(hf, hf.get("sliding_window", 4096), [True] * hf["num_hidden_layers"])
    return llama.base({"num_key_value_heads": 8} | hf, theta=10_000.0, windows=windows)
