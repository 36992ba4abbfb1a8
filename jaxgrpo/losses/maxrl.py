"""MaxRL (arXiv 2602.02710)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.group_relative import GroupRelative, clipped_loss
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class MaxRL(GroupRelative):
    """Maximum likelihood reinforcement learning (arXiv 2602.02710).

    For rewards of 0 and 1 its expected gradient is that of the sum over k = 1 .. G - 1 of
    pass@k / k, the first terms of the log-likelihood of a right answer: the more completions, the
    nearer. Prompts that are seldom solved weigh more than in GRPO. The paper's estimator without a
    baseline has one term more; here, as in its code, a prompt that nothing solves counts nothing.

        A_i = (r_i - mean(r)) / mean(r), and 0 where mean(r) is not above 0
        loss = 1/rows sum_i sum_t max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i)

    On policy the ratio is 1 and the gradient is the paper's estimator. The paper has no ratio; its
    code has, and clips it as here.

    clip_low: the ratio is clipped from below at 1 - clip_low; the value of the paper's code
    clip_high: the ratio is clipped from above at 1 + clip_high; the value of the paper's code
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns (r - mean(r)) / mean(r) over each group."""
        return advantages.over_mean(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / rows at each token: the sum over tokens, the mean over completions."""
        return token_weights.per_budget(mask, 1.0)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate."""
        return clipped_loss(inputs, self.clip_low, self.clip_high)
