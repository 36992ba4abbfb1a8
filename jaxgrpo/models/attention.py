"""Attention, and what it knows of positions: masks, rotary embeddings, cached keys and values.

Pure functions of arrays. Axes: B rows, T columns, H query heads, K key-value heads, E head width,
S columns of keys and values (T, or a cache's width).
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.models.rope import Rope

KeyValues = tuple[tuple[Array, Array], ...] | tuple[Array, Array]
"""A pair (keys, values) a layer, Float[B K E S] and Float[B K S E]: as one query reads them best,
since its products with keys and with values are then both along memory. Where the parameters are
stacked, one pair for all layers, with an axis [L] in front."""

LayerKeyValues = tuple[Float[Array, "B K E _"], Float[Array, "B K _ E"]]
"""The keys and values of one layer."""

AttentionFn = Callable[..., Float[Array, "B H T E"]]
"""(queries, parts, window=, scale=, softcap=) -> what `attend` gives, by another kernel that knows
the mask (splash.py)."""


class KVCache(NamedTuple):
    """Keys and values that new tokens read besides their own.

    With no ring_position, new tokens read the cache's columns and then each other. With one, the
    cache is a ring and there is a single new token, whose keys and values become that column of it.
    Where there are n times as many rows as cached ones, each of those is that of n rows beside each
    other.
    """

    columns: KeyValues
    ring_position: Int[Array, ""] | int | None = None


class RotaryTable(NamedTuple):
    """Cosines and sines of rotary positions.

    They are made once for all layers: cosines cost more than the products with them.
    """

    cos: Float[Array, "*R B 1 T half"]
    sin: Float[Array, "*R B 1 T half"]


def rotary_table(
    rope: Rope, head_width: int, positions: Int[Array, "B T"]
) -> RotaryTable:
    """Returns the table for positions, in float32 whatever the network is computed in."""
    angles = positions[:, None, :, None].astype(jnp.float32) * rope.frequencies(
        head_width
    )
    return RotaryTable(
        jnp.cos(angles) * rope.magnitude(), jnp.sin(angles) * rope.magnitude()
    )


def apply_rotary(
    x: Float[Array, "B n T E"], table: RotaryTable
) -> Float[Array, "B n T E"]:
    """Applies rotary position embeddings (arXiv 2104.09864).

    The halves are rotated against each other, as in Hugging Face checkpoints.
    """
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated_left = left * table.cos - right * table.sin
    rotated_right = right * table.cos + left * table.sin
    return jnp.concatenate([rotated_left, rotated_right], axis=-1).astype(x.dtype)


def attend(
    queries: Float[Array, "B H T E"],
    parts: list[LayerKeyValues],
    mask: Bool[Array, "B T S"],
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B H T E"]:
    """Computes softmax attention of H query heads over K key-value heads.

    Query head h reads key-value head h // (H / K). A query whose mask is all False reads the mean
    of the values: finite, and never looked at.

    parts: keys and values in parts of any widths, together S columns; one array would be a copy
    mask: [B, T, S], which column each query may read
    scale: of the products of queries and keys; None: E ** -0.5
    softcap: bound on these products (arXiv 2408.00118); None: no bound
    """
    batch, heads, length, width = queries.shape
    kv_heads = parts[0][0].shape[1]
    # The H/K query heads of a key-value head are one product: [B, K, H/K * T, E].
    grouped = queries.reshape(batch, kv_heads, -1, width)
    products = [_float32_product("bkqe,bkes->bkqs", grouped, keys) for keys, _ in parts]
    scores = jnp.concatenate(products, axis=-1)
    scores = scores * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)

    # Back to one row a query head, [B, H, T, S], so that the mask fits.
    scores = scores.reshape(batch, heads, length, -1)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights.reshape(batch, kv_heads, -1, scores.shape[-1])

    # Each part of the values is read with its own columns of the weights.
    ends = np.cumsum([values.shape[2] for _, values in parts])
    weight_parts = jnp.split(weights, ends[:-1], axis=-1)
    outputs = [
        _float32_product("bkqs,bkse->bkqe", part_weights.astype(values.dtype), values)
        for part_weights, (_, values) in zip(weight_parts, parts, strict=True)
    ]
    output = reduce(jnp.add, outputs)
    return output.reshape(batch, heads, length, width).astype(queries.dtype)


def _float32_product(
    equation: str, left: Float[Array, "B K q _"], right: Array
) -> Float[Array, "B K q _"]:
    """Returns an einsum that is summed in float32."""
    rows = left.shape[2]
    if rows == 1:
        # XLA for TPUs makes a product with one row a sum of multiplications, and copies the keys
        # into another layout for it: all of a ring, for each token. Two rows stay a product.
        left = jnp.concatenate([left, left], axis=2)
    product = jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)
    return product[:, :, :rows]


def sequence_mask(
    segments: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Bool[Array, "B T T"]:
    """Returns which column reads which: itself and those before it, within its own text.

    segments: the text that each column belongs to; 0 (or False) is padding, which nobody reads
    """
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same_text = segments[:, :, None] == segments[:, None, :]
    return causal & same_text & (segments != 0)[:, None, :]


def shared_prompt_mask(
    groups: Int[Array, "B S"], completions: Int[Array, "B S"]
) -> Bool[Array, "B S S"]:
    """Returns which column reads which where completions stand after the prompt that they share.

    A column reads itself and those before it that are of its group's prompt or of its completion.

    groups: the group of each column; 0 is padding, which nobody reads
    completions: the completion of each column; 0 is a prompt
    """
    keys = completions[:, None, :]
    is_prompt = keys == 0
    same_completion = completions[:, :, None] == keys
    return sequence_mask(groups) & (is_prompt | same_completion)


def sequence_positions(
    segments: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Int[Array, "B T"]:
    """Returns positions that count tokens, not columns.

    Every text starts at 0, whatever stands before it in its row.
    """
    columns = jnp.arange(segments.shape[1])
    first = jnp.ones_like(segments[:, :1], bool)
    starts = jnp.concatenate([first, segments[:, 1:] != segments[:, :-1]], axis=1)
    return columns - jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)
