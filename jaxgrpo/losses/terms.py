"""Terms of token losses: elementwise functions of log-probabilities in nats."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_surrogate(
    log_ratio: Float[Array, "B T"],
    advantages: Float[Array, "B"],
    clip_low: Float[Array, ""] | float,
    clip_high: Float[Array, ""] | float,
) -> Float[Array, "B T"]:
    """max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_ratio): PPO's pessimistic surrogate, as a loss
    (arXiv 1707.06347, equation 7)."""
    ratio = jnp.exp(log_ratio)
    gain = advantages[:, None]
    return jnp.maximum(-ratio * gain, -jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * gain)


def kl_k3(logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(q - p) - 1 - (q - p), p the policy's and q the reference's log-probability of a token that the policy chose:
    Schulman's estimator k3 of KL(policy || reference), never negative, unbiased on policy (arXiv 2402.03300, equation 4).
    """
    gap = ref_logprobs - logprobs
    return jnp.expm1(gap) - gap
