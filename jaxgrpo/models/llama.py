"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783): `LlamaForCausalLM`. The other families say what differs from it."""

from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.models import rope
from jaxgrpo.models.model_config import ModelConfig

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
"""Our path -> the checkpoint's name, of whatever parts a network has. A kernel is [in, out] here and [out, in] there."""

LAYER_TYPES = "full_attention", "sliding_attention"


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. KeyError names what is missing; UserError what this transformer does not compute."""
    refuse(hf, "hidden_act", "silu", {"silu": "silu"})
    refuse(hf, "mlp_bias", False, {False: "no bias of the MLP"})
    bias = bool(hf.get("attention_bias"))
    return base(hf, theta=10_000.0, qkv_bias=bias, out_bias=bias)


def base(hf: dict[str, Any], theta: float, **own: Any) -> ModelConfig:
    """What all families have in common, and what is a family's own. theta: the rotary base where config.json names none."""
    refuse(hf, "quantization_config", None, {None: "float32, bfloat16 and float16"})
    heads = hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UserError(
            f"{heads} query heads cannot share {kv_heads} key-value heads; the one must divide the other"
        )
    if "rope" not in own:
        own["rope"] = rope.from_hf(hf, rope.settings_of(hf, theta), hf.get("rope_theta") or theta)
    common = {
        "vocab_size": hf["vocab_size"],
        "width": hf["hidden_size"],
        "layers": hf["num_hidden_layers"],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_width": hf.get("head_dim") or hf["hidden_size"] // heads,
        "mlp_width": hf["intermediate_size"],
        "norm_epsilon": hf.get("rms_norm_eps", 1e-6),
        "tied_embeddings": hf.get("tie_word_embeddings", False),
    }
    return ModelConfig(**common | own)


def refuse(hf: dict[str, Any], field: str, default: Any, computed: dict[Any, str]) -> None:
    """UserError if a field of config.json has a value that is not computed. computed: those that are, with their meaning."""
    value = default if hf.get(field) is None else hf[field]
    if isinstance(value, (dict, list)) or value not in computed:
        what = " or ".join(f"{meaning} ({value!r})" for value, meaning in computed.items())
        raise UserError(f"{field} is {value!r}; computed here: {what}")


def windows(hf: dict[str, Any], window: int | None, slides: list[bool]) -> tuple[int, ...]:
    """How many columns back each layer reads, itself included; 0: all.

    slides: whether each has a window, where config.json has no layer_types
    """
    types = hf.get("layer_types")
    if types is not None:
        others = sorted(set(types) - set(LAYER_TYPES))
        if others or len(types) != hf["num_hidden_layers"]:
            what = (
                f"holds {others[0]!r}"
                if others
                else f"has {len(types)} of {hf['num_hidden_layers']} layers"
            )
            raise UserError(
                f"layer_types {what}; computed here: {' and '.join(LAYER_TYPES)}, one for each layer"
            )
        slides = [kind == "sliding_attention" for kind in types]
    return tuple((window or 0) if slide else 0 for slide in slides)
