"""Advantages from the rewards of each prompt's completions, and changes to rewards before that.

Rewards and advantages are [P, G]: P prompts, G completions of each. NaN marks a missing reward: it
is left out of every mean and its advantage is 0. Equal rewards give exactly 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.losses.inputs import Coefficient


def centred(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Computes r - mean(r) over each group."""
    difference, _ = _centred(rewards, axes=(1,))
    return difference


def standardised(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Computes (r - mean(r)) / std(r) over each group, with the population deviation.

    Source: arXiv 2402.03300, section 4.1.2, which names no correction of the deviation
    """
    return _standardised(rewards, axes=(1,))


def over_mean(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Computes (r - mean(r)) / mean(r) over each group; 0 where the mean is not above 0.

    Rewards are meant to be at least 0: the paper's are 0 and 1. Then no advantage is below -1 or
    above G - 1.

    Source: arXiv 2602.02710, the gradient estimator with a baseline
    """
    rewards = jax.lax.stop_gradient(rewards)
    difference, count = _centred(rewards, axes=(1,))
    present = jnp.where(jnp.isnan(rewards), 0.0, rewards)
    mean = present.sum(axis=1, keepdims=True) / jnp.maximum(count, 1)  # [P, 1]
    is_solved = mean > 0
    # The divisor is 1 where no completion has a reward, so that nothing is divided by 0.
    return jnp.where(is_solved, difference / jnp.where(is_solved, mean, 1.0), 0.0)


def leave_one_out(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Computes r_i - the mean of the group's other rewards; 0 where there is no other.

    Source: arXiv 2402.14740, equation 7
    """
    # r_i - mean of the other n - 1 = (r_i - mean of all n) * n / (n - 1)
    difference, count = _centred(rewards, axes=(1,))
    return difference * count / jnp.maximum(count - 1, 1)


def batch_normalised(rewards: Float[Array, "P G *T"]) -> Float[Array, "P G *T"]:
    """Computes (r - mean(r)) / std(r) over the whole batch, with the population deviation.

    Source: arXiv 2501.03262, equation 10
    """
    return _standardised(rewards, axes=tuple(range(rewards.ndim)))


def centred_over_batch_deviation(
    rewards: Float[Array, "P G"],
) -> Float[Array, "P G"]:
    """Computes r - mean(r) over each group, divided by the deviation of that over the batch.

    Sources: arXiv 2501.03262, REINFORCE++ with baseline; arXiv 2510.13786, section 4
    """
    # `centred` makes a missing reward 0, which would count in the batch's deviation.
    difference = jnp.where(jnp.isnan(rewards), jnp.nan, centred(rewards))
    return batch_normalised(difference)


def unchanged(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Returns the rewards themselves, for rewards that are advantages already."""
    return jnp.where(jnp.isnan(rewards), 0.0, rewards)


def soft_overlong(
    lengths: Int[Array, "P G"], max_tokens: Coefficient, buffer: Coefficient
) -> Float[Array, "P G"]:
    """Computes DAPO's soft overlong punishment, to be added to the rewards.

    It is 0 up to max_tokens - buffer and falls linearly to -1 at max_tokens and beyond.

    lengths: tokens of each completion
    buffer: tokens over which it falls; with 0 it falls to -1 at once, at max_tokens

    Source: arXiv 2503.14476, equation 13
    """
    falling = (max_tokens - buffer - lengths) / jnp.where(buffer > 0, buffer, 1)
    return jnp.where(lengths >= max_tokens, -1.0, jnp.clip(falling, -1.0, 0.0))


def reward_minus_kl_to_go(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    kl: Float[Array, "P G T"],
    coefficient: Coefficient,
) -> Float[Array, "P G T"]:
    """Computes r - coefficient * (sum of kl from token t to the end): the return of each token.

    Every token pays for its own kl, log(old / reference). NaN where the mask is False.

    Source: arXiv 2501.03262, equation 8
    """
    masked_kl = jnp.where(mask, kl, 0.0)
    # A cumulative sum from the end, [P, G, T].
    kl_to_go = jnp.flip(jnp.cumsum(jnp.flip(masked_kl, axis=-1), axis=-1), axis=-1)
    return jnp.where(mask, rewards[..., None] - coefficient * kl_to_go, jnp.nan)


def reward_minus_sequence_kl(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    kl: Float[Array, "P G T"],
    coefficient: Coefficient,
) -> Float[Array, "P G"]:
    """Computes r - coefficient * sum_t kl_t: a completion pays for its log(old / reference).

    Source: arXiv 2402.14740, equation 3
    """
    return rewards - coefficient * jnp.sum(jnp.where(mask, kl, 0.0), axis=-1)


def _centred(rewards: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Computes r - mean(r) over the axes, 0 where missing, and the number of rewards present."""
    present = ~jnp.isnan(rewards)
    count = present.sum(axis=axes, keepdims=True)
    # Equal rewards must give exactly 0, but a rounded mean need not equal them: that of eight
    # times 0.1 is not 0.1. Once the largest is subtracted, they are all 0 and so is their mean.
    largest = jnp.max(jnp.where(present, rewards, -jnp.inf), axis=axes, keepdims=True)
    shifted = jnp.where(present, rewards - largest, 0.0)
    mean = shifted.sum(axis=axes, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(present, shifted - mean, 0.0), count


def _standardised(rewards: Array, axes: tuple[int, ...]) -> Array:
    """Computes (r - mean(r)) / std(r) over the axes, 0 where missing or all rewards are equal."""
    difference, count = _centred(jax.lax.stop_gradient(rewards), axes)
    variance = jnp.sum(difference**2, axis=axes, keepdims=True) / jnp.maximum(count, 1)
    varies = variance > 0
    # The divisor is 1 where the variance is 0, so that the branch not taken holds no NaN.
    deviation = jnp.sqrt(jnp.where(varies, variance, 1.0))
    return jnp.where(varies, difference / deviation, 0.0)
