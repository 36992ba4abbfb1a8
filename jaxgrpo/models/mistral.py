"""Mistral 7B (arXiv 2310.06825): `MistralForCausalLM`.

Llama, except that all layers may have a sliding window.
"""

from dataclasses import replace

from jaxgrpo.models import llama, rope
from jaxgrpo.models.hf_config import HfConfig, layer_windows, require_supported
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    require_supported(hf, "hidden_act", "silu", {"silu": "silu"})
    require_supported(hf, "layer_types", None, {None: "the same for all layers"})
    # Where the field is missing, Mistral has 8 key-value heads and not one for each query head.
    hf = {"num_key_value_heads": 8} | hf
    has_window = [True] * hf["num_hidden_layers"]
    return replace(
        llama.common_config(hf, rope.from_hf(hf)),
        windows=layer_windows(hf, hf.get("sliding_window", 4096), has_window),
    )
