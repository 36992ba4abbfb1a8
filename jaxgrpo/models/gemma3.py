"""Gemma 3's text models (arXiv 2503.19786): `Gemma3ForCausalLM`. Gemma 2 with each head's queries and keys normed in the place
of the cap on their products, five layers with a window to one without, and a rotary base for each of the two."""

from typing import Any

from jaxgrpo.models import gemma2, llama, rope
from jaxgrpo.models.transformer import ModelConfig

WEIGHTS = gemma2.WEIGHTS


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig; errors as llama's."""
    llama.refuse(hf, "attn_logit_softcapping", None, {None: "no cap on attention"})
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    slides = [(i + 1) % pattern != 0 for i in range(hf["num_hidden_layers"])]
    whole, local = _ropes(hf)
    return gemma2.base(
        hf,
        theta=whole.theta,
        rope=whole,
        local_rope=local,
        windows=llama.windows(hf, hf.get("sliding_window", 4096), slides),
        head_norm="head",
        logit_softcap=hf.get("final_logit_softcapping"),
    )


def _ropes(hf: dict[str, Any]) -> tuple[rope.Rope, rope.Rope]:
    """Of the layers without a window, and of those with one. Before transformers 5, a scaling is the former's alone."""
    settings = hf.get("rope_parameters") or {"full_attention": hf.get("rope_scaling")}
    whole, local = settings.get("full_attention") or {}, settings.get("sliding_attention") or {}
    return (
        rope.from_hf(hf, whole, hf.get("rope_theta") or 1_000_000.0),
        rope.from_hf(hf, local, hf.get("rope_local_base_freq") or 10_000.0),
    )
