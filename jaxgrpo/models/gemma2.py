"""Gemma 2 (arXiv 2408.00118): `Gemma2ForCausalLM`.

Norms before and after attention and MLP, soft caps on logits, a window in every other layer.
"""

from dataclasses import replace

from jaxgrpo.models import llama, rope
from jaxgrpo.models.hf_config import HfConfig, layer_windows, require_supported
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.rope import Rope

# Gemma calls the norm after attention what Llama calls the norm before the MLP.
WEIGHTS = llama.WEIGHTS | {
    "layers_{i}/attention_out_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp_norm/scale": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "layers_{i}/mlp_out_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    # Every other layer, from the first on.
    has_window = [layer % 2 == 0 for layer in range(hf["num_hidden_layers"])]
    return replace(
        gemma_config(hf, rope.from_hf(hf)),
        windows=layer_windows(hf, hf.get("sliding_window", 4096), has_window),
        attention_softcap=hf.get("attn_logit_softcapping", 50.0),
        logit_softcap=hf.get("final_logit_softcapping", 30.0),
    )


def gemma_config(hf: HfConfig, rotary: Rope) -> ModelConfig:
    """Returns a network with the fields that Gemma 2 and 3 read alike.

    rotary: the rotary positions of layers without a window

    Raises KeyError and UserError as llama.config_from_hf.
    """
    require_supported(
        hf,
        "hidden_activation",
        "gelu_pytorch_tanh",
        {"gelu_pytorch_tanh": "gelu's approximation by tanh"},
    )
    require_supported(
        hf,
        "use_bidirectional_attention",
        None,
        {None: "causal attention", False: "causal attention"},
    )
    has_bias = bool(hf.get("attention_bias"))
    # Where the field is missing, Gemma ties its embeddings; other families do not.
    hf = {"tie_word_embeddings": True} | hf
    return replace(
        llama.common_config(hf, rotary),
        head_width=hf["head_dim"],
        activation="gelu_tanh",
        norms="around",
        # The checkpoint's scales of norms are relative to 1.
        norm_offset=1.0,
        embedding_scale=hf["hidden_size"] ** 0.5,
        query_scale=hf.get("query_pre_attn_scalar", 256) ** -0.5,
        qkv_bias=has_bias,
        out_bias=has_bias,
    )
