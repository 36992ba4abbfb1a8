"""Gemma 3's text models (arXiv 2503.19786): `Gemma3ForCausalLM`.

Gemma 2, except that each head's queries and keys are normed instead of their products capped,
five layers have a window to one without, and the two kinds of layers have rotary bases of their
own.
"""

from dataclasses import replace

from jaxgrpo.errors import UserError
from jaxgrpo.models import gemma2, rope
from jaxgrpo.models.hf_config import HfConfig, layer_windows, require_supported
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.rope import Rope

WEIGHTS = gemma2.WEIGHTS

GLOBAL_THETA = 1_000_000.0
"""Rotary base of layers without a window, where config.json names none."""

LOCAL_THETA = 10_000.0
"""Rotary base of layers with a window, where config.json names none."""


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    require_supported(hf, "attn_logit_softcapping", None, {None: "no cap on attention"})
    # Layer numbers that are multiples of the pattern, counted from 1, read the whole text.
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    has_window = [
        (layer + 1) % pattern != 0 for layer in range(hf["num_hidden_layers"])
    ]
    global_rope, local_rope = _read_ropes(hf)
    return replace(
        gemma2.gemma_config(hf, global_rope),
        local_rope=local_rope,
        windows=layer_windows(hf, hf.get("sliding_window", 4096), has_window),
        head_norm="head",
        logit_softcap=hf.get("final_logit_softcapping"),
    )


def _read_ropes(hf: HfConfig) -> tuple[Rope, Rope]:
    """Returns the rotary positions of layers without a window, and those of layers with one.

    As in transformers 5, a rope_scaling applies to layers without a window alone, and overrides
    what rope_parameters says of them.
    """
    parameters = hf.get("rope_parameters") or {}
    scaling = hf.get("rope_scaling") or {}
    not_nested = sorted(parameters.keys() - {"full_attention", "sliding_attention"})
    if not_nested:
        raise UserError(
            f"rope_parameters has {not_nested[0]!r} for all layers; for this family it is "
            '{"full_attention": {...}, "sliding_attention": {...}}'
        )
    global_settings = parameters.get("full_attention") or {}
    local_settings = parameters.get("sliding_attention") or {}

    # transformers does not read the old spelling `type` for this family: it would be lost.
    old_type = scaling.get("type")
    global_type = global_settings.get("rope_type", "default")
    if old_type and "rope_type" not in scaling and old_type != global_type:
        raise UserError(
            f"rope_scaling has type {old_type!r}, which for this family goes by the name of "
            "rope_type: rename it"
        )

    # Checkpoints from before transformers 5 name the bases beside the scaling.
    global_theta = hf.get("rope_theta") or GLOBAL_THETA
    local_theta = hf.get("rope_local_base_freq") or LOCAL_THETA
    return (
        rope.from_settings(hf, global_settings | scaling, global_theta),
        rope.from_settings(hf, local_settings, local_theta),
    )
