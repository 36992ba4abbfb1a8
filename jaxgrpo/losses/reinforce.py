"""REINFORCE++ and REINFORCE++ with baseline (arXiv 2501.03262)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.group_relative import GroupRelative, clipped_loss
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class ReinforcePlusPlus:
    """REINFORCE++ (arXiv 2501.03262, equations 8 to 10).

    There is no critic and no group: advantages are normalised over the batch, so a prompt may have
    a single completion.

        R_t = r - kl * sum from t to the end of log(old / reference)
        A_t = (R_t - mean) / std over all tokens of the batch
        loss = 1/rows sum_i 1/|o_i| sum_t
                   max(-r_t A_t, -clip(r_t, 1 - clip_low, 1 + clip_high) A_t)

    kl: weight of the KL in the reward; the paper's beta (None: none)
    clip_low: the ratio is clipped from below at 1 - clip_low
    clip_high: the ratio is clipped from above at 1 + clip_high
    """

    kl: Coefficient | None = None
    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G T"]:
        """Returns the returns R_t, normalised over all chosen tokens of the batch.

        Raises ValueError without a mask, and without kl if there is a KL in the reward.
        """
        if mask is None or (kl is None and self.kl is not None):
            raise ValueError(
                "REINFORCE++ normalises over tokens: advantages() needs the completions' mask and, "
                "for its KL, kl"
            )
        if kl is None or self.kl is None:
            # NaN keeps the tokens that nobody chose out of the mean and the deviation.
            returns = jnp.where(mask, rewards[..., None], jnp.nan)  # [P, G, T]
        else:
            returns = advantages.reward_minus_kl_to_go(rewards, mask, kl, self.kl)
        return advantages.batch_normalised(returns)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / (rows * |o_i|) at each token of row i."""
        return token_weights.per_sequence(mask)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate."""
        return clipped_loss(inputs, self.clip_low, self.clip_high)


@frozen_pytree
class ReinforcePlusPlusBaseline(GroupRelative):
    """REINFORCE++ with baseline (arXiv 2501.03262).

    The baseline is the group's mean, the scale the batch's deviation, and the KL is a loss of the
    k2 estimator.

        A_i = (r_i - mean of its group) / std over the batch of that
        loss = 1/rows sum_i 1/|o_i| sum_t [
                   max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl * k2_t ]

    kl: weight of the KL to the reference
    clip_low: the ratio is clipped from below at 1 - clip_low
    clip_high: the ratio is clipped from above at 1 + clip_high
    """

    kl: Coefficient = 0.0
    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns r - mean(r) over each group, divided by the deviation of that over the batch."""
        return advantages.centred_over_batch_deviation(rewards)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate + kl * k2."""
        loss, metrics = clipped_loss(inputs, self.clip_low, self.clip_high)
        return loss + self.kl * terms.kl_k2(
            inputs.logprobs, inputs.ref_logprobs
        ), metrics
