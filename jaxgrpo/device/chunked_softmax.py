"""Log-softmax and entropy over a vocabulary in chunks, and their gradients.

    forward   each chunk's logits are folded into running sums, an online softmax
    backward  each chunk's logits are computed again, and turned into its part of the gradients

The chunks are of the vocabulary and not of the rows. Rows stay on the devices that the mesh has
put them on, and each part of the embedding's gradient is read and written once; over chunks of rows
all of it would be for every chunk. Where one chunk holds all logits, they are saved for the
backward pass.

A column in this file is a column of the logits: an entry of the vocabulary.

Axes: B rows, N positions of a row, D model width, S shards of the vocabulary, `columns` of a shard,
v columns of a shard that a chunk takes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.device.logits import (
    Ranges,
    cap_and_scale,
    dot_products,
    einsum_float32,
    used_ids,
)
from jaxgrpo.device.manual_axes import vary_like

LANES = 128
"""The width of an accelerator's vector registers, a multiple of which a chunk takes of each shard
where there are enough columns."""

LOWEST = float(jnp.finfo(jnp.float32).min)
"""Stands for a logit that does not count, in the forward sums. Minus infinity would not do:
exp(-inf) * -inf is NaN, and so is the gap between two of them."""

State = TypeVar("State")

Scores = tuple[
    Float[Array, "B N"], Float[Array, "B N"] | None, Float[Array, "S columns D"]
]
"""Log-probabilities, entropies and the embedding: see `chunked_scores`."""

Gradient = Array | SymbolicZero
"""The gradient of a result; a SymbolicZero where nobody differentiated it."""


class ScoreConfig(NamedTuple):
    """The static settings that a scoring program is compiled for."""

    softcap: float | None
    entropy: bool
    chunk_columns: int
    """Columns of each shard that a chunk takes, at most."""
    unused: Ranges
    """Ids that no token has."""


class _Chunk(NamedTuple):
    """Columns start .. start + v of every shard."""

    start: Int[Array, ""] | int
    embedding: Float[Array, "S v D"]
    ids: Int[Array, "S v"]
    """The token of each column."""
    counts: Bool[Array, "S 1 1 v"] | None
    """False where no token has the id, and for columns that an earlier chunk has had: the last
    chunk overlaps the one before it, so that all have the same width. None: all columns count."""


class _SoftmaxSums(NamedTuple):
    """Running sums over the logits l of a part of the vocabulary.

    Those of a single logit are (l, 1, 0, l if it is the chosen token's and else 0), so that sums
    and logits are reduced by the same function.
    """

    max_logit: Float[Array, "*rest"]
    """The largest l."""
    sum_exp: Float[Array, "*rest"] | float
    """sum(e) with e = exp(l - max_logit)."""
    sum_exp_gap: Float[Array, "*rest"] | float | None
    """sum(e * (l - max_logit)); None where no entropy is asked for."""
    chosen_logit: Float[Array, "*rest"]
    """The chosen token's l; 0 if it is not in this part."""


class _Residuals(NamedTuple):
    """The arrays that the backward pass needs."""

    hidden: Float[Array, "B N D"]
    embedding: Float[Array, "S columns D"]
    chosen: Int[Array, "B N"]
    temperature: Float[Array, ""]
    saved_products: Float[Array, "S B N columns"] | None
    """The products of the only chunk; None where there are several."""
    log_normalizer: Float[Array, "B N"]
    """log sum(exp(l)) over the vocabulary."""
    entropy: Float[Array, "B N"] | None


# JAX's own gradient of a loop over chunks would save the logits of every chunk: all of [B, T, V].
# The custom one saves a number a position, log_normalizer, and computes each chunk's logits again.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_scores(
    config: ScoreConfig,
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S columns D"],
    chosen: Int[Array, "B N"],
    temperature: Float[Array, ""],
) -> Scores:
    """Computes log p of the chosen tokens and, if the config asks for it, the entropy of p.

    The third result is the embedding, for its next use. In the backward pass its gradient comes in,
    that of the scores is added, and the sum goes out as the embedding's.

    Inside a shard_map all four arrays vary over the same axes (manual_axes.vary_alike).
    """
    scores, _ = _scores_forward(config, hidden, embedding, chosen, temperature)
    return scores


