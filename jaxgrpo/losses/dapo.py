"""DAPO (arXiv 2503.14476)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, token_weights
from jaxgrpo.losses.grpo import clipped_loss
from jaxgrpo.losses.objective import Coefficient, TokenInputs, TokenMetrics, frozen_pytree


@frozen_pytree
class DAPO:
    """Decoupled clip and dynamic sampling policy optimisation (arXiv 2503.14476, equation 8).

        A_i = (r_i - mean(r)) / std(r), r_i with the soft overlong punishment (equation 13) where max_tokens is given
        loss = 1/tokens sum_i sum_t max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i)

    Its dynamic sampling is the difficulty filter's rule "dapo"; it has no KL term.

    clip_low: the ratio is clipped from below at 1 - clip_low
    clip_high: the ratio is clipped from above at 1 + clip_high: higher, so that rare tokens can become likely
    max_tokens: tokens of a completion at which the punishment is whole; the paper's L_max (None: no punishment)
    overlong_buffer: tokens before that over which it grows; the paper's L_cache
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.28
    max_tokens: Coefficient | None = None
    overlong_buffer: Coefficient = 0.0

    def advantages(
        self, rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"] | None = None, kl=None
    ) -> Float[Array, "P G"]:
        if self.max_tokens is None:
            return advantages.standardised(rewards)
        if mask is None:
            raise ValueError(
                "DAPO punishes length where max_tokens is given: advantages() needs the completions' mask"
            )
        punishment = advantages.soft_overlong(
            mask.sum(axis=-1), self.max_tokens, self.overlong_buffer
        )
        return advantages.standardised(rewards + punishment)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        return clipped_loss(inputs, self.clip_low, self.clip_high)
