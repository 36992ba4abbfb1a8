"""OLMo 2 (arXiv 2501.00656): `Olmo2ForCausalLM`. Norms stand behind attention and MLP, and behind queries and keys."""

from typing import Any

from jaxgrpo.models import llama
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS | {
    "layers_{i}/attention_out_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp_out_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    llama.refuse(hf, "hidden_act", "silu", {"silu": "silu"})
    bias = bool(hf.get("attention_bias"))
    own = {"head_norm": "all", "norms": "after", "norm_epsilon": hf.get("rms_norm_eps", 1e-5)}
    return llama.base(hf, theta=10_000.0, qkv_bias=bias, out_bias=bias, **own)