def _scores_forward(
    config: ScoreConfig,
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S columns D"],
    chosen: Int[Array, "B N"],
    temperature: Float[Array, ""],
) -> tuple[Scores, _Residuals]:
    """Computes the scores, and the residuals for the backward pass."""
    saved_products = None
    if config.chunk_columns >= embedding.shape[1]:
        saved_products = _chunk_products(hidden, embedding)
    sums = _softmax_sums(config, hidden, embedding, chosen, temperature, saved_products)
    log_sum_exp = jnp.log(sums.sum_exp)  # relative to max_logit
    entropy = None
    if sums.sum_exp_gap is not None:
        # -sum(p log p) with log p = (l - max_logit) - log_sum_exp
        entropy = log_sum_exp - sums.sum_exp_gap / sums.sum_exp
    logprobs = sums.chosen_logit - sums.max_logit - log_sum_exp
    residuals = _Residuals(
        hidden,
        embedding,
        chosen,
        temperature,
        saved_products,
        log_normalizer=sums.max_logit + log_sum_exp,
        entropy=entropy,
    )
    return (logprobs, entropy, embedding), residuals


def _softmax_sums(
    config: ScoreConfig,
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S columns D"],
    chosen: Int[Array, "B N"],
    temperature: Float[Array, ""],
    saved_products: Float[Array, "S B N columns"] | None,
) -> _SoftmaxSums:
    """Computes the sums over the whole vocabulary, [B, N]."""

    def add_chunk(sums: _SoftmaxSums, chunk: _Chunk) -> _SoftmaxSums:
        # 1. The chunk's logits, those that do not count replaced. [S, B, N, v]
        products = _chunk_products(hidden, chunk.embedding, saved_products)
        logits = cap_and_scale(products, temperature, config.softcap)
        is_chosen = _is_chosen(chosen, chunk)
        if chunk.counts is not None:
            logits = jnp.where(chunk.counts, logits, LOWEST)
            is_chosen &= chunk.counts
        chosen_logit = jnp.where(is_chosen, logits, 0.0)
        # 2. Their sums. [S, B, N]
        sum_exp_gap = 0.0 if config.entropy else None
        chunk_sums = _reduce_sums(
            _SoftmaxSums(logits, 1.0, sum_exp_gap, chosen_logit), axis=-1
        )
        # 3. Reduced with the sums of the chunks before. [2, S, B, N] -> [S, B, N]
        return _reduce_sums(jax.tree.map(_stack_pair, sums, chunk_sums), axis=0)

    # The shards' sums stay apart in the loop: only the last reduction crosses devices.
    zeros = jnp.zeros((embedding.shape[0], *chosen.shape), jnp.float32)  # [S, B, N]
    zeros = vary_like(zeros, hidden)
    empty = _SoftmaxSums(
        max_logit=zeros + LOWEST,
        sum_exp=zeros,
        sum_exp_gap=zeros if config.entropy else None,
        chosen_logit=zeros,
    )
    return _reduce_sums(
        _fold_chunks(add_chunk, empty, embedding, config), axis=0
    )  # [B, N]


def _stack_pair(first: Array, second: Array) -> Array:
    """Stacks two arrays along a new first axis."""
    return jnp.stack((first, second))


