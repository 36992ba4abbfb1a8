"""Metrics of a batch for the log: sums over tokens, which add up over micro-batches."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrpo.losses import terms
from jaxgrpo.losses.inputs import TokenInputs, TokenMetrics


class LossInfo(NamedTuple):
    """Sums and maxima over the chosen tokens of a batch, or of parts of it.

    `merge` adds up stacked parts, `report` turns the sums into the means that are logged.
    """

    num_tokens: Float[Array, "*parts"]
    """The number of chosen tokens."""
    sums: dict[str, Float[Array, "*parts"]]
    """By metric, the sum over the chosen tokens."""
    maxima: dict[str, Float[Array, "*parts"]]
    """By metric, the maximum over the chosen tokens; 0 without any."""


def loss_info(inputs: TokenInputs, token_metrics: TokenMetrics) -> LossInfo:
    """Returns the metrics that all objectives have in common, and an objective's own.

    After `report`, over the chosen tokens, divergences in nats:

        policy/kl                     k3 estimate of KL(policy || reference)
        policy/kl_old                 mean of r - 1 - log r, which estimates KL(old || policy)
        policy/ratio, ratio_max       r = policy / old
        policy/logprob_gap, _max      |log policy - log sampler|: before the policy moves, the
                                      difference between sampler and trainer
        policy/effective_sample_size  (sum w)^2 / (n sum w^2) with w = policy / sampler:
                                      1 on policy, 1/n at worst
        policy/entropy                where it is known

    token_metrics: the objective's own; they win where names are the same
    """
    logprobs = jax.lax.stop_gradient(inputs.logprobs)
    sampler_logprobs = inputs.behaviour_logprobs
    ratio = terms.ratio(logprobs - inputs.old_logprobs)
    sampler_ratio = terms.ratio(logprobs - sampler_logprobs)
    gap = jnp.abs(logprobs - sampler_logprobs)
    metrics = {
        "policy/kl": terms.kl_k3(logprobs, inputs.ref_logprobs),
        "policy/kl_old": terms.kl_k3(inputs.old_logprobs, logprobs),
        "policy/ratio": ratio,
        "policy/logprob_gap": gap,
        # Both are needed for the effective sample size, which `report` makes of their sums.
        "policy/weight": sampler_ratio,
        "policy/weight_squared": sampler_ratio**2,
    }
    if inputs.entropy is not None:
        metrics["policy/entropy"] = inputs.entropy
    metrics |= token_metrics

    def masked(metric: Float[Array, "B T"]) -> Float[Array, "B T"]:
        return jnp.where(inputs.mask, metric, 0.0)

    return LossInfo(
        num_tokens=inputs.mask.sum(dtype=jnp.float32),
        sums={name: jnp.sum(masked(metric)) for name, metric in metrics.items()},
        maxima={
            "policy/ratio_max": jnp.max(masked(ratio)),
            "policy/logprob_gap_max": jnp.max(masked(gap)),
        },
    )


def merge(parts: LossInfo) -> LossInfo:
    """Returns the info of a batch whose parts, such as micro-batches, are stacked along axis 0.

    For a loop that accumulates gradients: jax.lax.scan stacks the infos of its micro-batches, and
    `report(merge(infos))` is the metrics of the whole batch.
    """

    def total(values: Float[Array, "M *parts"]) -> Float[Array, "*parts"]:
        return jnp.sum(values, axis=0)

    def maximum(values: Float[Array, "M *parts"]) -> Float[Array, "*parts"]:
        return jnp.max(values, axis=0)

    return LossInfo(
        num_tokens=total(parts.num_tokens),
        sums=jax.tree.map(total, parts.sums),
        maxima=jax.tree.map(maximum, parts.maxima),
    )


def report(info: LossInfo) -> dict[str, Float[Array, ""]]:
    """Returns the metrics to log: means over the chosen tokens, maxima, effective sample size.

    All are 0 where no token was chosen.
    """
    num_tokens = jnp.maximum(info.num_tokens, 1.0)
    means = {name: total / num_tokens for name, total in info.sums.items()}
    mean_weight = means.pop("policy/weight")
    mean_squared_weight = means.pop("policy/weight_squared")
    # (sum w)^2 / (n sum w^2) = mean(w)^2 / mean(w^2)
    divisor = jnp.where(mean_squared_weight > 0, mean_squared_weight, 1.0)
    effective_sample_size = mean_weight**2 / divisor
    return means | info.maxima | {"policy/effective_sample_size": effective_sample_size}
