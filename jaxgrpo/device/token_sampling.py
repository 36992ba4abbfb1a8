"""Drawing one token for each row: logits, truncation, a categorical sample, and its randomness.

Axes: B rows, V vocabulary, D model width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from jaxgrpo.device.logits import Ranges, to_logits, used_ids
from jaxgrpo.models.int8 import Int8Matrix
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings
from jaxgrpo.types import SamplingParams

BLOCK = 64
"""Columns of a block in `sample_categorical`."""


def next_token(
    hidden: Float[Array, "B D"],
    embedding: Float[Array, "V D"] | Int8Matrix,
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
    logits = shardings.logits(
        to_logits(hidden, embedding, temperature, softcap)
    )  # [B, V]
    if unused:
        logits = jnp.where(used_ids(logits.shape[-1], unused), logits, -jnp.inf)
    is_eos = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(eos_ids))
    is_too_short = (num_generated < params.min_tokens)[:, None]
    logits = jnp.where(is_eos & is_too_short, -jnp.inf, logits)
    logits = truncate_logits(logits, params)
    # A branch runs one of the two; a select would run both, and each takes as long as all the rest.
    return jax.lax.cond(is_greedy, argmax_token, sample_categorical, logits, uniform)


def truncate_logits(
    logits: Float[Array, "B V"], params: SamplingParams
) -> Float[Array, "B V"]:
    """Returns logits with -inf for the tokens that top-k, top-p and min-p leave out, in this order.

    The likeliest token always stays, and so do tokens as likely as the last one that is kept.
    """

    def lowest_kept(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        largest = ranked[:, :1]
        # Top-k: everything after the k-th place is out.
        k = jnp.where(params.top_k > 0, params.top_k, logits.shape[-1])
        ranked = jnp.where(jnp.arange(logits.shape[-1]) < k, ranked, -jnp.inf)
        # Top-p: a token stays while those before it have less than p together.
        probability_before = jnp.cumsum(
            jax.nn.softmax(ranked), axis=-1
        ) - jax.nn.softmax(ranked)
        is_kept = (probability_before < params.top_p) & (ranked > -jnp.inf)
        kept = jnp.where(is_kept, ranked, jnp.inf)
        lowest = jnp.minimum(jnp.min(kept, axis=-1, keepdims=True), largest)
        # Min-p: log(0) = -inf, so without it everything is likely enough.
        return jnp.maximum(
            lowest, largest + jnp.log(jnp.asarray(params.min_p, jnp.float32))
        )

    def no_bound(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
        return jnp.full_like(logits[:, :1], -jnp.inf)

    is_truncated = (params.top_k > 0) | (params.top_p < 1.0) | (params.min_p > 0.0)
    # The branch returns the bound and not the logits, because it would have to copy those.
    bound = jax.lax.cond(is_truncated, lowest_kept, no_bound, logits)
    return jnp.where(logits >= bound, logits, -jnp.inf)


def argmax_token(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"] | None = None
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Returns the token with the largest logit, the first of several, and its log-probability.

    uniform: not used; it has the signature of `sample_categorical`
    """
    token = jnp.argmax(logits, axis=-1)
    return token, jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def sample_categorical(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token from softmax(logits) by the inverse of its cumulative distribution.

    Returns the token and its log-probability. One uniform number a row is enough, where Gumbel
    noise needs V of them. The cumulative sum is taken over blocks of the vocabulary and then within
    the block that was hit: one sum over V would be slow and, in float32, coarse.
    """
    rows, vocabulary = logits.shape
    largest = jnp.max(logits, axis=-1, keepdims=True)
    padding = (0, -vocabulary % BLOCK)
    weights = jnp.pad(jnp.exp(logits - largest), ((0, 0), padding))
    weights = weights.reshape(rows, -1, BLOCK)  # [B, blocks, BLOCK]
    block_weights = weights.sum(axis=-1)
    total = block_weights.sum(axis=-1, keepdims=True)

    # 1. The block.
    block, rest = _inverse_cdf(block_weights, uniform[:, None] * total)

    # 2. The token within it.
    weights_of_block = jnp.take_along_axis(weights, block[..., None], axis=1)[:, 0]
    offset, _ = _inverse_cdf(weights_of_block, rest)
    token = block * BLOCK + offset
    logprob = jnp.take_along_axis(logits, token, axis=1) - largest - jnp.log(total)
    return token[:, 0], logprob[:, 0]


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
