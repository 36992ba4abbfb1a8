"""What every objective is: rewards -> advantages; mask -> how much each token counts; (policy, batch) -> each token's loss.

    loss = sum(weights * token_loss)

Advantages and weights are computed once from the whole batch, so gradient accumulation, sharding and an underfull batch are
exact without a word about them. Axes: P prompts, G completions of each, B = P * G rows, T tokens; a row is one completion.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.info import Info, measure
from jaxgrpo.losses.terms import Coefficient

__all__ = [
    "Advantages",
    "Coefficient",
    "Figures",
    "Objective",
    "TokenInputs",
    "batch_loss",
    "frozen_pytree",
]

Class = TypeVar("Class", bound=type)

Advantages = Float[Array, "P G"] | Float[Array, "P G T"]
"""One for each completion, or one for each of its tokens."""

TokenMetrics = dict[str, Float[Array, "B T"]]
"""Per-token figures of an objective's own, to be logged as means over the chosen tokens."""


class TokenInputs(NamedTuple):
    """What a token's loss may depend on. Masked entries may hold anything."""

    logprobs: Float[Array, "B T"]
    """Of the policy being trained; carries the gradient."""
    old_logprobs: Float[Array, "B T"]
    """Of the policy that the ratio is taken to: the one that sampled, as the sampler or as the trainer computed it."""
    ref_logprobs: Float[Array, "B T"]
    """Of the reference policy."""
    advantages: Float[Array, "B"] | Float[Array, "B T"]
    """One a row or one a token; `token_loss` sees [B, T]."""
    mask: Bool[Array, "B T"]
    """Which tokens the policy chose."""
    sampler_logprobs: Float[Array, "B T"] | None = None
    """What the sampler itself computed, where `old_logprobs` are the trainer's; None: they are the same."""
    entropy: Float[Array, "B T"] | None = None
    """Of the distribution each token was chosen from, nats; carries a gradient. None: not known."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen_pytree(cls: Class) -> Class:
    """Makes a class a frozen dataclass and a pytree whose leaves are its fields: changing a coefficient compiles nothing. A
    field with metadata {"static": True} is part of the structure.

    In place of jax.tree_util.register_dataclass, under which the structures of two classes with as many fields compare equal
    (seen in JAX 0.10 to 0.12): a compiled function then may run one objective's program for another.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)
    static = [field.name for field in fields if field.metadata.get("static")]
    leaves = [field.name for field in fields if not field.metadata.get("static")]

    def flatten(node: Any) -> tuple[list, tuple]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in leaves]
        return keyed, tuple(getattr(node, name) for name in static)

    def unflatten(structure: Any, values: Any) -> Any:
        node = object.__new__(
            made
        )  # not made(...): JAX also puts descriptions in the place of numbers
        for name, value in (
            *zip(leaves, values, strict=True),
            *zip(static, structure, strict=True),
        ):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
    return made


@runtime_checkable
class Objective(Protocol):
    """What an objective has; a dataclass made by `frozen_pytree`.

    A run is checked by more attributes, where an objective has them. `has_ratio = False`, of the
    class and without an annotation, says that no importance ratio is in its token_loss: it is for
    samples of the current policy alone. `clip_low` and `clip_high` are how far from 1 the ratio
    may be: narrower than rounding, they would clip what is 1 in truth.
    """

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Advantages:
        """Advantages of each prompt's group of completions; NaN marks a missing reward and has advantage 0.

        mask: which tokens each completion chose. kl: log(old / reference) of each. Most objectives need neither; one that
        does raises ValueError where they are not given.
        """
        ...

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """How much each token counts; computed from the whole batch."""
        ...

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        """The loss at each token, and figures of the objective's own."""
        ...


def batch_loss(
    objective: Objective, weights: Float[Array, "B T"], inputs: TokenInputs
) -> tuple[Float[Array, ""], Info]:
    """sum(weights * token_loss), to be differentiated by the log-probabilities, and what there is to know about the batch.

    Masked entries are zeroed before the loss sees them and again after: what they hold reaches neither the loss nor, through
    an overflow, the gradient. The loss and the info of micro-batches add up to those of the batch: see `Info`.
    """
    inputs = _zeroed(inputs)
    token_loss, figures = objective.token_loss(inputs)
    loss = jnp.sum(jnp.where(inputs.mask, weights * token_loss, 0.0))
    return loss, measure(inputs, figures)


def _zeroed(inputs: TokenInputs) -> TokenInputs:
    """The inputs with 0 wherever the mask is False, and an advantage for each token."""
    zeroed = lambda array: None if array is None else jnp.where(inputs.mask, array, 0.0)
    advantages = inputs.advantages if inputs.advantages.ndim == 2 else inputs.advantages[:, None]
    arrays = jax.tree.map(zeroed, inputs._replace(advantages=advantages))
    return arrays._replace(mask=inputs.mask)
