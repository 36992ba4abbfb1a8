"""Drawing one token for each row: logits, truncation, a categorical sample, and its randomness.

Axes: B rows, V vocabulary, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxgrpo.device.logits import Ranges, cap_and_scale, vocabulary_products
from jaxgrpo.models.int8 import Int8Matrix
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings
from jaxgrpo.types import SamplingParams

MAX_CHUNKS = 16
"""Chunks that the vocabulary is summed in, at most."""
BLOCK = 128
"""Tokens of a block, of which chunks consist: a TPU reads them together."""


@dataclass(frozen=True)
class Reading:
    """How dot products are read as logits: wherever they are read, so that none are written.

    temperature: of the softmax, above 0
    is_too_short: whether end tokens are still masked out of a row
    eos_ids: ids of end tokens
    softcap: see `to_logits`
    unused: ids that no token has
    """

    temperature: Float[Array, ""]
    is_too_short: Bool[Array, "B"]
    eos_ids: tuple[int, ...]
    softcap: float | None
    unused: Ranges

    def __call__(
        self, products: Float[Array, "n B"], ids: Int[Array, "n B"] | Int[Array, "n 1"]
    ) -> Float[Array, "n B"]:
        """Returns the logits of ids, -inf for those that may not be drawn."""
        logits = cap_and_scale(products, self.temperature, self.softcap)
        is_out = jnp.isin(ids, jnp.array(self.eos_ids)) & self.is_too_short
        for first, end in self.unused:
            is_out |= (ids >= first) & (ids < end)
        return jnp.where(is_out, -jnp.inf, logits)

    def all(self, products: Float[Array, "V B"]) -> Float[Array, "V B"]:
        """Returns the logits of the whole vocabulary."""
        return self(products, jnp.arange(len(products))[:, None])


@jax.named_scope("logits")
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
    read = Reading(
        temperature=jnp.where(is_greedy, 1.0, params.temperature),
        is_too_short=num_generated < params.min_tokens,
        eos_ids=eos_ids,
        softcap=softcap,
        unused=unused,
    )
    products = shardings.products(vocabulary_products(hidden, embedding))  # [V, B]
    bound = lowest_kept(read, products, params)

    def greedy(products: Float[Array, "V B"]) -> tuple[Array, Array]:
        return argmax_token(read, products, bound)

    def categorical(products: Float[Array, "V B"]) -> tuple[Array, Array]:
        return sample_categorical(read, products, bound, uniform)

    # A branch runs one of the two; a select would run both, and each takes as long as all the rest.
    return jax.lax.cond(is_greedy, greedy, categorical, products)


def lowest_kept(
    read: Reading, products: Float[Array, "V B"], params: SamplingParams
) -> Float[Array, "B"]:
    """Returns the lowest logit that top-k, top-p and min-p leave, in this order; -inf: all.

    The likeliest token always stays, and so do tokens as likely as the last one that is kept.
    """

    def lowest(products: Float[Array, "V B"]) -> Float[Array, "B"]:
        logits = read.all(products)
        largest = jnp.max(logits, axis=0)
        # Top-k: the highest bound that at least k logits reach. No token is below -inf.
        k = jnp.where(params.top_k > 0, params.top_k, len(logits))
        by_count = _highest_bound(logits, jnp.ones_like, jnp.full_like(largest, k))

        # Top-p: the highest bound such that what reaches it has a share of p of what top-k left.
        def weigh(logits: Float[Array, "V B"]) -> Float[Array, "V B"]:
            return jnp.where(logits >= by_count, jnp.exp(logits - largest), 0.0)

        total = jnp.sum(weigh(logits), axis=0)
        by_share = _highest_bound(logits, weigh, params.top_p * total)
        # Min-p: log(0) = -inf, so without it everything is likely enough.
        by_ratio = largest + jnp.log(jnp.asarray(params.min_p, jnp.float32))
        bound = jnp.maximum(jnp.maximum(by_count, by_share), by_ratio)
        return jnp.minimum(bound, largest)

    def no_bound(products: Float[Array, "V B"]) -> Float[Array, "B"]:
        return jnp.full_like(products[0], -jnp.inf)

    is_truncated = (params.top_k > 0) | (params.top_p < 1.0) | (params.min_p > 0.0)
    return jax.lax.cond(is_truncated, lowest, no_bound, products)


def _highest_bound(
    logits: Float[Array, "V B"],
    weigh: Callable[[Float[Array, "V B"]], Float[Array, "V B"]],
    amount: Float[Array, "B"],
) -> Float[Array, "B"]:
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
        weight = jnp.sum(jnp.where(is_reached, weigh(logits), 0.0), axis=0)
        has_enough = weight >= amount
        return jnp.where(has_enough, middle, low), jnp.where(has_enough, high, middle)

    largest = jnp.max(logits, axis=0)
    low = _to_ordered(jnp.full_like(largest, -jnp.inf))
    ends = (low, _to_ordered(largest) + 1)
    low, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return _from_ordered(low)


def _to_ordered(x: Float[Array, "B"]) -> Int[Array, "B"]:
    """Returns integers in the order of float32 numbers, next to each other where these are."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    # Negative numbers are stored as sign and magnitude.
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _from_ordered(number: Int[Array, "B"]) -> Float[Array, "B"]:
    """Returns the float32 numbers that `_to_ordered` gave these integers."""
    bits = jnp.where(number < 0, number ^ jnp.int32(0x7FFFFFFF), number)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def argmax_token(
    read: Reading, products: Float[Array, "V B"], bound: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Returns the token with the largest logit, the first of several, and its log-probability.

    bound: tokens of lower logits are left out
    """
    logits = read.all(products)
    kept = jnp.where(logits >= bound, logits, -jnp.inf)
    logprob = jnp.max(logits, axis=0) - jax.nn.logsumexp(kept, axis=0)
    return jnp.argmax(logits, axis=0), logprob


def sample_categorical(
    read: Reading,
    products: Float[Array, "V B"],
    bound: Float[Array, "B"],
    uniform: Float[Array, "B"],
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token from softmax(logits) by the inverse of its cumulative distribution.

    Returns the token and its log-probability. One uniform number a row is enough, where Gumbel
    noise needs V of them. The cumulative sum is taken over chunks of the vocabulary, then over the
    blocks of the chunk that was hit, then within its block: one sum over V would be slow and, in
    float32, coarse. Nothing of the vocabulary's size is written. So the chunks are slices: a TPU
    would copy what is reshaped.

    bound: tokens of lower logits are left out
    """
    vocabulary = len(products)
    largest = jnp.max(read.all(products), axis=0)

    def weigh(
        products: Float[Array, "n B"], ids: Int[Array, "n _"]
    ) -> Float[Array, "n B"]:
        logits = read(products, ids)
        return jnp.where(logits >= bound, jnp.exp(logits - largest), 0.0)

    # 1. The chunk: whole blocks, the last of which may be shorter.
    blocks = -(-vocabulary // BLOCK)
    width = min(-(-blocks // MAX_CHUNKS) * BLOCK, vocabulary)
    sums = []
    for first in range(0, vocabulary, width):
        part = products[first : first + width]
        ids = first + jnp.arange(len(part))[:, None]
        sums.append(weigh(part, ids).sum(axis=0))
    chunk_weights = jnp.stack(sums)  # [chunks, B]
    total = chunk_weights.sum(axis=0)
    chunk, rest = _inverse_cdf(chunk_weights, uniform * total)

    # 2. The block within it. The last chunk begins earlier, with ids that are not its own.
    start = jnp.minimum(chunk * width, vocabulary - width)
    ids = start + jnp.arange(width)[:, None]  # [width, B]
    chosen_products = jnp.take_along_axis(products, ids, axis=0)
    weights = jnp.where(ids >= chunk * width, weigh(chosen_products, ids), 0.0)
    weights = jnp.pad(weights, ((0, -width % BLOCK), (0, 0)))
    weights = weights.reshape(-1, BLOCK, weights.shape[1])  # [blocks, BLOCK, B]
    block, rest = _inverse_cdf(weights.sum(axis=1), rest)

    # 3. The token within it.
    weights_of_block = jnp.take_along_axis(weights, block[None, None], axis=0)[0]
    offset, _ = _inverse_cdf(weights_of_block, rest)
    index = block * BLOCK + offset
    token = start + index
    product = jnp.take_along_axis(chosen_products, index[None], axis=0)
    logprob = read(product, token[None])[0] - largest - jnp.log(total)
    return token, logprob


def _inverse_cdf(
    weights: Float[Array, "n B"], target: Float[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Returns the index of the weight that a target falls on, and how far into the weight it falls.

    The weights are laid end to end. It is never a weight of 0: where rounding leads there, or past
    the end, the index is that of the largest.
    """
    ends = jnp.cumsum(weights, axis=0)
    passed = jnp.sum(ends <= target, axis=0)
    index = jnp.minimum(passed, len(weights) - 1)[None]
    weight = jnp.take_along_axis(weights, index, axis=0)
    into = target - (jnp.take_along_axis(ends, index, axis=0) - weight)[0]
    return jnp.where(weight > 0, index, jnp.argmax(weights, axis=0))[0], into


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
