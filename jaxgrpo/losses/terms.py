"""Terms that token losses are made of: elementwise functions of log-probabilities in nats.

A row of [B, T] is one completion. In the formulas p is the log-probability of a token under the
policy, q under the reference, and o under the policy that sampled it; sg stops the gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.inputs import Coefficient, TokenMetrics

MAX_LOG_RATIO = 20.0
"""Log-ratios are clipped to +-20: a ratio beyond 5e8 says nothing more, and the square of this one
still is a float32."""


def ratio(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Computes exp(log_ratio), finite for any log-ratio; no gradient beyond MAX_LOG_RATIO."""
    return jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def sequence_log_ratio(
    log_ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes the mean log-ratio of each completion, at every token of its row.

    1/|o_i| sum_t log r_it is the logarithm of the length-normalised ratio of whole completions.

    Source: GSPO, arXiv 2507.18071, equation 7
    """
    lengths = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)  # [B, 1]
    mean = jnp.sum(jnp.where(mask, log_ratio, 0.0), axis=1, keepdims=True) / lengths
    return jnp.where(mask, mean, 0.0)


def sequence_log_ratio_with_token_gradient(
    log_ratio: Float[Array, "B T"],
    logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Computes `sequence_log_ratio` in value, with the gradient of each token's own logprob.

        sg[log s_i] + p_t - sg[p_t]

    Source: GSPO-token, arXiv 2507.18071, equation 14
    """
    sequence = jax.lax.stop_gradient(sequence_log_ratio(log_ratio, mask))
    # logprobs - sg[logprobs] is 0 in value; its gradient is the token's.
    return sequence + logprobs - jax.lax.stop_gradient(logprobs)


def clipped_surrogate(
    log_ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_low: Coefficient,
    clip_high: Coefficient,
    dual_clip: Coefficient | None = None,
) -> Float[Array, "B T"]:
    """Computes PPO's pessimistic surrogate, as a loss.

        max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A)    with r = exp(log_ratio)

    dual_clip: c > 1 bounds the loss where A < 0, which the clip leaves unbounded: min(..., -c A)

    Sources: arXiv 1707.06347, equation 7; dual clip: arXiv 1912.09729, equation 5
    """
    r = ratio(log_ratio)
    # The larger loss of the two: a ratio that has moved the wrong way keeps its gradient.
    unclipped_loss = -r * advantages
    clipped_loss = -jnp.clip(r, 1 - clip_low, 1 + clip_high) * advantages
    loss = jnp.maximum(unclipped_loss, clipped_loss)
    if dual_clip is None:
        return loss
    bounded_loss = jnp.minimum(loss, -dual_clip * advantages)
    return jnp.where(advantages < 0, bounded_loss, loss)


def clip_metrics(
    log_ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_low: Coefficient,
    clip_high: Coefficient,
) -> TokenMetrics:
    """Returns 1.0 at the tokens whose gradient the clip of `clipped_surrogate` takes away.

    That is the lower end for A < 0 and the upper end for A > 0.
    """
    r = ratio(log_ratio)
    low = (r < 1 - clip_low) & (advantages < 0)
    high = (r > 1 + clip_high) & (advantages > 0)
    return {
        "policy/clipped_low": low.astype(jnp.float32),
        "policy/clipped_high": high.astype(jnp.float32),
    }


BINARY_DIVERGENCES = ("tv", "kl")
"""The kinds of `binary_divergence`."""

MAX_PROBABILITY = 1 - 1e-7
"""Probabilities are clipped to this, so that the logarithm of the rest is finite in float32."""


def binary_divergence(
    kind: str, logprobs: Float[Array, "B T"], old_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes how far the probability of each token has moved, as a constant without a gradient.

    It is the divergence of two distributions over two outcomes, the token and all others:

        "tv"  |m - n|
        "kl"  m log(m / n) + (1 - m) log((1 - m) / (1 - n))    with m = exp(o), n = exp(p)

    The divergence of the whole distributions is at least as large.

    Raises ValueError for another kind.

    Source: arXiv 2602.04879, the binary approximations
    """
    check_binary_divergence(kind)
    new = jnp.clip(jnp.exp(jax.lax.stop_gradient(logprobs)), 0.0, MAX_PROBABILITY)
    old = jnp.clip(jnp.exp(jax.lax.stop_gradient(old_logprobs)), 0.0, MAX_PROBABILITY)
    if kind == "tv":
        return jnp.abs(new - old)
    log_ratio = jax.lax.stop_gradient(old_logprobs - logprobs)
    log_ratio = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return old * log_ratio + (1 - old) * (jnp.log1p(-old) - jnp.log1p(-new))


def check_binary_divergence(kind: str) -> None:
    """Raises ValueError for a kind that `binary_divergence` refuses."""
    if kind not in BINARY_DIVERGENCES:
        raise ValueError(
            f"the binary divergence is {kind!r}: it must be one of "
            f"{', '.join(BINARY_DIVERGENCES)}"
        )


def kl_k1(
    logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes p - q, unbiased for KL(policy || reference) on policy.

    It is for rewards and for metrics. As a loss its expected gradient is zero, so `kl_loss`
    refuses it.

    Source: Schulman, "Approximating KL divergence", 2020
    """
    return logprobs - ref_logprobs


def kl_k2(
    logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes (p - q)^2 / 2.

    It is biased as an estimate, but on policy its expected gradient is that of
    KL(policy || reference).
    """
    log_ratio = jnp.clip(logprobs - ref_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.square(log_ratio) / 2


def kl_k3(
    logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """Computes exp(q - p) - 1 - (q - p): Schulman's estimator k3 of KL(policy || reference).

    It is never negative, and unbiased on policy. As a loss its expected gradient on policy is that
    of KL(reference || policy).

    Source: GRPO, arXiv 2402.03300, equation 4
    """
    log_ratio = jnp.clip(ref_logprobs - logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # expm1: near 0 the float32 difference exp(x) - 1 would have lost its digits.
    return jnp.expm1(log_ratio) - log_ratio


def kl_unbiased(
    log_ratio: Float[Array, "B T"],
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """Computes r * k3 with r = exp(log_ratio), differentiated through both.

    It is an unbiased estimate of KL(policy || reference) whose gradient r (p - q) grad p is
    unbiased too, also where an older policy sampled.

    Source: DeepSeek-V3.2, arXiv 2512.02556, equation 7
    """
    return ratio(log_ratio) * kl_k3(logprobs, ref_logprobs)


def kl_loss(
    estimator: str,
    log_ratio: Float[Array, "B T"],
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """Computes the KL term of a loss by the estimator of this name: "k2", "k3" or "unbiased".

    log_ratio: p - o, for "unbiased"

    Raises ValueError for any other estimator; for k1 it says why.
    """
    check_kl_estimator(estimator)
    if estimator == "unbiased":
        return kl_unbiased(log_ratio, logprobs, ref_logprobs)
    if estimator == "k2":
        return kl_k2(logprobs, ref_logprobs)
    return kl_k3(logprobs, ref_logprobs)


def check_kl_estimator(estimator: str) -> None:
    """Raises ValueError for an estimator that `kl_loss` refuses."""
    if estimator == "k1":
        raise ValueError(
            "k1 cannot be a loss: the expected gradient of log policy - log reference on policy is "
            "zero, so that it adds noise and no pull; take k2, k3 or unbiased, or put k1 into the "
            "reward"
        )
    if estimator not in ("k2", "k3", "unbiased"):
        raise ValueError(
            f"the KL estimator is {estimator!r}: it must be one of k2, k3, unbiased"
        )


def importance_weights(
    log_ratio: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    mode: str = "truncate",
    level: str = "token",
    high: Coefficient = 2.0,
    low: Coefficient = 0.0,
) -> Float[Array, "B T"]:
    """Computes constant weights w that correct for a sampler that is not the policy.

    log_ratio: log(policy / sampler) of each token
    mode: "truncate" clips w to low .. high, as in truncated importance sampling (Ionides 2008);
        "mask" is w where low <= w <= high, and else 0, as in IcePop (arXiv 2510.18855)
    level: "token" takes w = exp(log_ratio) of the token; "sequence" that of the whole completion,
        the product over its tokens; "geometric" their geometric mean, which does not grow or shrink
        with the length: Geo-Mask of Liu, Li et al., "When Speed Kills Stability", part 3, 2025

    Raises ValueError for another mode or level.
    """
    check_importance_weights(mode, level)
    if level == "geometric":
        log_ratio = sequence_log_ratio(log_ratio, mask)
    elif level == "sequence":
        sequence = jnp.sum(
            jnp.where(mask, log_ratio, 0.0), axis=1, keepdims=True
        )  # [B, 1]
        log_ratio = jnp.broadcast_to(sequence, mask.shape)
    # A constant: the weight corrects where tokens came from, the policy cannot change it.
    weight = ratio(jax.lax.stop_gradient(log_ratio))
    if mode == "truncate":
        return jnp.clip(weight, low, high)
    return jnp.where((weight >= low) & (weight <= high), weight, 0.0)


def check_importance_weights(mode: str, level: str) -> None:
    """Raises ValueError for a mode or a level that `importance_weights` refuses."""
    for name, value, allowed in (
        ("mode", mode, ("truncate", "mask")),
        ("level", level, ("token", "sequence", "geometric")),
    ):
        if value not in allowed:
            raise ValueError(
                f"the importance weights' {name} is {value!r}: it must be one of "
                f"{', '.join(allowed)}"
            )
