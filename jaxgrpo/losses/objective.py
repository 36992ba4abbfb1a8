"""What every objective is: rewards -> advantages; mask -> how much each token counts; (policy, batch) -> each token's loss.

loss = sum(weights * token_loss). The weights are computed once from the whole batch and sum to 1 (or less), so gradient
accumulation, sharding and an underfull batch are exact without a word about them.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Coefficient = float | Float[Array, ""]
"""A number of an objective's; traced inside a compiled program."""


class TokenInputs(NamedTuple):
    """What a token's loss may depend on. Masked entries may hold anything."""

    logprobs: Float[Array, "B T"]
    """Of the policy being trained; the only entry that carries a gradient."""
    old_logprobs: Float[Array, "B T"]
    """Of the policy that sampled."""
    ref_logprobs: Float[Array, "B T"]
    """Of the reference policy."""
    advantages: Float[Array, "B"]
    mask: Bool[Array, "B T"]
    """Which tokens the policy chose."""


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of coefficients, registered as a pytree: changing a coefficient compiles nothing."""

    def advantages(self, rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
        """Advantages of each prompt's group of completions; NaN marks a missing reward."""
        ...

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """How much each token counts; computed from the whole batch."""
        ...

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
        """The loss at each token, and per-token figures to be logged as means over the chosen tokens."""
        ...


def batch_loss(
    objective: Objective, weights: Float[Array, "B T"], inputs: TokenInputs
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """sum(weights * token_loss) and, for each figure, its sum over chosen tokens (divide by their number for the mean).

    Sums, not means: those of micro-batches add up to those of the batch. Masked entries are zeroed before the loss sees them
    and again after: what they hold reaches neither the loss nor, through an overflow, the gradient.
    """
    zeroed = lambda array: jnp.where(inputs.mask, array, 0.0)
    logprobs, old, ref = zeroed(inputs.logprobs), zeroed(inputs.old_logprobs), zeroed(inputs.ref_logprobs)
    token_loss, figures = objective.token_loss(TokenInputs(logprobs, old, ref, inputs.advantages, inputs.mask))
    loss = jnp.sum(zeroed(weights * token_loss))
    return loss, {name: jnp.sum(zeroed(figure)) for name, figure in figures.items()}
