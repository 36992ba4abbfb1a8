"""The loss of ScaleRL (arXiv 2510.13786)."""

from dataclasses import field

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.cispo import CISPO
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class ScaleRL(GroupRelative):
    """The loss of ScaleRL (arXiv 2510.13786, section 4).

    CISPO's loss with no lower bound on the ratio, advantages over the batch's deviation, and each
    prompt counting alike.

        A_i = (r_i - mean of its group) / std over the batch of that
        loss = -1/prompts sum over prompts of 1/tokens of the prompt
                   sum_i sum_t sg[min(r_t, max_ratio)] A_i log policy_t

    The recipe leaves out prompts whose rewards are all equal: the difficulty filter's rule "dapo".

    group_size: completions of a prompt, the same as `batch.group_size`
    max_ratio: the ratio is at most this; the paper finds 4, 5 and 8 alike
    """

    group_size: int = field(metadata={"static": True, "at_least": 1})
    max_ratio: Coefficient = field(default=5.0, metadata={"above": 0})

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns r - mean(r) over each group, divided by the deviation of that over the batch."""
        return advantages.centred_over_batch_deviation(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / (prompts * tokens of the prompt's completions) at each token.

        Raises ValueError if the rows are no whole number of groups.
        """
        return token_weights.per_prompt(mask, self.group_size)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns -sg[min(ratio, max_ratio)] * A * log policy, and the tokens at the bound."""
        # A lower bound of 0 bounds nothing.
        return CISPO(clip_low=1.0, clip_high=self.max_ratio - 1).token_loss(inputs)
