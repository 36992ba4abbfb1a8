"""Llama (arXiv 2302.13971, 2307.09288): `LlamaForCausalLM`."""

from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.models.transformer import ModelConfig

WEIGHTS = {
    "embedding": "model.embed_tokens.weight",
    "output_embedding": "lm_head.weight",
    "norm/scale": "model.norm.weight",
    "layers_{i}/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layers_{i}/attention/query/kernel": "model.layers.{i}.self_attn.q_proj.weight",
    "layers_{i}/attention/key/kernel": "model.layers.{i}.self_attn.k_proj.weight",
    "layers_{i}/attention/value/kernel": "model.layers.{i}.self_attn.v_proj.weight",
    "layers_{i}/attention/out/kernel": "model.layers.{i}.self_attn.o_proj.weight",
    "layers_{i}/mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/mlp/gate/kernel": "model.layers.{i}.mlp.gate_proj.weight",
    "layers_{i}/mlp/up/kernel": "model.layers.{i}.mlp.up_proj.weight",
    "layers_{i}/mlp/down/kernel": "model.layers.{i}.mlp.down_proj.weight",
}
"""Our path -> the checkpoint's name. A kernel is stored [in, out] here and [out, in] there."""


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. KeyError names what is missing; UserError what this transformer does not compute."""
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act is {hf['hidden_act']!r}; only 'silu' is computed here")
    # transformers 5 gathers the rotary settings in rope_parameters; checkpoints written before have them apart.
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope type {kind!r} is not computed here; only 'default' is")
    if hf.get("attention_bias") or hf.get("mlp_bias"):
        raise UserError("attention_bias and mlp_bias are not computed for this family; both must be false")
    heads = hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(f"{heads} query heads cannot share {kv_heads} key-value heads; the one must divide the other")
    return ModelConfig(
        vocab_size=hf["vocab_size"],
        width=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_width=hf.get("head_dim") or hf["hidden_size"] // heads,
        mlp_width=hf["intermediate_size"],
        norm_epsilon=hf.get("rms_norm_eps", 1e-6),
        rope_theta=hf.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        tied_embeddings=hf.get("tie_word_embeddings", False),
    )
