"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783): `LlamaForCausalLM`.

The other families start from `common_config` and WEIGHTS, and say what differs.
"""

from dataclasses import replace

from jaxgrpo.errors import UserError
from jaxgrpo.models import rope
from jaxgrpo.models.hf_config import HfConfig, require_supported
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.rope import Rope

WEIGHTS = {
    "embedding": "model.embed_tokens.weight",
    "output_embedding": "lm_head.weight",
    "norm/scale": "model.norm.weight",
    "layers_{i}/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layers_{i}/attention/query/kernel": "model.layers.{i}.self_attn.q_proj.weight",
    "layers_{i}/attention/key/kernel": "model.layers.{i}.self_attn.k_proj.weight",
    "layers_{i}/attention/value/kernel": "model.layers.{i}.self_attn.v_proj.weight",
    "layers_{i}/attention/out/kernel": "model.layers.{i}.self_attn.o_proj.weight",
    "layers_{i}/attention/query/bias": "model.layers.{i}.self_attn.q_proj.bias",
    "layers_{i}/attention/key/bias": "model.layers.{i}.self_attn.k_proj.bias",
    "layers_{i}/attention/value/bias": "model.layers.{i}.self_attn.v_proj.bias",
    "layers_{i}/attention/out/bias": "model.layers.{i}.self_attn.o_proj.bias",
    "layers_{i}/attention/query_norm/scale": "model.layers.{i}.self_attn.q_norm.weight",
    "layers_{i}/attention/key_norm/scale": "model.layers.{i}.self_attn.k_norm.weight",
    "layers_{i}/mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp/gate/kernel": "model.layers.{i}.mlp.gate_proj.weight",
    "layers_{i}/mlp/up/kernel": "model.layers.{i}.mlp.up_proj.weight",
    "layers_{i}/mlp/down/kernel": "model.layers.{i}.mlp.down_proj.weight",
}
"""A parameter's path here -> the tensor's name in the checkpoint.

It lists the parts of all networks; a network without biases has none of the biases. A kernel is
[in, out] here and [out, in] in the checkpoint.
"""


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes.

    Raises KeyError naming a field that is missing, and UserError naming a value that this
    transformer does not compute.
    """
    require_supported(hf, "hidden_act", "silu", {"silu": "silu"})
    require_supported(hf, "mlp_bias", False, {False: "no bias of the MLP"})
    has_bias = bool(hf.get("attention_bias"))
    return replace(
        common_config(hf, rope.from_hf(hf)),
        qkv_bias=has_bias,
        out_bias=has_bias,
    )


def common_config(hf: HfConfig, rotary: Rope) -> ModelConfig:
    """Returns a network with the fields that all families read alike; the others have defaults.

    rotary: the rotary positions, which some families spell in their own way

    Raises KeyError and UserError as `config_from_hf`.
    """
    require_supported(
        hf, "quantization_config", None, {None: "float32, bfloat16 and float16"}
    )
    # Query heads share key-value heads (arXiv 2305.13245), in groups of the same size.
    heads = hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(
            f"{heads} query heads cannot share {kv_heads} key-value heads; "
            "the one must divide the other"
        )
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        mlp_width=hf["intermediate_size"],
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        tied_embeddings=hf.get("tie_word_embeddings", False),
        rope=rotary,
    )
