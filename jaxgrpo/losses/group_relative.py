"""The parts that group-relative objectives have in common."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss


class GroupRelative:
    """Base of objectives that compare a completion with the other completions of its prompt.

    A_i = (r_i - mean(r)) / std(r), and the loss is the mean over completions of each one's mean
    over tokens. A subclass adds `token_loss`, overrides what differs, and is made a dataclass by
    `frozen_pytree`; the base has no fields.
    """

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"] | Float[Array, "P G T"]:
        """Returns (r - mean(r)) / std(r) over each group."""
        return advantages.standardised(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / (rows * |o_i|) at each token of row i."""
        return token_weights.per_sequence(mask)


def clipped_loss(
    inputs: TokenInputs,
    clip_low: Coefficient,
    clip_high: Coefficient,
    dual_clip: Coefficient | None = None,
) -> TokenLoss:
    """Returns PPO's clipped surrogate of each token's ratio, and the tokens that were clipped."""
    log_ratio = inputs.logprobs - inputs.old_logprobs
    metrics = terms.clip_metrics(log_ratio, inputs.advantages, clip_low, clip_high)
    loss = terms.clipped_surrogate(
        log_ratio, inputs.advantages, clip_low, clip_high, dual_clip
    )
    return loss, metrics
