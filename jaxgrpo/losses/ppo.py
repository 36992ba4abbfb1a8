"""PPO's clipped objective, with advantages from elsewhere (arXiv 1707.06347)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.group_relative import clipped_loss
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class PPO:
    """Proximal policy optimisation, clipped (arXiv 1707.06347, equation 7).

    The rewards are taken as advantages that were computed elsewhere.

        A = r
        loss = 1/tokens sum_i sum_t max(-r_t A_t, -clip(r_t, 1 - clip_low, 1 + clip_high) A_t)

    clip_low: the ratio is clipped from below at 1 - clip_low; the paper's epsilon
    clip_high: the ratio is clipped from above at 1 + clip_high; the paper's epsilon, too
    dual_clip: above 1: where A < 0 the loss is at most -dual_clip * A, arXiv 1912.09729 (None: off)
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2
    dual_clip: Coefficient | None = None

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns the rewards, with 0 for a missing one."""
        return advantages.unchanged(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / tokens of the batch at each token."""
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate, with the dual clip where it is set."""
        return clipped_loss(inputs, self.clip_low, self.clip_high, self.dual_clip)
