"""DAPO (arXiv 2503.14476)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.group_relative import GroupRelative, clipped_loss
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class DAPO(GroupRelative):
    """Decoupled clip and dynamic sampling policy optimisation (arXiv 2503.14476, equation 8).

        A_i = (r_i - mean(r)) / std(r)
        loss = 1/tokens sum_i sum_t max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i)

    With max_tokens the soft overlong punishment (equation 13) is added to r_i first. The paper's
    dynamic sampling is the difficulty filter's rule "dapo". There is no KL term.

    clip_low: the ratio is clipped from below at 1 - clip_low
    clip_high: the ratio is clipped from above at 1 + clip_high; higher: rare tokens can get likely
    max_tokens: tokens from which the punishment is -1; the paper's L_max (None: no punishment)
    overlong_buffer: tokens before max_tokens over which it grows; the paper's L_cache
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.28
    max_tokens: Coefficient | None = None
    overlong_buffer: Coefficient = 0.0

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns (r - mean(r)) / std(r) over each group, r with the overlong punishment.

        Raises ValueError if there is a punishment and no mask to take the lengths from.
        """
        if self.max_tokens is None:
            return advantages.standardised(rewards)
        if mask is None:
            raise ValueError(
                "DAPO punishes length where max_tokens is given: advantages() needs the "
                "completions' mask"
            )
        # A missing reward stays NaN, whatever is added to it.
        lengths = mask.sum(axis=-1)  # [P, G]
        punishment = advantages.soft_overlong(
            lengths, self.max_tokens, self.overlong_buffer
        )
        return advantages.standardised(rewards + punishment)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / tokens of the batch at each token."""
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate."""
        return clipped_loss(inputs, self.clip_low, self.clip_high)
