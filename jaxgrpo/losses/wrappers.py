"""Objectives around any other objective: further loss terms, corrections for what is off policy."""

from dataclasses import field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrpo.losses import terms
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.objective import Objective
from jaxgrpo.losses.pytree import frozen_pytree
from jaxgrpo.losses.wrapper import Wrapper


@frozen_pytree
class Regularised(Wrapper):
    """An objective with a KL to the reference and an entropy bonus.

        token loss = the objective's + kl * KL_t - entropy * H_t

    objective: the objective that is regularised
    kl: weight of the KL (None: none)
    estimator: "k2", "k3" or, right off policy too, "unbiased"; k1 is refused
    entropy: weight of the entropy bonus, nats (None: none)
    """

    objective: Objective
    kl: Coefficient | None = None
    estimator: str = field(default="unbiased", metadata={"static": True})
    entropy: Coefficient | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an estimator that cannot be a loss."""
        terms.check_kl_estimator(self.estimator)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss + kl * KL - entropy * H.

        Raises ValueError if there is an entropy bonus and no entropy in the inputs.
        """
        loss, metrics = self.objective.token_loss(inputs)
        # None, unlike a coefficient of 0, leaves the term out of the compiled program.
        if self.kl is not None:
            log_ratio = inputs.logprobs - inputs.old_logprobs
            kl = terms.kl_loss(
                self.estimator, log_ratio, inputs.logprobs, inputs.ref_logprobs
            )
            loss = loss + self.kl * kl
        if self.entropy is not None:
            if inputs.entropy is None:
                raise ValueError("an entropy bonus needs TokenInputs.entropy")
            loss = loss - self.entropy * inputs.entropy
        return loss, metrics


@frozen_pytree
class Corrected(Wrapper):
    """An objective whose tokens are weighted by old / sampler.

    The policy that the trainer computes differs from the one that the sampler drew from: by
    rounding, precision or another engine, and by age where completions were kept in flight.
    Importance weights correct for it.

        token loss = w_t * the objective's
        w = `terms.importance_weights` of log(old_t / sampler_t)

    Everything inside is weighted, a KL, too; put `Regularised` around it to leave a KL as it is.

    objective: the objective that is corrected
    mode: "truncate": w is clipped to low .. high; "mask": w = 0 unless low <= w <= high
    level: "token", "sequence" or "geometric", whose bounds are far nearer to 1
    high: the largest weight
    low: the smallest weight
    """

    objective: Objective
    mode: str = field(default="truncate", metadata={"static": True})
    level: str = field(default="token", metadata={"static": True})
    high: Coefficient = 2.0
    low: Coefficient = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown mode or level."""
        terms.check_importance_weights(self.mode, self.level)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss, weighted, and the weights as a metric.

        Raises ValueError without the sampler's own log-probabilities in the inputs.
        """
        if inputs.sampler_logprobs is None:
            raise ValueError("a correction needs TokenInputs.sampler_logprobs")
        loss, metrics = self.objective.token_loss(inputs)
        log_ratio = inputs.old_logprobs - inputs.sampler_logprobs
        weight = terms.importance_weights(
            log_ratio, inputs.mask, self.mode, self.level, self.high, self.low
        )
        return weight * loss, metrics | {"policy/correction": weight}


@frozen_pytree
class OffPolicyMasked(Wrapper):
    """An objective without completions that are bad and far from the policy (arXiv 2512.02556).

        token loss = M_t * the objective's
        M_t = 0 where A_t < 0 and 1/|o_i| sum_t log(sampler_t / policy_t) > threshold, else 1

    The divergence is taken to the sampler's own log-probabilities, so that it counts both older
    policies and another engine. A KL inside is masked, too; the paper's is not: put `Regularised`
    around it. Each row must hold exactly one completion.

    Source: DeepSeek-V3.2, arXiv 2512.02556, equation 9

    objective: the objective that is masked
    threshold: nats a token; the paper does not say its value
    """

    objective: Objective
    threshold: Coefficient = field(metadata={"above": 0})

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss, 0 where it is masked, and the masked tokens."""
        loss, metrics = self.objective.token_loss(inputs)
        log_ratio = _log_ratio_to_sampler(inputs)
        divergence = -terms.sequence_log_ratio(log_ratio, inputs.mask)  # [B, T]
        masked = (inputs.advantages < 0) & (divergence > self.threshold)
        metrics = metrics | {"policy/off_policy_masked": masked.astype(jnp.float32)}
        return jnp.where(masked, 0.0, loss), metrics


@frozen_pytree
class TrustRegionMasked(Wrapper):
    """An objective without completions that have left the trust region (arXiv 2512.23075).

        token loss = M_i * the objective's, M_i = 0 where D_i > threshold, else 1
        D_i = max over t of |log(policy_t / sampler_t)|, or
              1/|o_i| sum_t k3 of policy_t / sampler_t ("mean")

    These are the paper's estimates from the tokens that were sampled; its guarantee is of the exact
    KL of whole distributions, which the sampler does not keep. Each row must hold exactly one
    completion. A KL inside is masked, too; put `Regularised` around it to leave it as it is.

    objective: the objective that is masked
    threshold: nats
    criterion: "max", of the token that has moved farthest, or "mean", over the tokens
    """

    objective: Objective
    threshold: Coefficient = field(metadata={"above": 0})
    criterion: str = field(
        default="max", metadata={"static": True, "one_of": ("max", "mean")}
    )

    def __post_init__(self) -> None:
        """Raises ValueError for a criterion that there is not."""
        if self.criterion not in ("max", "mean"):
            raise ValueError(
                f"the trust region's criterion is {self.criterion!r}: it must be one of max, mean"
            )

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss, 0 where it is masked, and the masked tokens."""
        loss, metrics = self.objective.token_loss(inputs)
        log_ratio = jnp.where(inputs.mask, _log_ratio_to_sampler(inputs), 0.0)
        if self.criterion == "max":
            divergence = jnp.abs(log_ratio).max(axis=1, keepdims=True)  # [B, 1]
        else:
            k3 = terms.kl_k3(jnp.zeros_like(log_ratio), log_ratio)
            lengths = jnp.maximum(inputs.mask.sum(axis=1, keepdims=True), 1)
            divergence = k3.sum(axis=1, keepdims=True) / lengths
        masked = jnp.broadcast_to(divergence > self.threshold, inputs.mask.shape)
        metrics = metrics | {"policy/trust_region_masked": masked.astype(jnp.float32)}
        return jnp.where(masked, 0.0, loss), metrics


def _log_ratio_to_sampler(inputs: TokenInputs) -> Float[Array, "B T"]:
    """Computes log(policy / sampler) of each token, as a constant."""
    return jax.lax.stop_gradient(inputs.logprobs) - inputs.behaviour_logprobs
