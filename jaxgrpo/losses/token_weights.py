"""Mask of chosen tokens -> how much each token counts. [B, T] in, [B, T] out, from the whole batch.

Rows without a chosen token are not counted: an underfull batch weighs what its full rows weigh.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.terms import Coefficient


def per_sequence(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / (rows * |o_i|): the mean over sequences of each one's mean over tokens. Sums to 1."""
    return mask / (_rows(mask) * jnp.maximum(mask.sum(axis=1, keepdims=True), 1))


def per_token(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """1 / sum_i |o_i|: the mean over all chosen tokens of the batch (arXiv 2503.14476, equation 8). Sums to 1."""
    return mask / jnp.maximum(mask.sum(), 1)


def per_budget(mask: Bool[Array, "B T"], budget: Coefficient) -> Float[Array, "B T"]:
    """1 / (rows * budget): a token counts the same whatever the lengths are (arXiv 2503.20783, section 3.2). Sums to the mean
    length over the budget; a budget of 1 is the mean over sequences of each one's sum."""
    return mask / (_rows(mask) * budget)


def without_truncated(mask: Bool[Array, "B T"], finished: Bool[Array, "B"]) -> Bool[Array, "B T"]:
    """The mask without the rows that were cut off before they ended: their reward says nothing about their tokens
    (overlong filtering, arXiv 2503.14476, section 3.4)."""
    return mask & finished[:, None]


def _rows(mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    return jnp.maximum(mask.any(axis=1).sum(), 1).astype(jnp.float32)
