"""Gemma 3's text models (arXiv 2503.19786): `Gemma3ForCausalLM`. Gemma 2 with each head's queries and keys normed in the place
of the cap on their products, five layers with a window to one without, and a rotary base for each of the two."""

from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.models import gemma2, llama, rope
from jaxgrpo.models.model_config import ModelConfig

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
    """Returns the scaling of the layers without a window, and that of those with one.

    As in transformers 5, a rope_scaling is the former's alone, and goes before what
    rope_parameters says of them.
    """
    parameters, scaling = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    apart = sorted(parameters.keys() - {"full_attention", "sliding_attention"})
    if apart:
        raise UserError(
            f"rope_parameters has {apart[0]!r} for all layers; for this family it is "
            '{"full_attention": {...}, "sliding_attention": {...}}'
        )
    whole, local = parameters.get("full_attention") or {}, parameters.get("sliding_attention") or {}
    spelled = scaling.get("type")
    if spelled and "rope_type" not in scaling and spelled != whole.get("rope_type", "default"):
        raise UserError(
            f"rope_scaling has type {spelled!r}, which for this family goes by the name of "
            "rope_type: rename it"
        )
    return (
        rope.from_hf(hf, whole | scaling, hf.get("rope_theta") or 1_000_000.0),
        rope.from_hf(hf, local, hf.get("rope_local_base_freq") or 10_000.0),
    )
