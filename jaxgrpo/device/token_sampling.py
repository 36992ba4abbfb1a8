"""Drawing one token for each row: logits, truncation, a categorical sample, and its randomness.

Axes: B rows, V vocabulary, D model width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from jaxgrpo.device.logits import (
    Ranges,
    cap_and_scale,
    dot_products,
    einsum_float32,
    used_ids,
)
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings
from jaxgrpo.types import SamplingParams

BLOCK = 64
"""Columns of a block in `sample_categorical`."""


def next_token(
    hidden: Float[Array, "B D"],
    embedding: Float[Array, "V D"],
    uniform: Float[Array, "B"],
    num_generated: Int[Array, "B"],
    params: SamplingParams,
    eos_ids: tuple[int, ...],
    *,
    softcap: float | None = None,
    shardings: ActivationShardings = UNCONSTRAINED,
    unused: Ranges = (),
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Returns the next token of each row and its log-probability.

    The log-probability is that of the distribution drawn from: at the temperature, without masked
    and truncated tokens.

    uniform: one number in [0, 1) a row
    num_generated: tokens that the row has; below params.min_tokens, end tokens are masked out
    softcap: see `to_logits`
    unused: ids that no token has
    """
    is_greedy = jnp.asarray(params.temperature == 0)
    temperature = jnp.where(is_greedy, 1.0, params.temperature)
    products = vocabulary_products(hidden, embedding)
    logits = shardings.logits(cap_and_scale(products, temperature, softcap))  # [B, V]
    if unused:
        logits = jnp.where(used_ids(logits.shape[-1], unused), logits, -jnp.inf)
    is_eos = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(eos_ids))
    is_too_short = (num_generated < params.min_tokens)[:, None]
    logits = jnp.where(is_eos & is_too_short, -jnp.inf, logits)
    bound = lowest_kept(logits, params)
    # A branch runs one of the two; a select would run both, and each takes as long as all the rest.
    return jax.lax.cond(
        is_greedy, argmax_token, sample_categorical, logits, uniform, bound
    )


def vocabulary_products(
    hidden: Float[Array, "B D"], embedding: Float[Array, "V D"]
) -> Float[Array, "B V"]:
    """Computes `dot_products` of a few rows, in the order of operands that is fast on the platform."""

    def embedding_first(
        hidden: Float[Array, "B D"], embedding: Float[Array, "V D"]
    ) -> Float[Array, "B V"]:
        # XLA for CPUs packs the operand on the right, which is then the small one. The barrier
        # keeps it from turning the product round again.
        products = einsum_float32("vd,bd->vb", embedding.astype(hidden.dtype), hidden)
        return jax.lax.optimization_barrier(products).T

    return jax.lax.platform_dependent(
        hidden, embedding, cpu=embedding_first, default=dot_products
    )


