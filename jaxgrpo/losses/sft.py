"""Supervised fine-tuning, as an objective like any other."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import token_weights
from jaxgrpo.losses.inputs import TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class Supervised:
    """Maximum likelihood; advantages are not used.

    loss = -1/tokens sum_i sum_t log policy_t
    """

    has_ratio = False

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns zeros."""
        return jnp.zeros_like(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / tokens of the batch at each token."""
        return token_weights.per_token(mask)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns -log policy."""
        return -inputs.logprobs, {}
