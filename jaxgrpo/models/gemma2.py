"""Gemma 2 (arXiv 2408.00118): `Gemma2ForCausalLM`. Norms before and behind, soft caps, every other layer with a window."""

from typing import Any

from jaxgrpo.models import llama
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS | {
    "layers_{i}/attention_out_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp_norm/scale": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "layers_{i}/mlp_out_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    slides = [i % 2 == 0 for i in range(hf["num_hidden_layers"])]
    return base(
        hf,
        theta=10_000.0,
        windows=llama.windows(hf, hf.get("sliding_window", 4096), slides),
        attention_softcap=hf.get("attn_logit_softcapping", 50.0),
        logit_softcap=hf.get("final_logit_softcapping", 30.0),
    )


def base(hf: dict[str, Any], theta: float, **own: Any) -> ModelConfig:
    """What Gemma 2 and 3 have in common."""
    llama.refuse(
        hf,
        "hidden_activation",
        "gelu_pytorch_tanh",
        {"gelu_pytorch_tanh": "gelu's approximation by tanh"},
    )
    llama.refuse(
        hf,
        "use_bidirectional_attention",
        None,
        {None: "causal attention", False: "causal attention"},
    )
    bias = bool(hf.get("attention_bias"))
    return llama.base(
        {"tie_word_embeddings": True} | hf,
        theta,
        head_width=hf["head_dim"],
        activation="gelu_tanh",
        norms="around",
        norm_offset=1.0,
        embedding_scale=hf["hidden_size"] ** 0.5,
        query_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=bias,
        out_bias=bias,
        **own,
    )
