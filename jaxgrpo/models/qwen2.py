"""Qwen2 and Qwen2.5 (arXiv 2407.10671): `Qwen2ForCausalLM`. Llama with biases on queries, keys and values."""

from dataclasses import replace
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.models import llama
from jaxgrpo.models.transformer import ModelConfig

WEIGHTS = llama.WEIGHTS | {
    "layers_{i}/attention/query/bias": "model.layers.{i}.self_attn.q_proj.bias",
    "layers_{i}/attention/key/bias": "model.layers.{i}.self_attn.k_proj.bias",
    "layers_{i}/attention/value/bias": "model.layers.{i}.self_attn.v_proj.bias",
}


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    if hf.get("use_sliding_window"):
        raise UserError("use_sliding_window is true; sliding windows are not computed for this family")
    return replace(llama.config_from_hf(hf), qkv_bias=True)
