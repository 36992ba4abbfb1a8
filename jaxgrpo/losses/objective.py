"""The interface of every objective, and the loss of a batch.

    rewards -> advantages        mask -> token weights        (policy, batch) -> loss of each token

    loss = sum(token_weights * token_loss)

Advantages are computed once, from the whole batch, and token weights from all rows of an update.
Micro-batches take slices of them, so gradient accumulation, sharding and an underfull batch
change nothing about the loss.

Axes: P prompts, G completions of each, B = P * G rows, T tokens; a row is one completion.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.info import LossInfo, loss_info
from jaxgrpo.losses.inputs import TokenInputs, TokenLoss

Advantages = Float[Array, "P G"] | Float[Array, "P G T"]
"""One for each completion, or one for each of its tokens."""


@runtime_checkable
class Objective(Protocol):
    """The three methods of an objective, which is a dataclass made by `frozen_pytree`.

    A config is checked by further attributes, where an objective has them:

    has_ratio: False, as a class attribute without an annotation, says that `token_loss` has no
        importance ratio, so that the objective is for samples of the current policy alone
    clip_low, clip_high: how far from 1 the ratio may be. A range narrower than the rounding of
        log-probabilities is refused: it would clip tokens whose true ratio is 1
    group_size: completions of a prompt, where token weights need it; it must be the run's
    moving: names of coefficients that move from step to step: see `losses.moving`
    """

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Advantages:
        """Returns the advantages of each prompt's group of completions.

        rewards: NaN marks a missing reward, whose advantage is 0
        mask: True at the tokens that each completion chose
        kl: log(sampler / reference) at each token

        Most objectives need neither mask nor kl; one that does raises ValueError without them.
        """
        ...

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns the weight of each token in the loss, from the mask of an update's rows."""
        ...

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the loss at each token, and the objective's own metrics."""
        ...


def batch_loss(
    objective: Objective, token_weights: Float[Array, "B T"], inputs: TokenInputs
) -> tuple[Float[Array, ""], LossInfo]:
    """Returns sum(token_weights * token_loss), a scalar to differentiate, and metrics of the batch.

    The gradient flows through `inputs.logprobs` and `inputs.entropy`. The losses and the infos of
    micro-batches add up to those of the batch: see `LossInfo`.

    token_weights: of the rows in `inputs`, made by `objective.token_weights` from all rows of the
        update
    """
    # Masked entries are zeroed before the loss and again after it. Zeroing the result alone would
    # not do: where a masked entry overflows, the gradient is 0 * infinity = NaN.
    inputs = _zero_masked(inputs)
    token_loss, token_metrics = objective.token_loss(inputs)
    loss = jnp.sum(jnp.where(inputs.mask, token_weights * token_loss, 0.0))
    return loss, loss_info(inputs, token_metrics)


def _zero_masked(inputs: TokenInputs) -> TokenInputs:
    """Returns the inputs with 0 wherever the mask is False, and advantages as [B, T]."""

    def zero(array: Array) -> Array:
        return jnp.where(inputs.mask, array, 0.0)

    advantages = inputs.advantages
    if advantages.ndim == 1:
        advantages = advantages[:, None]  # [B, 1], broadcast over the tokens by `zero`
    # Inputs that are None have no leaves, and stay None.
    zeroed = jax.tree.map(zero, inputs._replace(advantages=advantages))
    return zeroed._replace(mask=inputs.mask)
