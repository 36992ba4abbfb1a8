"""Objectives around any other objective: further loss terms, and a correction for the sampler."""

from dataclasses import field

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import terms
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.objective import Advantages, Objective
from jaxgrpo.losses.pytree import frozen_pytree


class _Wrapper:
    """Base with the advantages and the token weights of the objective inside."""

    objective: Objective

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Advantages:
        """Returns the advantages of the objective inside."""
        return self.objective.advantages(rewards, mask, kl)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns the token weights of the objective inside."""
        return self.objective.token_weights(mask)


@frozen_pytree
class Regularised(_Wrapper):
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
class Corrected(_Wrapper):
    """An objective whose tokens are weighted by old / sampler.

    The policy that the trainer computes differs from the one that the sampler drew from, by
    rounding, precision or another engine. Importance weights correct for it.

        token loss = w_t * the objective's
        w = `terms.importance_weights` of log(old_t / sampler_t)

    Everything inside is weighted, a KL, too; put `Regularised` around it to leave a KL as it is.

    objective: the objective that is corrected
    mode: "truncate": w is clipped to low .. high; "mask": w = 0 unless low <= w <= high
    level: "token" or "sequence"
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
