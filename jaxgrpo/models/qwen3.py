"""Qwen3 (arXiv 2505.09388), the dense ones: `Qwen3ForCausalLM`. Llama with each head's queries and keys normed."""

from typing import Any

from jaxgrpo.models import llama, qwen2
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    llama.refuse(hf, "hidden_act", "silu", {"silu": "silu"})
    bias = bool(hf.get("attention_bias"))
    own = {"head_width": hf["head_dim"], "head_norm": "head", "windows": qwen2.windows(hf)}
    return llama.base(hf, theta=10_000.0, qkv_bias=bias, out_bias=bias, **own)
