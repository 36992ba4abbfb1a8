"""CISPO (MiniMax-M1, arXiv 2506.13585)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.objective import Coefficient, TokenInputs, TokenMetrics, frozen_pytree


@frozen_pytree
class CISPO:
    """Clipped importance-sampling-weight policy optimisation (arXiv 2506.13585, equation 4): what is clipped is a constant
    weight, so that no token loses its gradient.

        A_i = (r_i - mean(r)) / std(r)
        loss = -1/tokens sum_i sum_t sg[clip(r_t, 1 - clip_low, 1 + clip_high)] A_i log policy_t

    clip_low: the weight is at least 1 - clip_low; 1, as in the paper, is no lower bound
    clip_high: the weight is at most 1 + clip_high; the paper tunes it and does not say its value
    """

    clip_low: Coefficient = 1.0
    clip_high: Coefficient = 4.0

    def advantages(self, rewards: Float[Array, "P G"], mask=None, kl=None) -> Float[Array, "P G"]:
        return advantages.standardised(rewards)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        ratio = jax.lax.stop_gradient(terms.ratio(inputs.logprobs - inputs.old_logprobs))
        low, high = ratio < 1 - self.clip_low, ratio > 1 + self.clip_high
        figures = {
            "policy/clipped_low": low.astype(jnp.float32),
            "policy/clipped_high": high.astype(jnp.float32),
        }
        weight = jnp.clip(ratio, 1 - self.clip_low, 1 + self.clip_high)
        return -weight * inputs.advantages * inputs.logprobs, figures