def _reduce_sums(sums: _SoftmaxSums, axis: int) -> _SoftmaxSums:
    """Computes the sums of all entries along the axis, relative to their common maximum.

    With g = max_logit - common maximum, each entry's e becomes e * exp(g), and its e * (l - max)
    becomes exp(g) * (e * (l - max) + e * g).
    """
    max_logit = sums.max_logit.max(axis)
    gap = sums.max_logit - jnp.expand_dims(max_logit, axis)
    scale = jnp.exp(gap)
    sum_exp_gap = None
    if sums.sum_exp_gap is not None:
        rescaled = scale * (sums.sum_exp_gap + sums.sum_exp * gap)
        # A chunk without any used id has sum_exp = v and gap = LOWEST. v * LOWEST overflows to
        # -inf, and 0 * -inf is NaN: hence the select. It also keeps XLA on CPUs from calling a
        # library product here, which takes ten times as long.
        sum_exp_gap = jnp.sum(jnp.where(scale > 0, rescaled, 0.0), axis)
    return _SoftmaxSums(
        max_logit=max_logit,
        sum_exp=jnp.sum(scale * sums.sum_exp, axis),
        sum_exp_gap=sum_exp_gap,
        chosen_logit=sums.chosen_logit.sum(axis),
    )


def _scores_backward(
    config: ScoreConfig,
    residuals: _Residuals,
    gradients: tuple[Gradient, Gradient | None, Gradient],
) -> tuple[Array, Array, None, None]:
    """Computes the gradients for hidden and embedding, a chunk at a time.

    gradients: those of log p, of the entropy, and of the embedding's next use
    """
    hidden, embedding, chosen, temperature, saved_products, log_normalizer, entropy = (
        residuals
    )
    # jax.checkpoint hands over a constant as NumPy's.
    temperature = jnp.asarray(temperature)
    d_logprob, d_entropy, d_next_use = gradients

    def add_chunk(sums: tuple[Array, Array], chunk: _Chunk) -> tuple[Array, Array]:
        d_hidden, d_embedding = sums
        # 1. The chunk's logits again, and the function that pulls a gradient back through softcap
        #    and temperature. [S, B, N, v]
        products = _chunk_products(hidden, chunk.embedding, saved_products)
        to_logits = partial(
            cap_and_scale, temperature=temperature, softcap=config.softcap
        )
        logits, pull_back = jax.vjp(to_logits, products)
        # 2. The gradient of the logits, then of the products. [S, B, N, v]
        logprobs = logits - log_normalizer[..., None]
        d_logits = _d_logits(
            logprobs, entropy, _is_chosen(chosen, chunk), d_logprob, d_entropy
        )
        if chunk.counts is not None:
            d_logits = jnp.where(chunk.counts, d_logits, 0.0)
        (d_products,) = pull_back(d_logits)
        d_products = d_products.astype(hidden.dtype)
        # 3. Added to hidden's whole gradient, and to these columns of the embedding's.
        d_hidden = d_hidden + einsum_float32(
            "sbnv,svd->sbnd", d_products, chunk.embedding.astype(hidden.dtype)
        )
        d_chunk = einsum_float32("sbnv,bnd->svd", d_products, hidden)
        so_far = jax.lax.dynamic_slice_in_dim(
            d_embedding, chunk.start, chunk.embedding.shape[1], axis=1
        )
        d_embedding = jax.lax.dynamic_update_slice_in_dim(
            d_embedding,
            (so_far + d_chunk).astype(d_embedding.dtype),
            chunk.start,
            axis=1,
        )
        return d_hidden, d_embedding

    # d_hidden is summed for each shard apart, and over the shards once, at the end: a sum in the
    # loop would cross devices at every chunk.
    zero_hidden = jnp.zeros(
        (embedding.shape[0], *hidden.shape), jnp.float32
    )  # [S, B, N, D]
    if isinstance(d_next_use, SymbolicZero):
        d_next_use = jnp.zeros_like(embedding)
    zeros = (vary_like(zero_hidden, hidden), vary_like(d_next_use, hidden))
    d_hidden, d_embedding = _fold_chunks(add_chunk, zeros, embedding, config)
    return d_hidden.sum(axis=0).astype(hidden.dtype), d_embedding, None, None


def _scores_forward_of_primals(
    config: ScoreConfig, *primals: CustomVJPPrimal
) -> tuple[Scores, _Residuals]:
    """Computes `_scores_forward` of arguments as custom_vjp hands them over with symbolic zeros."""
    return _scores_forward(config, *(primal.value for primal in primals))


