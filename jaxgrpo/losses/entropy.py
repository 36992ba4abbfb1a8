"""Objectives around any other objective that look at the entropy of each token."""

import math
from collections.abc import Mapping
from dataclasses import field, replace

import jax
import jax.numpy as jnp

from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.objective import Objective
from jaxgrpo.losses.pytree import frozen_pytree
from jaxgrpo.losses.wrapper import Wrapper


@frozen_pytree
class TopEntropy(Wrapper):
    """An objective of the tokens with the highest entropy alone (arXiv 2506.01939, equation 6).

        token loss = I[H_t >= q] * n / n' * the objective's
        q = the (1 - fraction) quantile of H, n tokens, n' of them with H_t >= q

    Both are of the rows that `token_loss` sees, the paper's "(micro-)batch": they are of the whole
    batch where that is one micro-batch, and else a token is compared with its micro-batch alone. So
    this is the one objective to which cutting a batch into micro-batches makes a difference. n / n'
    turns DAPO's mean over all tokens into the paper's, over those that are left. A KL inside is
    masked, too; put `Regularised` around it to leave it as it is.

    objective: the objective that is masked
    fraction: of tokens that keep their gradient
    """

    objective: Objective
    fraction: Coefficient = field(default=0.2, metadata={"above": 0, "at_most": 1})

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss, 0 below the quantile, and the tokens that are left.

        Raises ValueError if there is no entropy in the inputs.
        """
        if inputs.entropy is None:
            raise ValueError("a choice by entropy needs TokenInputs.entropy")
        loss, metrics = self.objective.token_loss(inputs)
        # A constant: the choice of tokens has no gradient.
        entropy = jax.lax.stop_gradient(inputs.entropy)
        chosen_entropy = jnp.where(inputs.mask, entropy, jnp.nan)
        quantile = jnp.nanquantile(chosen_entropy, 1 - self.fraction)
        # Without any token the quantile is NaN, and no comparison with it holds.
        is_kept = inputs.mask & (entropy >= quantile)
        scale = inputs.mask.sum() / jnp.maximum(is_kept.sum(), 1)
        metrics = metrics | {"policy/top_entropy": is_kept.astype(jnp.float32)}
        return jnp.where(is_kept, scale * loss, 0.0), metrics


@frozen_pytree
class EntropyTargeted(Wrapper):
    """An objective with an entropy bonus that comes and goes with the entropy (arXiv 2505.22312).

        token loss = the objective's - weight * I[last_entropy <= target] * H_t
        weight <- weight + rate, where the mean entropy of a step is below the target
        weight <- weight - rate, where it is above; always within 0 .. max_weight

    The paper's entropy of a step is measured before its update, here in it: the bonus follows one
    step later. `after_step` has the objective of the next step; see `moving`.

    objective: the objective that gets the bonus
    target: mean entropy, nats a token; the paper takes 0.2
    weight: of the bonus; where it begins
    rate: by which the weight moves in a step
    max_weight: the largest weight
    last_entropy: mean entropy of the step before; 0 at the beginning
    """

    moving = ("weight", "last_entropy")

    objective: Objective
    target: Coefficient = field(default=0.2, metadata={"at_least": 0})
    weight: Coefficient = field(default=0.0, metadata={"at_least": 0})
    rate: Coefficient = field(default=1e-4, metadata={"above": 0})
    max_weight: Coefficient = field(default=0.005, metadata={"above": 0})
    last_entropy: Coefficient = field(default=0.0, metadata={"at_least": 0})

    def __post_init__(self) -> None:
        """Raises ValueError for a weight above max_weight."""
        numbers = isinstance(self.weight, int | float)
        numbers &= isinstance(self.max_weight, int | float)
        # Of traced values nothing is known.
        if numbers and self.weight > self.max_weight:
            raise ValueError(
                f"the entropy bonus begins with weight {self.weight}, above max_weight, "
                f"{self.max_weight}"
            )

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss - weight * H, with no bonus above the target.

        Raises ValueError if there is no entropy in the inputs.
        """
        if inputs.entropy is None:
            raise ValueError("an entropy bonus needs TokenInputs.entropy")
        loss, metrics = self.objective.token_loss(inputs)
        weight = jnp.where(self.last_entropy <= self.target, self.weight, 0.0)
        return loss - weight * inputs.entropy, metrics

    def next_weight(self, mean_entropy: float) -> float:
        """Returns the weight after a step of this mean entropy."""
        weight = float(self.weight)
        if mean_entropy < float(self.target):
            weight += float(self.rate)
        if mean_entropy > float(self.target):
            weight -= float(self.rate)
        return min(float(self.max_weight), max(0.0, weight))

    def after_step(self, metrics: Mapping[str, float]) -> "EntropyTargeted":
        """Returns itself with the weight of the next step, from the metrics of this one."""
        mean_entropy = metrics.get("policy/entropy", math.nan)
        # Means are 0 where no token counted, which says nothing of the policy.
        if math.isnan(mean_entropy) or metrics.get("update/tokens") == 0:
            return self
        weight = self.next_weight(mean_entropy)
        return replace(self, weight=weight, last_entropy=mean_entropy)
