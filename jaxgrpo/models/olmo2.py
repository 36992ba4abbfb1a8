"""OLMo 2 (arXiv 2501.00656): `Olmo2ForCausalLM`.

Llama, except that norms come after attention and MLP, and queries and keys are normed.
"""

from dataclasses import replace

from jaxgrpo.models import llama, rope
from jaxgrpo.models.hf_config import HfConfig, require_supported
from jaxgrpo.models.model_config import ModelConfig

# OLMo calls the norm after attention what Llama calls the norm before the MLP.
WEIGHTS = llama.WEIGHTS | {
    "layers_{i}/attention_out_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp_out_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    require_supported(hf, "hidden_act", "silu", {"silu": "silu"})
    has_bias = bool(hf.get("attention_bias"))
    # Queries and keys are normed over all heads together; Qwen3 norms each head by itself.
    return replace(
        llama.common_config(hf, rope.from_hf(hf)),
        qkv_bias=has_bias,
        out_bias=has_bias,
        head_norm="all",
        norms="after",
        norm_epsilon=hf.get("rms_norm_eps", 1e-5),
    )
