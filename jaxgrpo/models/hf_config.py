"""Reading a Hugging Face config.json: the checks and fields that model families share."""

from collections.abc import Mapping
from typing import Any

from jaxgrpo.errors import UserError

HfConfig = dict[str, Any]
"""A parsed config.json. A field may hold any JSON value, hence Any."""

LAYER_TYPES = ("full_attention", "sliding_attention")
"""The entries of config.json's layer_types that the transformer computes."""


def require_supported(
    hf: HfConfig, field: str, default: object, supported: Mapping[object, str]
) -> None:
    """Raises UserError if a field of config.json has a value that is not computed.

    field: the field's name in config.json
    default: the value that transformers assumes where the field is missing or null
    supported: value -> what it means, for the error message
    """
    value = default if hf.get(field) is None else hf[field]
    is_hashable = not isinstance(value, dict | list)
    if is_hashable and value in supported:
        return
    choices = [f"{meaning} ({value!r})" for value, meaning in supported.items()]
    raise UserError(f"{field} is {value!r}; computed here: {' or '.join(choices)}")


def layer_windows(
    hf: HfConfig, window: int | None, has_window: list[bool]
) -> tuple[int, ...]:
    """Returns each layer's sliding window: how many columns back it reads, itself included; 0: all.

    window: the size of a sliding window; None: no layer has one
    has_window: which layers have a window, where config.json has no layer_types

    Raises UserError if layer_types has a type that is not computed, or misses a layer.
    """
    layer_types = hf.get("layer_types")
    if layer_types is not None:
        _check_layer_types(layer_types, hf["num_hidden_layers"])
        has_window = [layer_type == "sliding_attention" for layer_type in layer_types]
    size = window or 0
    return tuple(size if slides else 0 for slides in has_window)


def _check_layer_types(layer_types: list[str], num_layers: int) -> None:
    """Raises UserError unless there is one known type for each layer."""
    unknown = sorted(set(layer_types) - set(LAYER_TYPES))
    if not unknown and len(layer_types) == num_layers:
        return
    if unknown:
        problem = f"holds {unknown[0]!r}"
    else:
        problem = f"has {len(layer_types)} of {num_layers} layers"
    raise UserError(
        f"layer_types {problem}; computed here: {' and '.join(LAYER_TYPES)}, one for each layer"
    )
