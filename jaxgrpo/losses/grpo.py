"""GRPO (arXiv 2402.03300) and Dr. GRPO (arXiv 2503.20783)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.group_relative import GroupRelative, clipped_loss
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class GRPO(GroupRelative):
    """Group relative policy optimisation (arXiv 2402.03300, equation 3).

        A_i = (r_i - mean(r)) / std(r)
        loss = 1/rows sum_i 1/|o_i| sum_t [
                   max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl * k3_t ]

    r_t is the ratio of the policy's probability of token t to that of the policy that sampled it;
    k3_t estimates KL(policy || reference).

    clip_low: the ratio is clipped from below at 1 - clip_low; the paper's epsilon
    clip_high: the ratio is clipped from above at 1 + clip_high; the paper's epsilon, too
    kl: weight of the KL to the reference; the paper's beta
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2
    kl: Coefficient = 0.04

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate + kl * k3."""
        loss, metrics = clipped_loss(inputs, self.clip_low, self.clip_high)
        return loss + self.kl * terms.kl_k3(
            inputs.logprobs, inputs.ref_logprobs
        ), metrics


@frozen_pytree
class DrGRPO(GroupRelative):
    """GRPO done right (arXiv 2503.20783, section 3.2).

    GRPO's divisions by length and by deviation favour long wrong answers and extreme questions;
    here there are none.

        A_i = r_i - mean(r)
        loss = 1/(rows * budget) sum_i sum_t
                   max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i)

    The paper has no KL term; `Regularised` adds one.

    budget: tokens, a constant: the paper's code takes the most that may be generated
    clip_low: the ratio is clipped from below at 1 - clip_low
    clip_high: the ratio is clipped from above at 1 + clip_high
    """

    budget: Coefficient
    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns r - mean(r) over each group."""
        return advantages.centred(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / (rows * budget) at each token."""
        return token_weights.per_budget(mask, self.budget)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate."""
        return clipped_loss(inputs, self.clip_low, self.clip_high)
