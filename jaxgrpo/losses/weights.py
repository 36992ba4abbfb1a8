"""Mask of chosen tokens -> how much each token counts. [B, T] in, [B, T] out, from the whole batch, summing to 1."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def per_sequence(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (rows * |o_i|): the mean over sequences of each one's mean over tokens; empty rows are not counted."""
    lengths = mask.sum(axis=1, keepdims=True)
    rows = jnp.maximum((lengths > 0).sum(), 1)
    return mask / (rows * jnp.maximum(lengths, 1))


def per_token(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / sum_i |o_i|: the mean over all chosen tokens of the batch (arXiv 2503.14476, equation 8)."""
    return mask / jnp.maximum(mask.sum(), 1)
