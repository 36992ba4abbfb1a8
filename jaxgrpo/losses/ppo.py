"""PPO's clipped objective with advantages from elsewhere (arXiv 1707.06347)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.grpo import clipped_loss
from jaxgrpo.losses.objective import Coefficient, TokenInputs, TokenMetrics, frozen_pytree


@frozen_pytree
class PPO:
    """Proximal policy optimisation, clipped (arXiv 1707.06347, equation 7), for advantages that somebody else made.

        A = the rewards as they are given
        loss = 1/tokens sum_i sum_t max(-r_t A_t, -clip(r_t, 1 - clip_low, 1 + clip_high) A_t)

    clip_low: the ratio is clipped from below at 1 - clip_low; the paper's epsilon
    clip_high: the ratio is clipped from above at 1 + clip_high; the paper's epsilon, too
    dual_clip: where A < 0 the loss is at most -dual_clip * A (arXiv 1912.09729; above 1; None: no bound)
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2
    dual_clip: Coefficient | None = None

    def advantages(self, rewards: Float[Array, "P G"], mask=None, kl=None) -> Float[Array, "P G"]:
        return advantages.unchanged(rewards)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        return clipped_loss(inputs, self.clip_low, self.clip_high, self.dual_clip)
