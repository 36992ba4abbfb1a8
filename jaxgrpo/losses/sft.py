"""Supervised fine-tuning, as an objective like any other."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import token_weights
from jaxgrpo.losses.objective import TokenInputs, TokenMetrics, frozen_pytree


@frozen_pytree
class Supervised:
    """loss = mean over the batch's completion tokens of -log p(token): maximum likelihood. Advantages are not used."""

    has_ratio = False

    def advantages(self, rewards: Float[Array, "P G"], mask=None, kl=None) -> Float[Array, "P G"]:
        return jnp.zeros_like(rewards)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        return -inputs.logprobs, {}
