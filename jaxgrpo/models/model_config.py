"""The description of a network: its sizes and variants, and how its layers differ."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxgrpo.models.rope import Rope
from jaxgrpo.types import AnyArray

UNLIMITED = 2**30
"""A window that is wider than any text."""


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and variants of a network. Family files make it from a config.json."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm_epsilon: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    local_rope: Rope | None = None
    """Rotary positions of the layers that have a window; None: as the others."""
    windows: tuple[int, ...] = ()
    """How many columns back each layer reads, itself included; 0 (or no entry): all."""
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    head_norm: str = ""
    """The norm of queries and keys: each "head" by itself, "all" heads together, or "": none."""
    norms: str = "before"
    """Where attention and MLP have a norm: "before" them, "after" them, or "around" them."""
    norm_offset: float = 0.0
    """A constant that is added to the scale of every norm."""
    activation: str = "silu"
    embedding_scale: float = 1.0
    query_scale: float | None = None
    """Multiplies the products of queries and keys; None: head_width ** -0.5."""
    attention_softcap: float | None = None
    """Bounds these products by c, as c * tanh(products / c)."""
    logit_softcap: float | None = None
    """Bounds the logits in the same way."""
    unused_ids: tuple[tuple[int, int], ...] = ()
    """Rows of the embedding that no token of the tokenizer has, as (first, end) pairs: they are
    never drawn, and in no softmax."""

    def __post_init__(self) -> None:
        # Windows that are all alike, written in one way: configs that mean the same are equal.
        object.__setattr__(self, "windows", self.windows if any(self.windows) else ())
        if self.windows and len(self.windows) != self.layers:
            raise ValueError(
                f"{len(self.windows)} windows for {self.layers} layers: each has one"
            )

    @property
    def layer_kinds(self) -> tuple[tuple[int, Rope], ...]:
        """The window and the rotary positions of each layer."""
        windows = self.windows or (0,) * self.layers
        return tuple((window, self._rope_of(window)) for window in windows)

    def _rope_of(self, window: int) -> Rope:
        return self.local_rope if window and self.local_rope else self.rope


class LayerConstants(NamedTuple):
    """Numbers in which layers differ, besides their parameters.

    For all layers together each has an axis [L], over which a scan can go.
    """

    window: Int[AnyArray, "*L"]
    """How many columns back the layer reads, itself included."""
    window_index: Int[AnyArray, "*L"]
    """The place of its window in `distinct_windows`."""
    rope_index: Int[AnyArray, "*L"]
    """The place of its rotary positions in `distinct_ropes`."""


def layer_constants(config: ModelConfig) -> LayerConstants:
    """Returns the constants of all layers, as NumPy arrays [L]."""
    # Windows and rotary positions come in few kinds: a layer names its own by their place.
    windows = distinct_windows(config)
    ropes = distinct_ropes(config)
    kinds = config.layer_kinds
    return LayerConstants(
        window=np.array([window or UNLIMITED for window, _ in kinds], np.int32),
        window_index=np.array([windows.index(window) for window, _ in kinds], np.int32),
        rope_index=np.array([ropes.index(rope) for _, rope in kinds], np.int32),
    )


def distinct_windows(config: ModelConfig) -> list[int]:
    """Returns the windows that the network has, each once; 0: all columns."""
    return sorted({window for window, _ in config.layer_kinds})


def distinct_ropes(config: ModelConfig) -> list[Rope]:
    """Returns the rotary positions that the network has, each once."""
    return list(dict.fromkeys(rope for _, rope in config.layer_kinds))
