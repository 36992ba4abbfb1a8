"""Rewards of a prompt's completions -> advantages, and what is done to rewards before. [P, G] in and out.

NaN marks a missing reward: it has no say in any mean and its advantage is 0. Equal rewards give exactly 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.losses.terms import Coefficient


def centred(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """r - mean(r) over the group."""
    return _centred(rewards, (1,))[0]


def standardised(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """(r - mean(r)) / std(r) over the group, with the population deviation (arXiv 2402.03300, section 4.1.2, which names no
    correction)."""
    return _standardised(rewards, (1,))


def leave_one_out(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """r_i - the mean of the group's other rewards (arXiv 2402.14740, equation 7); 0 where there is no other."""
    difference, count = _centred(rewards, (1,))
    return difference * count / jnp.maximum(count - 1, 1)


def batch_normalised(rewards: Float[Array, "P G *T"]) -> Float[Array, "P G *T"]:
    """(r - mean(r)) / std(r) over the whole batch, population deviation (arXiv 2501.03262, equation 10)."""
    return _standardised(rewards, tuple(range(rewards.ndim)))


def unchanged(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """The rewards themselves: somebody else made advantages of them."""
    return jnp.where(jnp.isnan(rewards), 0.0, rewards)


def soft_overlong(
    lengths: Int[Array, "P G"], max_tokens: Coefficient, buffer: Coefficient
) -> Float[Array, "P G"]:
    """What to add to the reward of a completion of so many tokens: 0 up to max_tokens - buffer, falling to -1 at max_tokens
    and beyond (DAPO's soft overlong punishment, arXiv 2503.14476, equation 13). Without a buffer
    it falls all at once."""
    falling = (max_tokens - buffer - lengths) / jnp.where(buffer > 0, buffer, 1)
    return jnp.where(lengths >= max_tokens, -1.0, jnp.clip(falling, -1.0, 0.0))


def kl_to_go(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    kl: Float[Array, "P G T"],
    coefficient: Coefficient,
) -> Float[Array, "P G T"]:
    """r - coefficient * sum of kl from token t to the end: the return of each token where every token pays for its own
    log(old / reference) (arXiv 2501.03262, equation 8). NaN off the mask."""
    paid = jnp.where(mask, kl, 0.0)
    to_go = jnp.flip(jnp.cumsum(jnp.flip(paid, axis=-1), axis=-1), axis=-1)
    return jnp.where(mask, rewards[..., None] - coefficient * to_go, jnp.nan)


def kl_of_sequence(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    kl: Float[Array, "P G T"],
    coefficient: Coefficient,
) -> Float[Array, "P G"]:
    """r - coefficient * sum_t kl_t: a completion pays for its log(old / reference) (arXiv 2402.14740, equation 3)."""
    return rewards - coefficient * jnp.sum(jnp.where(mask, kl, 0.0), axis=-1)


def _centred(rewards: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """r - mean(r) over the axes, 0 where missing; and how many there are. Equal rewards give exactly 0, which a rounded mean
    would not: eight times 0.1 has a mean that is not 0.1. So one of them is subtracted first."""
    present = ~jnp.isnan(rewards)
    count = present.sum(axis=axes, keepdims=True)
    anchor = jnp.max(jnp.where(present, rewards, -jnp.inf), axis=axes, keepdims=True)
    shifted = jnp.where(present, rewards - anchor, 0.0)
    mean = shifted.sum(axis=axes, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(present, shifted - mean, 0.0), count


def _standardised(rewards: Array, axes: tuple[int, ...]) -> Array:
    difference, count = _centred(jax.lax.stop_gradient(rewards), axes)
    variance = jnp.sum(difference**2, axis=axes, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(
        variance > 0, difference / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0
    )
