"""What researchers look at while a policy learns: sums over tokens that add up over micro-batches, and their report."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrpo.losses import terms

if TYPE_CHECKING:
    from jaxgrpo.losses.objective import TokenInputs, TokenMetrics


class Info(NamedTuple):
    """Figures of a batch or of a part of it. `merge` joins parts, `report` makes the numbers that people read."""

    tokens: Float[Array, "*parts"]
    """How many tokens were chosen."""
    sums: dict[str, Float[Array, "*parts"]]
    """By name, the sum over the chosen tokens."""
    maxima: dict[str, Float[Array, "*parts"]]
    """By name, the largest over the chosen tokens; 0 without any."""


def measure(inputs: TokenInputs, figures: TokenMetrics) -> Info:
    """The figures common to all objectives, and an objective's own (which win where names are the same).

    In the report, over the chosen tokens, in nats where it is a divergence:

        policy/kl                     k3 estimate of KL(policy || reference)
        policy/kl_old                 mean of r - 1 - log r, which estimates KL(old || policy)
        policy/ratio, ratio_max       r = policy / old
        policy/logprob_gap, _max      |log policy - log sampler|; before the policy moves, by what sampler and trainer differ
        policy/effective_sample_size  (sum w)^2 / (n sum w^2) with w = policy / sampler: 1 on policy, 1/n at worst
        policy/entropy                where it is known
    """
    logprobs = jax.lax.stop_gradient(inputs.logprobs)
    sampled = inputs.old_logprobs if inputs.sampler_logprobs is None else inputs.sampler_logprobs
    ratio, weight = terms.ratio(logprobs - inputs.old_logprobs), terms.ratio(logprobs - sampled)
    gap = jnp.abs(logprobs - sampled)
    common = {
        "policy/kl": terms.kl_k3(logprobs, inputs.ref_logprobs),
        "policy/kl_old": terms.kl_k3(inputs.old_logprobs, logprobs),
        "policy/ratio": ratio,
        "policy/logprob_gap": gap,
        "policy/weight": weight,
        "policy/weight_squared": weight**2,
    }
    if inputs.entropy is not None:
        common["policy/entropy"] = inputs.entropy
    masked = lambda figure: jnp.where(inputs.mask, figure, 0.0)
    return Info(
        tokens=inputs.mask.sum(dtype=jnp.float32),
        sums={name: jnp.sum(masked(figure)) for name, figure in (common | figures).items()},
        maxima={
            "policy/ratio_max": jnp.max(masked(ratio)),
            "policy/logprob_gap_max": jnp.max(masked(gap)),
        },
    )


def merge(parts: Info) -> Info:
    """Parts stacked along a first axis -> the whole."""
    total = lambda x: jnp.sum(x, axis=0)
    largest = lambda x: jnp.max(x, axis=0)
    return Info(
        total(parts.tokens), jax.tree.map(total, parts.sums), jax.tree.map(largest, parts.maxima)
    )


def report(info: Info) -> dict[str, Float[Array, ""]]:
    """Means over the chosen tokens, maxima, and the effective sample size as a share; 0 where no token was chosen."""
    means = {name: value / jnp.maximum(info.tokens, 1.0) for name, value in info.sums.items()}
    weight, squared = means.pop("policy/weight"), means.pop("policy/weight_squared")
    share = weight**2 / jnp.where(squared > 0, squared, 1.0)
    return means | info.maxima | {"policy/effective_sample_size": share}
