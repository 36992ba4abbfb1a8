"""The base of objectives around another objective."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.objective import Advantages, Objective


class Wrapper:
    """Base with the advantages and the token weights of the objective inside.

    A subclass adds `token_loss`, overrides what differs, and is made a dataclass by
    `frozen_pytree`; the base has no fields.
    """

    objective: Objective

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Advantages:
        """Returns the advantages of the objective inside."""
        return self.objective.advantages(rewards, mask, kl)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns the token weights of the objective inside."""
        return self.objective.token_weights(mask)
