"""Weights of tokens in the loss, [B, T], from the mask of an update's chosen tokens, [B, T].

Rows without a chosen token are not counted, so the weights of an underfull batch are those of its
full rows alone.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.inputs import Coefficient


def per_sequence(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Returns 1 / (rows * |o_i|): the mean over rows of each row's mean over tokens. Sums to 1."""
    num_rows = _num_rows(mask)
    lengths = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)  # [B, 1]
    return mask / (num_rows * lengths)


def per_token(mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Returns 1 / sum_i |o_i|: the mean over all chosen tokens of the batch. Sums to 1.

    Source: arXiv 2503.14476, equation 8
    """
    return mask / jnp.maximum(mask.sum(), 1)


def per_prompt(mask: Bool[Array, "B T"], group_size: int) -> Float[Array, "B T"]:
    """Returns 1 / (prompts * tokens of the prompt's completions): each prompt counts alike.

    Prompts without a chosen token are not counted. Sums to 1.

    group_size: rows of a prompt, G; rows of a prompt follow each other

    Raises ValueError if the rows are no whole number of groups.

    Source: arXiv 2510.13786, section 3.2, "prompt average"
    """
    num_rows = mask.shape[0]
    if num_rows % group_size:
        raise ValueError(
            f"{num_rows} rows are no whole number of groups of {group_size} completions"
        )
    tokens = mask.reshape(-1, group_size, mask.shape[1]).sum(axis=(1, 2))  # [P]
    num_prompts = jnp.maximum((tokens > 0).sum(), 1).astype(jnp.float32)
    tokens_of_row = jnp.repeat(jnp.maximum(tokens, 1), group_size)[:, None]  # [B, 1]
    return mask / (num_prompts * tokens_of_row)


def per_budget(mask: Bool[Array, "B T"], budget: Coefficient) -> Float[Array, "B T"]:
    """Returns 1 / (rows * budget): a token's weight does not depend on the lengths.

    The sum is the mean length over the budget. A budget of 1 is the mean over rows of each row's
    sum over tokens.

    Source: arXiv 2503.20783, section 3.2
    """
    return mask / (_num_rows(mask) * budget)


def without_truncated(
    mask: Bool[Array, "B T"], finished: Bool[Array, "B"]
) -> Bool[Array, "B T"]:
    """Returns the mask without the rows that were cut off before they ended.

    The reward of such a row says nothing about its tokens (overlong filtering).

    Source: arXiv 2503.14476, section 3.4
    """
    return mask & finished[:, None]


def _num_rows(mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Returns the number of rows with a chosen token, at least 1."""
    # At least 1, so that the weights of an empty batch are 0 and not NaN.
    return jnp.maximum(mask.any(axis=1).sum(), 1).astype(jnp.float32)