# With symbolic zeros the backward pass knows which result nobody differentiated.
chunked_scores.defvjp(_scores_forward_of_primals, _scores_backward, symbolic_zeros=True)


def _d_logits(
    logprobs: Float[Array, "S B N v"],
    entropy: Float[Array, "B N"] | None,
    is_chosen: Bool[Array, "S B N v"],
    d_logprob: Gradient,
    d_entropy: Gradient | None,
) -> Float[Array, "S B N v"]:
    """Computes the gradient of the logits; a result that nobody differentiated costs nothing.

    (is_chosen - p) * d_logprob - p * (log p + H) * d_entropy
    """
    d_logprob = _per_column(d_logprob)
    d_log_p = d_logprob  # the factor of -p
    if (
        entropy is not None
        and d_entropy is not None
        and not isinstance(d_entropy, SymbolicZero)
    ):
        d_log_p = d_log_p + _per_column(d_entropy) * (logprobs + _per_column(entropy))
    return jnp.where(is_chosen, d_logprob, 0.0) - jnp.exp(logprobs) * d_log_p


def _per_column(values: Gradient) -> Float[Array, "B N 1"] | Float[Array, ""]:
    """Returns values of positions, to be broadcast over the columns of a chunk."""
    if isinstance(values, SymbolicZero):
        return jnp.zeros(())
    return values[..., None]


def _chunk_products(
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S v D"],
    saved_products: Float[Array, "S B N v"] | None = None,
) -> Float[Array, "S B N v"]:
    """Computes the dot products of a chunk, unless they were saved."""
    if saved_products is not None:
        return saved_products
    shards, columns, width = embedding.shape
    products = dot_products(hidden, embedding.reshape(-1, width))  # [B, N, S*v]
    products = products.reshape(*hidden.shape[:-1], shards, columns)  # [B, N, S, v]
    return jnp.moveaxis(products, -2, 0)  # [S, B, N, v]


def _is_chosen(chosen: Int[Array, "B N"], chunk: _Chunk) -> Bool[Array, "S B N v"]:
    """Returns True at the column of the token that each position chose."""
    return chosen[..., None] == chunk.ids[:, None, None]


def _fold_chunks(
    add_chunk: Callable[[State, _Chunk], State],
    state: State,
    embedding: Float[Array, "S columns D"],
    config: ScoreConfig,
) -> State:
    """Returns the state after add_chunk(state, chunk) for every chunk of the vocabulary."""
    shards, columns, _ = embedding.shape
    num_chunks = ceil_div(columns, config.chunk_columns)
    # As few columns as make num_chunks chunks, a multiple of LANES: the last overlaps less then.
    even_columns = ceil_div(columns, num_chunks * LANES) * LANES
    chunk_columns = min(config.chunk_columns, even_columns)
    used_mask = None
    if config.unused:
        used_mask = jnp.asarray(used_ids(shards * columns, config.unused))

    def step(index: Int[Array, ""] | int, state: State) -> State:
        # The last chunk begins earlier where it would reach past the end of the shard.
        start = jnp.minimum(index * chunk_columns, columns - chunk_columns)
        shard_starts = jnp.arange(shards)[:, None] * columns  # [S, 1]
        ids = shard_starts + start + jnp.arange(chunk_columns)  # [S, v]
        counts = None
        if columns % chunk_columns:
            is_new = start + jnp.arange(chunk_columns) >= index * chunk_columns  # [v]
            counts = is_new[None, None, None]
        if used_mask is not None:
            is_used = used_mask[ids][:, None, None]
            counts = is_used if counts is None else counts & is_used
        chunk = _Chunk(
            start=start,
            embedding=jax.lax.dynamic_slice_in_dim(
                embedding, start, chunk_columns, axis=1
            ),
            ids=ids,
            counts=counts,
        )
        return add_chunk(state, chunk)

    if num_chunks == 1:
        return step(0, state)
    return jax.lax.fori_loop(0, num_chunks, step, state)


def ceil_div(dividend: int, divisor: int) -> int:
    """Returns the quotient, rounded up."""
    return -(-dividend // divisor)
