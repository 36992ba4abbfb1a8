"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import terms, token_weights
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class CISPO(GroupRelative):
    """Clipped importance-sampling-weight policy optimisation (arXiv 2506.13585, equation 4).

        A_i = (r_i - mean(r)) / std(r)
        loss = -1/tokens sum_i sum_t sg[clip(r_t, 1 - clip_low, 1 + clip_high)] A_i log policy_t

    The clipped ratio is a constant weight, so no token loses its gradient.

    clip_low: the weight is at least 1 - clip_low; 1, as in the paper, is no lower bound
    clip_high: the weight is at most 1 + clip_high; the paper tunes it and does not say its value
    """

    clip_low: Coefficient = 1.0
    clip_high: Coefficient = 4.0

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / tokens of the batch at each token."""
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns -sg[clip(ratio)] * A * log policy, and the tokens whose weight was clipped."""
        ratio = jax.lax.stop_gradient(
            terms.ratio(inputs.logprobs - inputs.old_logprobs)
        )
        clipped_low = ratio < 1 - self.clip_low
        clipped_high = ratio > 1 + self.clip_high
        metrics = {
            "policy/clipped_low": clipped_low.astype(jnp.float32),
            "policy/clipped_high": clipped_high.astype(jnp.float32),
        }
        # Unlike PPO's clip this one leaves the gradient, which is that of log policy alone.
        weight = jnp.clip(ratio, 1 - self.clip_low, 1 + self.clip_high)
        return -weight * inputs.advantages * inputs.logprobs, metrics
