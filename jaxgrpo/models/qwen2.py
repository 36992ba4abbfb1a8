"""Qwen2 and Qwen2.5 (arXiv 2407.10671): `Qwen2ForCausalLM`. Llama with biases on queries, keys and values."""

from typing import Any

from jaxgrpo.models import llama
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    llama.refuse(hf, "hidden_act", "silu", {"silu": "silu"})
    return llama.base(hf, theta=10_000.0, qkv_bias=True, windows=windows(hf))


def windows(hf: dict[str, Any]) -> tuple[int, ...]:
    """Where windows are used at all, the layers from max_window_layers on have one."""
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    return llama.windows(
        hf, window, [i >= hf.get("max_window_layers", 28) for i in range(hf["num_hidden_layers"])]
    )
