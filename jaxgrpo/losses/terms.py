"""Terms of token losses: elementwise functions of log-probabilities in nats. A row of [B, T] is one completion.

p is the log-probability of a token under the policy, q under the reference, o under the policy that sampled it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LIMIT = 20.0
"""Log-ratios are cut at +-20: beyond a factor of 5e8 a ratio says nothing, and its square still is a float32."""

Coefficient = float | Float[Array, ""] | Int[Array, ""]
"""A number of an objective's; traced inside a compiled program."""


def ratio(log_ratio: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(log_ratio), finite whatever the log-ratio is. Without a gradient beyond LIMIT."""
    return jnp.exp(jnp.clip(log_ratio, -LIMIT, LIMIT))


def sequence_log_ratio(
    log_ratio: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """1/|o_i| sum_t log r_it at every token of row i: log of the length-normalised ratio of whole completions
    (GSPO, arXiv 2507.18071, equation 7)."""
    lengths = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, log_ratio, 0.0), axis=1, keepdims=True) / lengths
    return jnp.where(mask, mean, 0.0)


def token_of_sequence_log_ratio(
    log_ratio: Float[Array, "B T"], logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """The value of `sequence_log_ratio` with each token's own gradient: sg[log s_i] + p_t - sg[p_t]
    (GSPO-token, arXiv 2507.18071, equation 14)."""
    sequence = jax.lax.stop_gradient(sequence_log_ratio(log_ratio, mask))
    return sequence + logprobs - jax.lax.stop_gradient(logprobs)


def clipped_surrogate(
    log_ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_low: Coefficient,
    clip_high: Coefficient,
    dual_clip: Coefficient | None = None,
) -> Float[Array, "B T"]:
    """max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(log_ratio): PPO's pessimistic surrogate, as a loss
    (arXiv 1707.06347, equation 7).

    dual_clip: c > 1 bounds it where A < 0, which the clip leaves unbounded: min(..., -c A) (arXiv 1912.09729, equation 5).
    """
    r = ratio(log_ratio)
    loss = jnp.maximum(-r * advantages, -jnp.clip(r, 1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)


def clipped(
    log_ratio: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    clip_low: Coefficient,
    clip_high: Coefficient,
) -> dict[str, Float[Array, "B T"]]:
    """Where the clip of `clipped_surrogate` takes the gradient away: below for A < 0, above for A > 0."""
    r = ratio(log_ratio)
    low, high = (r < 1 - clip_low) & (advantages < 0), (r > 1 + clip_high) & (advantages > 0)
    return {
        "policy/clipped_low": low.astype(jnp.float32),
        "policy/clipped_high": high.astype(jnp.float32),
    }


def kl_k1(logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """p - q: unbiased for KL(policy || reference) on policy (Schulman, "Approximating KL divergence", 2020). For rewards and
    for reporting: as a loss its expected gradient is zero, so `kl_loss` refuses it."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """(p - q)^2 / 2: biased as an estimate, but its expected gradient on policy is that of KL(policy || reference)."""
    return jnp.square(jnp.clip(logprobs - ref_logprobs, -LIMIT, LIMIT)) / 2


def kl_k3(logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """exp(q - p) - 1 - (q - p): Schulman's estimator k3 of KL(policy || reference), never negative, unbiased on policy
    (GRPO, arXiv 2402.03300, equation 4). As a loss its expected gradient on policy is that of KL(reference || policy).
    """
    gap = jnp.clip(ref_logprobs - logprobs, -LIMIT, LIMIT)
    return jnp.expm1(gap) - gap


def kl_unbiased(
    log_ratio: Float[Array, "B T"], logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """r * k3 with r = exp(log_ratio), differentiated through both: an unbiased estimate of KL(policy || reference) with an
    unbiased gradient, r (p - q) grad p, also where an older policy sampled (DeepSeek-V3.2, arXiv 2512.02556, equation 7)."""
    return ratio(log_ratio) * kl_k3(logprobs, ref_logprobs)


def kl_loss(
    estimator: str,
    log_ratio: Float[Array, "B T"],
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
) -> Float[Array, "B T"]:
    """A KL term for a loss, by name: "k2", "k3" or "unbiased". ValueError for any other, k1 with the reason."""
    check_kl_estimator(estimator)
    if estimator == "unbiased":
        return kl_unbiased(log_ratio, logprobs, ref_logprobs)
    return {"k2": kl_k2, "k3": kl_k3}[estimator](logprobs, ref_logprobs)


def check_kl_estimator(estimator: str) -> None:
    """Raises ValueError for what `kl_loss` refuses."""
    if estimator == "k1":
        raise ValueError(
            "k1 cannot be a loss: the expected gradient of log policy - log reference on policy is zero, so that it adds noise "
            "and no pull; take k2, k3 or unbiased, or put k1 into the reward"
        )
    if estimator not in ("k2", "k3", "unbiased"):
        raise ValueError(f"the KL estimator is {estimator!r}: it must be one of k2, k3, unbiased")


def importance_weights(
    log_gap: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    mode: str = "truncate",
    level: str = "token",
    high: Coefficient = 2.0,
    low: Coefficient = 0.0,
) -> Float[Array, "B T"]:
    """Constants w by which tokens count so that what one policy sampled speaks for another, log_gap = log(other / sampler).

    level "token": w = exp(log_gap) of the token; "sequence": of the whole completion, the product over its tokens.
    mode "truncate": w cut to low .. high, as in truncated importance sampling (Ionides 2008). "mask": w where low <= w <=
    high, else 0, as in IcePop (arXiv 2510.18855). ValueError for another mode or level.
    """
    check_importance_weights(mode, level)
    if level == "sequence":
        log_gap = jnp.broadcast_to(
            jnp.sum(jnp.where(mask, log_gap, 0.0), axis=1, keepdims=True), mask.shape
        )
    weight = ratio(jax.lax.stop_gradient(log_gap))
    if mode == "truncate":
        return jnp.clip(weight, low, high)
    return jnp.where((weight >= low) & (weight <= high), weight, 0.0)


def check_importance_weights(mode: str, level: str) -> None:
    """Raises ValueError for what `importance_weights` refuses."""
    for name, value, allowed in (
        ("mode", mode, ("truncate", "mask")),
        ("level", level, ("token", "sequence")),
    ):
        if value not in allowed:
            raise ValueError(
                f"the importance weights' {name} is {value!r}: it must be one of {', '.join(allowed)}"
            )
