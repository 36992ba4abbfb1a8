"""Logits of a vocabulary, as sampler and scorer compute them.

Axes: V vocabulary, D model width.
"""

from collections.abc import Collection

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxgrpo.models.int8 import Int8Matrix

Ranges = tuple[tuple[int, int], ...]
"""Ids as (first, end) pairs; the end is not among them."""


def as_ranges(ids: Collection[int]) -> Ranges:
    """Returns ids as (first, end) pairs, in order."""
    firsts = sorted(id_ for id_ in ids if id_ - 1 not in ids)
    ends = sorted(id_ + 1 for id_ in ids if id_ + 1 not in ids)
    return tuple(zip(firsts, ends, strict=True))


def used_ids(vocabulary: int, unused: Ranges) -> Bool[np.ndarray, "V"]:
    """Returns which rows of an embedding belong to a token.

    Embeddings are often padded: Qwen2.5 has 151,936 rows for 151,665 tokens. A row without a token
    has no text and no training, so it is neither sampled nor part of any softmax.

    unused: the ids that no token has
    """
    used = np.ones(vocabulary, bool)
    for first, end in unused:
        used[first:end] = False
    return used


def to_logits(
    hidden: Float[Array, "*rows D"],
    embedding: Float[Array, "V D"],
    temperature: Float[Array, ""] | float,
    softcap: float | None = None,
) -> Float[Array, "*rows V"]:
    """Computes float32 logits at a temperature; sampler and scorer both use this function.

    softcap: bound on the logits that Gemma 2 was trained with, cap * tanh(logits / cap), applied
        before the temperature; None leaves them as they are
    """
    return cap_and_scale(dot_products(hidden, embedding), temperature, softcap)


def dot_products(
    hidden: Float[Array, "*rows D"], embedding: Float[Array, "V D"]
) -> Float[Array, "*rows V"]:
    """Computes hidden @ embedding.T in hidden's dtype, summed in float32."""
    return einsum_float32("...d,vd->...v", hidden, embedding.astype(hidden.dtype))


def vocabulary_products(
    hidden: Float[Array, "B D"], embedding: Float[Array, "V D"] | Int8Matrix
) -> Float[Array, "V B"]:
    """Computes the `dot_products` of a few rows, transposed.

    The large operand stands on the left: XLA for CPUs takes 1.6 times as long with it on the right.
    """
    if isinstance(embedding, Int8Matrix):
        values = embedding.values.astype(hidden.dtype)
        return vocabulary_products(hidden, values) * embedding.scale[:, None]
    return einsum_float32("vd,bd->vb", embedding.astype(hidden.dtype), hidden)


def einsum_float32(subscripts: str, a: Array, b: Array) -> Array:
    """Computes an einsum whose sums are float32, whatever the dtype of its operands."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def cap_and_scale(
    products: Float[Array, "*logits"],
    temperature: Float[Array, ""] | float,
    softcap: float | None,
) -> Float[Array, "*logits"]:
    """Turns dot products into logits: softcap first, then temperature."""
    if softcap is not None:
        products = softcap * jnp.tanh(products / softcap)
    return products / temperature
