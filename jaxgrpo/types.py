"""The arrays that travel between stages, and the legend of their axes.

    P prompts        G completions of each   B = P * G rows     W prompt width
    N new tokens     T = W + N columns       V vocabulary       D model width
    L layers         H query heads           K key-value heads  E head width

Per-token arrays are [B, T] like `tokens`; entry t is about choosing token t. Prompts are padded on
the left to W columns, so every completion begins at column W. Masks are made from lengths by
whoever makes the tokens, and travel with them: nobody compares ids with a pad or end token again.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

AnyArray = Any
"""A NumPy array where the host fills it, a JAX array once `to_device` has placed it."""

Params = Any
"""A pytree of arrays: nested dictionaries, as Flax names them."""

OptimizerState = Any
"""A pytree of arrays, whose structure only the optimizer knows."""


class SamplingParams(NamedTuple):
    """How a token is drawn from its logits.

    The host makes one, and the compiled programs trace it: another value compiles nothing.
    """

    temperature: Float[AnyArray, ""] | float = 1.0
    """Divides the logits. 0 takes the likeliest token; log-probabilities are then those at 1."""
    top_k: Int[AnyArray, ""] | int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: Float[AnyArray, ""] | float = 1.0
    """Only the likeliest tokens that together have this probability (arXiv 1904.09751)."""
    min_p: Float[AnyArray, ""] | float = 0.0
    """Only tokens at least this probable, as a share of the likeliest (arXiv 2407.01082)."""
    min_tokens: Int[AnyArray, ""] | int = 0
    """No end token before the row has so many tokens."""

    def as_arrays(self) -> "SamplingParams":
        """Returns the same numbers in fixed dtypes; another dtype would be another program."""
        return SamplingParams(
            temperature=np.float32(self.temperature),
            top_k=np.int32(self.top_k),
            top_p=np.float32(self.top_p),
            min_p=np.float32(self.min_p),
            min_tokens=np.int32(self.min_tokens),
        )


class NewRows(NamedTuple):
    """M rows that start from prefilled prompts, each in a slot of its own.

    A call always has M entries. One that starts no row names a slot past the last.
    """

    slot: Int[AnyArray, "M"]
    prompt: Int[AnyArray, "M"]
    """The place of the row's prompt among the prefilled ones."""
    max_tokens: Int[AnyArray, "M"]
    """Tokens that the row may have, at most."""
    keys: UInt32[AnyArray, "M 2"]
    """Random key data: a function of (seed, step, purpose, problem, sample)."""


class DecodeOutput(NamedTuple):
    """Tokens that one call of `decode` chose: row s has tokens[s, :num_tokens[s]]."""

    tokens: Int[AnyArray, "S C"]
    logprobs: Float[AnyArray, "S C"]
    num_tokens: Int[AnyArray, "S"]
    active: Bool[AnyArray, "S"]
    """Whether the row goes on."""
    hit_eos: Bool[AnyArray, "S"]
    """Whether the row chose an end token."""
    num_steps: Int[AnyArray, ""]
    """Decode steps that were made."""


NO_ENTRY = -1
"""Stands in the columns of a bin that hold no token."""


class TrainBatch(NamedTuple):
    """The arrays of one update.

    A row whose completion_mask is empty counts nothing: an underfull batch is padded with them.
    """

    tokens: Int[AnyArray, "B T"]
    segments: Int[AnyArray, "B T"]
    """The text within the row that a token belongs to, from 1; 0 is padding. A row of a rollout has
    one text; a row of supervised training has several (sft.packing.pack)."""
    completion_mask: Bool[AnyArray, "B T"]
    """True on tokens that the policy chose; advantages are made of all of them."""
    rewards: Float[AnyArray, "B"]
    """Row p * G + g is completion g of prompt p; NaN where the reward is missing."""
    sampler_logprobs: Float[AnyArray, "B T"]
    """The sampler's own log-probability of each chosen token."""
    trained: Bool[AnyArray, "B"] | None = None
    """Rows that count in the loss; None: all. The others are still compared with."""
    bins: Int[AnyArray, "bins S"] | None = None
    """The entry of `tokens`, row * T + column, that stands in each column of each bin, or NO_ENTRY;
    None: rows are read as they are (see rollout/packing.py)."""

    @property
    def trained_mask(self) -> Bool[AnyArray, "B T"]:
        """True on the tokens that count in the loss."""
        if self.trained is None:
            return self.completion_mask
        return self.completion_mask & self.trained[:, None]


class TrainState(NamedTuple):
    """The state that an update replaces. Data only: no functions, no random state."""

    step: Int[Array, ""]
    params: Params
    opt_state: OptimizerState
