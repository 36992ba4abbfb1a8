"""What can be put around any objective: further terms, and a correction for what sampled."""

from dataclasses import field

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import terms
from jaxgrpo.losses.objective import (
    Advantages,
    Coefficient,
    Objective,
    TokenInputs,
    TokenMetrics,
    frozen_pytree,
)


class _Wrapper:
    """Advantages and weights are those of the objective inside."""

    objective: Objective

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Advantages:
        return self.objective.advantages(rewards, mask, kl)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return self.objective.weights(mask)


@frozen_pytree
class Regularised(_Wrapper):
    """An objective with a KL to the reference and an entropy bonus.

        token loss = the objective's + kl * KL_t - entropy * H_t

    objective: what is regularised
    kl: weight of the KL (None: none)
    estimator: "k2" or "k3" (Schulman), or "unbiased", whose gradient is right off policy, too; k1 is refused
    entropy: weight of the entropy bonus, nats (None: none)
    """

    objective: Objective
    kl: Coefficient | None = None
    estimator: str = field(default="unbiased", metadata={"static": True})
    entropy: Coefficient | None = None

    def __post_init__(self) -> None:
        terms.check_kl_estimator(self.estimator)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        loss, figures = self.objective.token_loss(inputs)
        if self.kl is not None:
            log_ratio = inputs.logprobs - inputs.old_logprobs
            loss = loss + self.kl * terms.kl_loss(
                self.estimator, log_ratio, inputs.logprobs, inputs.ref_logprobs
            )
        if self.entropy is not None:
            if inputs.entropy is None:
                raise ValueError("an entropy bonus needs TokenInputs.entropy")
            loss = loss - self.entropy * inputs.entropy
        return loss, figures


@frozen_pytree
class Corrected(_Wrapper):
    """An objective whose tokens are weighted by old / sampler: what the sampler drew speaks for the policy that the trainer
    computes, which differs by rounding, precision or another engine.

        token loss = w_t * the objective's, w from `terms.importance_weights` of log(old_t / sampler_t)

    Everything inside is weighted, a KL, too; put `Regularised` around it to leave a KL as it is.

    objective: what is corrected
    mode: "truncate": w is cut to low .. high; "mask": w = 0 unless low <= w <= high
    level: "token" or "sequence"
    high: the largest weight
    low: the least
    """

    objective: Objective
    mode: str = field(default="truncate", metadata={"static": True})
    level: str = field(default="token", metadata={"static": True})
    high: Coefficient = 2.0
    low: Coefficient = 0.0

    def __post_init__(self) -> None:
        terms.check_importance_weights(self.mode, self.level)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        if inputs.sampler_logprobs is None:
            raise ValueError("a correction needs TokenInputs.sampler_logprobs")
        loss, figures = self.objective.token_loss(inputs)
        gap = inputs.old_logprobs - inputs.sampler_logprobs
        weight = terms.importance_weights(
            gap, inputs.mask, self.mode, self.level, self.high, self.low
        )
        return weight * loss, figures | {"policy/correction": weight}