def lowest_kept(
    logits: Float[Array, "B V"], params: SamplingParams
) -> Float[Array, "B 1"]:
    """Returns the lowest logit that top-k, top-p and min-p leave, in this order; -inf: all are left.

    The likeliest token always stays, and so do tokens as likely as the last one that is kept.
    """

    def lowest(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
        largest = jnp.max(logits, axis=-1, keepdims=True)
        # Top-k: the highest bound that at least k logits reach. No token is below -inf.
        k = jnp.where(params.top_k > 0, params.top_k, logits.shape[-1])
        by_count = _highest_bound(logits, jnp.ones_like, jnp.full_like(largest, k))

        # Top-p: the highest bound such that what reaches it has a share of p of what top-k left.
        def weigh(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
            return jnp.where(logits >= by_count, jnp.exp(logits - largest), 0.0)

        total = jnp.sum(weigh(logits), axis=-1, keepdims=True)
        by_share = _highest_bound(logits, weigh, params.top_p * total)
        # Min-p: log(0) = -inf, so without it everything is likely enough.
        by_ratio = largest + jnp.log(jnp.asarray(params.min_p, jnp.float32))
        bound = jnp.maximum(jnp.maximum(by_count, by_share), by_ratio)
        return jnp.minimum(bound, largest)

    def no_bound(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
        return jnp.full_like(logits[:, :1], -jnp.inf)

    is_truncated = (params.top_k > 0) | (params.top_p < 1.0) | (params.min_p > 0.0)
    return jax.lax.cond(is_truncated, lowest, no_bound, logits)


def _highest_bound(
    logits: Float[Array, "B V"],
    weigh: Callable[[Float[Array, "B V"]], Float[Array, "B V"]],
    amount: Float[Array, "B 1"],
) -> Float[Array, "B 1"]:
    """Returns the highest bound such that the weights of the logits from it on sum to an amount.

    It is the largest logit if that alone has the amount, and -inf if all together do not. The bits
    of the bound are found one after another, each by a pass over the logits: a sort of a large
    vocabulary takes many times as long.

    weigh: gives each logit its weight
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        is_reached = logits >= _from_ordered(middle)
        weight = jnp.sum(jnp.where(is_reached, weigh(logits), 0.0), -1, keepdims=True)
        has_enough = weight >= amount
        return jnp.where(has_enough, middle, low), jnp.where(has_enough, high, middle)

    largest = jnp.max(logits, axis=-1, keepdims=True)
    low = _to_ordered(jnp.full_like(largest, -jnp.inf))
    ends = (low, _to_ordered(largest) + 1)
    low, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return _from_ordered(low)


def _to_ordered(x: Float[Array, "B 1"]) -> Int[Array, "B 1"]:
    """Returns integers in the order of float32 numbers, next to each other where these are."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    # Negative numbers are stored as sign and magnitude.
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _from_ordered(number: Int[Array, "B 1"]) -> Float[Array, "B 1"]:
    """Returns the float32 numbers of `_to_ordered`, which is its own inverse on bits."""
    bits = jnp.where(number < 0, number ^ jnp.int32(0x7FFFFFFF), number)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def argmax_token(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], bound: Float[Array, "B 1"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Returns the token with the largest logit, the first of several, and its log-probability.

    uniform: not used; it has the signature of `sample_categorical`
    bound: tokens of lower logits are left out
    """
    token = jnp.argmax(logits, axis=-1)
    kept = jnp.where(logits >= bound, logits, -jnp.inf)
    return token, jnp.max(logits, axis=-1) - jax.nn.logsumexp(kept, axis=-1)


def sample_categorical(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], bound: Float[Array, "B 1"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token from softmax(logits) by the inverse of its cumulative distribution.

    Returns the token and its log-probability. One uniform number a row is enough, where Gumbel
    noise needs V of them. The cumulative sum is taken over blocks of the vocabulary and then within
    the block that was hit: one sum over V would be slow and, in float32, coarse. The logits are
    read twice, for their maximum and for the blocks' sums; nothing of their size is written.

    bound: tokens of lower logits are left out
    """
    vocabulary = logits.shape[1]
    largest = jnp.max(logits, axis=-1, keepdims=True)

    def weigh(logits: Float[Array, "B n"]) -> Float[Array, "B n"]:
        return jnp.where(logits >= bound, jnp.exp(logits - largest), 0.0)

    weights = jnp.pad(weigh(logits), ((0, 0), (0, -vocabulary % BLOCK)))
    block_weights = weights.reshape(len(logits), -1, BLOCK).sum(axis=-1)  # [B, blocks]
    total = block_weights.sum(axis=-1, keepdims=True)

    # 1. The block.
    block, rest = _inverse_cdf(block_weights, uniform[:, None] * total)

    # 2. The token within it.
    columns = block * BLOCK + jnp.arange(BLOCK)  # [B, BLOCK]; some are past the last token
    logits_of_block = jnp.take_along_axis(
        logits, columns, axis=1, mode="fill", fill_value=-jnp.inf
    )
    offset, _ = _inverse_cdf(weigh(logits_of_block), rest)
    chosen = jnp.take_along_axis(logits_of_block, offset, axis=1)
    token = block * BLOCK + offset
    return token[:, 0], (chosen - largest - jnp.log(total))[:, 0]


def _inverse_cdf(
    weights: Float[Array, "B n"], target: Float[Array, "B 1"]
) -> tuple[Int[Array, "B 1"], Float[Array, "B 1"]]:
    """Returns the index of the weight that a target falls on, and how far into the weight it falls.

    The weights are laid end to end. It is never a weight of 0: where rounding leads there, or past
    the end, the index is that of the largest.
    """
    ends = jnp.cumsum(weights, axis=-1)
    passed = jnp.sum(ends <= target, axis=-1, keepdims=True)
    index = jnp.minimum(passed, weights.shape[-1] - 1)
    weight = jnp.take_along_axis(weights, index, axis=-1)
    into = target - (jnp.take_along_axis(ends, index, axis=-1) - weight)
    largest = jnp.argmax(weights, axis=-1, keepdims=True)
    return jnp.where(weight > 0, index, largest), into


def row_uniforms(
    keys: UInt32[Array, "B 2"], first: Int[Array, "B"], count: int
) -> Float[Array, "B {count}"]:
    """Returns numbers in [0, 1) for the tokens first, first + 1, ... of each row.

    A number is a function of its row's key and of the token's number alone.
    """

    def draw(key: UInt32[Array, "2"], number: Int[Array, ""]) -> Float[Array, ""]:
        row_key = jax.random.wrap_key_data(key, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(row_key, number))

    draw_rows = jax.vmap(jax.vmap(draw, (None, 0)))
    return draw_rows(keys, first[:, None] + jnp.arange(count))
