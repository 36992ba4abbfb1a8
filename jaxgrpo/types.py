"""The arrays that travel between stages, and the legend of their axes.

    P prompts   G completions of each prompt   B = P * G rows   W prompt width   N new tokens   T = W + N
    V vocabulary   D model width   L layers   H query heads   K key-value heads   E head width

Per-token arrays are [B, T] like `tokens`; entry t is about choosing token t. Prompts are padded on the left to W columns,
so the completion of every row begins at column W. Masks are made from lengths by whoever makes the tokens and travel with
them; nobody compares ids with a pad or end token again.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int

AnyArray = Any
"""numpy where the host fills the array, jax once `mesh.to_device` has placed it; it has a shape and a dtype."""

Params = Any
"""A plain pytree of arrays: nested dictionaries, as Flax names them."""


class TrainBatch(NamedTuple):
    """What an update needs. A row whose completion_mask is empty counts nothing: an underfull batch is padded with them."""

    tokens: Int[AnyArray, "B T"]
    segments: Int[AnyArray, "B T"]
    """Which text of its row a token belongs to, from 1; 0 is padding. Rollouts have one text a row, packed rows several."""
    completion_mask: Bool[AnyArray, "B T"]
    """What the policy chose; the advantages are made of all of it."""
    rewards: Float[AnyArray, "B"]
    """Row p * G + g is completion g of prompt p; NaN where the reward is missing."""
    sampler_logprobs: Float[AnyArray, "B T"]
    """The sampler's own log-probability of each chosen token."""
    trained: Bool[AnyArray, "B"] | None = None
    """Which rows count in the loss; None: all. The others are still compared with."""


class TrainState(NamedTuple):
    """What learns. Data only: no functions, no random state."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
