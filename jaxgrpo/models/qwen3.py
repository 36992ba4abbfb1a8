"""Qwen3's dense models (arXiv 2505.09388): `Qwen3ForCausalLM`.

Llama, except that each head's queries and keys are normed and upper layers may have a window.
"""

from dataclasses import replace

from jaxgrpo.models import llama, qwen2, rope
from jaxgrpo.models.hf_config import HfConfig, require_supported
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    require_supported(hf, "hidden_act", "silu", {"silu": "silu"})
    # Qwen2 has biases always; here config.json decides, and says no.
    has_bias = bool(hf.get("attention_bias"))
    return replace(
        llama.common_config(hf, rope.from_hf(hf)),
        head_width=hf["head_dim"],
        head_norm="head",
        qkv_bias=has_bias,
        out_bias=has_bias,
        windows=qwen2.upper_layer_windows(hf),
    )
