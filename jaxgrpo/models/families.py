"""The model families by the architectures of config.json, and the names of their tensors."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxgrpo.models import gemma2, gemma3, llama, mistral, olmo2, qwen2, qwen3
from jaxgrpo.models.hf_config import HfConfig
from jaxgrpo.models.model_config import ModelConfig


@runtime_checkable
class Family(Protocol):
    """The interface of a model family's file."""

    WEIGHTS: dict[str, str]
    """A parameter's path -> the tensor's name in the checkpoint, {i} being the layer."""

    def config_from_hf(self, hf: HfConfig) -> ModelConfig:
        """Returns the network that a config.json describes."""
        ...


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": llama,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Olmo2ForCausalLM": olmo2,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "MistralForCausalLM": mistral,
}
"""The name of an architecture in config.json -> the family's file."""


def family_of(hf: HfConfig) -> Family:
    """Returns the family of a config.json, whose architecture is one of FAMILIES."""
    return FAMILIES[hf["architectures"][0]]


def is_transposed(path: str) -> bool:
    """Returns whether the checkpoint stores a parameter's transpose: kernels are [in, out] here."""
    return path.endswith("kernel")


def checkpoint_name(weights: Mapping[str, str], path: str) -> str:
    """Returns a parameter's name in the checkpoint.

    layers_3/mlp/up/kernel -> model.layers.3.mlp.up_proj.weight
    """
    # A layer's tensors are in the table once, with {i} for the layer's number.
    module, _, rest = path.partition("/")
    stem, _, layer = module.partition("_")
    if stem == "layers":
        return weights[f"layers_{{i}}/{rest}"].format(i=layer)
    return weights[path]
