"""Rewards of a prompt's completions -> advantages. [P, G] in, [P, G] out; NaN marks a missing reward and gets 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def centred(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """r - mean(r) over the group. Equal rewards give exactly 0, which a rounded mean would not."""
    present = ~jnp.isnan(rewards)
    count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
    # Subtracting one of them first keeps equal rewards exactly equal: eight times 0.1 has a mean that is not 0.1.
    anchor = jnp.max(jnp.where(present, rewards, -jnp.inf), axis=1, keepdims=True)
    shifted = jnp.where(present, rewards - anchor, 0.0)
    return jnp.where(present, shifted - shifted.sum(axis=1, keepdims=True) / count, 0.0)


def standardised(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """(r - mean(r)) / std(r) over the group, with the population deviation (arXiv 2402.03300, section 4.1.2, which names no
    correction). A group of equal rewards gives exactly 0."""
    present = ~jnp.isnan(rewards)
    difference = centred(rewards)
    count = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
    variance = jnp.sum(difference**2, axis=1, keepdims=True) / count
    return jnp.where(variance > 0, difference / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
