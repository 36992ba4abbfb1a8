"""Qwen2 and Qwen2.5 (arXiv 2407.10671): `Qwen2ForCausalLM`.

Llama, except that queries, keys and values have biases and upper layers may have a window.
"""

from dataclasses import replace

from jaxgrpo.models import llama, rope
from jaxgrpo.models.hf_config import HfConfig, layer_windows, require_supported
from jaxgrpo.models.model_config import ModelConfig

WEIGHTS = llama.WEIGHTS


def config_from_hf(hf: HfConfig) -> ModelConfig:
    """Returns the network that a config.json describes. Raises as llama.config_from_hf."""
    require_supported(hf, "hidden_act", "silu", {"silu": "silu"})
    return replace(
        llama.common_config(hf, rope.from_hf(hf)),
        qkv_bias=True,
        windows=upper_layer_windows(hf),
    )


def upper_layer_windows(hf: HfConfig) -> tuple[int, ...]:
    """Returns each layer's window; if windows are used, layers from max_window_layers on have one.

    Raises UserError as layer_windows.
    """
    # A config.json may state a window and have it switched off, as those of Qwen2.5 do.
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first_with_window = hf.get("max_window_layers", 28)
    has_window = [
        layer >= first_with_window for layer in range(hf["num_hidden_layers"])
    ]
    return layer_windows(hf, window, has_window)
