"""Log-probabilities of chosen tokens, and entropies, over vocabularies whose logits are too many to hold at once.

The vocabulary is taken in chunks. Forward, each chunk's logits are folded into running sums; backward they are computed
again. So [B, T, V] is never there, rows stay where the mesh has them, and each part of the embedding's gradient is written
once: over chunks of rows, all of it would be read and written for every chunk. Where one chunk holds all logits, it is kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

BUDGET = 2**25
"""The float32 logits of one chunk, over all rows, unless `chunk` says otherwise: 134 MB."""

LEAST, LANES = 1024, 128
"""The narrowest chunk that the budget leads to, and what its part of each shard is a multiple of."""

LOWEST = float(jnp.finfo(jnp.float32).min)
"""In place of a logit that does not count: minus infinity would make 0 * infinity of it."""

State = TypeVar("State")

Ranges = tuple[tuple[int, int], ...]
"""Ids as (first, end) pairs; the end is not among them."""


def used_ids(vocabulary: int, unused: Ranges) -> Bool[np.ndarray, "V"]:
    """Returns which rows of an embedding belong to a token.

    Embeddings are often padded: Qwen2.5 has 151,936 rows for 151,665 tokens. A row without a token
    has no text and no training, so it is neither sampled nor part of any softmax.

    unused: the ids that no token has
    """
    used = np.ones(vocabulary, bool)
    for first, end in unused:
        used[first:end] = False
    return used


def to_logits(
    hidden: Float[Array, "*rows D"],
    embedding: Float[Array, "V D"],
    temperature: Float[Array, ""] | float,
    softcap: float | None = None,
) -> Float[Array, "*rows V"]:
    """float32 logits at a temperature, cap * tanh(logits / cap) before it; the sampler and the scorer both use this one.

    softcap: the bound on the logits that Gemma 2 was trained with; None leaves them as they are.
    """
    return _finish(_products(hidden, embedding), temperature, softcap)


def token_logprobs(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    tokens: Int[Array, "B T"],
    temperature: Float[Array, ""] | float,
    start: int = 1,
    *,
    softcap: float | None = None,
    entropy: bool = False,
    chunk: int | None = None,
    shards: int = 1,
    unused: Ranges = (),
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Log-probability of each token given those before it and, if asked for, the entropy of what it was chosen from; nats.

        p = softmax(to_logits(hidden[t - 1]))    logprobs[t] = log p[tokens[t]]    entropy[t] = -sum(p * log p)

    Entry t is about choosing token t, which the hidden state of column t - 1 decides: the only place that shifts. Entries
    before column `start` (>= 1) are 0 and cost nothing: pass the prompt width to score completions alone.

    Both have gradients for hidden and embedding, in the dtypes of these; the temperature is a constant to them. Where nothing
    is made of the entropy's gradient (a metric, stop_gradient) the backward pass does not compute it. Products are of
    hidden's dtype and summed in float32.

    chunk: columns of logits held at once; by default what BUDGET allows, and at least LEAST. shards: into how many parts the
    mesh divides the embedding's first axis; each chunk takes as much of every part, and so none moves. ValueError if the
    vocabulary does not divide by it. unused: ids that no token has; p is 0 for them and they get no gradient.
    """
    (rows, width), (vocabulary, _) = tokens.shape, embedding.shape
    if vocabulary % shards:
        raise ValueError(
            f"a vocabulary of {vocabulary} cannot be divided into shards={shards} equal parts"
        )
    columns = chunk or max(
        LEAST, BUDGET // max(1, rows * (width - start)) // (LANES * shards) * LANES * shards
    )
    form = _Form(softcap, entropy, min(-(-columns // shards), vocabulary // shards), unused)
    parts = embedding.reshape(shards, vocabulary // shards, -1)
    scores = _score(
        form,
        hidden[:, start - 1 : -1],
        parts,
        tokens[:, start:],
        jnp.asarray(temperature, jnp.float32),
    )
    return jax.tree.map(lambda score: jnp.pad(score, ((0, 0), (start, 0))), scores)


class _Form(NamedTuple):
    """What a compiled program is made for."""

    softcap: float | None
    entropy: bool
    size: int
    """The columns of each shard that a chunk takes."""
    unused: Ranges = ()
    """Ids that no token has."""


class _Chunk(NamedTuple):
    """The columns first .. first + v of each shard."""

    first: Int[Array, ""] | int
    embedding: Float[Array, "S v D"]
    ids: Int[Array, "S v"]
    """Their tokens."""
    fresh: Bool[Array, "v"]
    """Not in an earlier chunk: the last one reaches back, to be as wide as the others."""
    used: Bool[Array, "S 1 1 v"] | bool
    """Whether a token has the id."""


class _Sums(NamedTuple):
    """What is kept of logits l; of a single logit it is (l, 1, 0, l if it is the chosen token's, else 0)."""

    largest: Float[Array, "*rest"]
    """The largest l."""
    total: Float[Array, "*rest"] | float
    """sum(e), with e = exp(l - largest)."""
    weighted: Float[Array, "*rest"] | float | None
    """sum(e * (l - largest)); None where no entropy is asked for."""
    chosen: Float[Array, "*rest"]
    """The chosen token's l; 0 if it is not among these."""


def _products(
    hidden: Float[Array, "*rows D"], embedding: Float[Array, "V D"]
) -> Float[Array, "*rows V"]:
    return jnp.einsum(
        "...d,vd->...v", hidden, embedding.astype(hidden.dtype), preferred_element_type=jnp.float32
    )


def _finish(
    products: Float[Array, "*logits"], temperature: Float[Array, ""] | float, softcap: float | None
) -> Float[Array, "*logits"]:
    if softcap is not None:
        products = softcap * jnp.tanh(products / softcap)
    return products / temperature


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _score(form: _Form, *arrays: Array) -> tuple[Array, Array | None]:
    return _score_forward(form, *arrays)[0]


def _score_forward(
    form: _Form, *arrays: Array
) -> tuple[tuple[Array, Array | None], tuple[Array | None, ...]]:
    """log p of the chosen tokens and, if the form asks for it, the entropy of p; then what the backward pass needs."""
    hidden, embedding, chosen, temperature = arrays
    kept = _chunk_products(hidden, embedding) if form.size >= embedding.shape[1] else None
    sums = _sum_up(form, hidden, embedding, chosen, temperature, kept)
    log_total = jnp.log(sums.total)
    entropy = None if sums.weighted is None else log_total - sums.weighted / sums.total
    return (sums.chosen - sums.largest - log_total, entropy), (
        *arrays,
        kept,
        sums.largest + log_total,
        entropy,
    )


def _sum_up(
    form: _Form,
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S v D"],
    chosen: Int[Array, "B N"],
    temperature: Float[Array, ""],
    kept: Float[Array, "S B N v"] | None,
) -> _Sums:
    """The sums over the whole vocabulary, [B N]; those of the shards stay apart until the end."""

    def add(sums: _Sums, chunk: _Chunk) -> _Sums:
        logits = _finish(_chunk_products(hidden, chunk.embedding, kept), temperature, form.softcap)
        counts = chunk.fresh & chunk.used
        logits = jnp.where(counts, logits, LOWEST)
        picked = jnp.where(counts & _is_chosen(chosen, chunk), logits, 0.0)
        new = _merge(_Sums(logits, 1.0, 0.0 if form.entropy else None, picked), axis=-1)
        return _merge(jax.tree.map(lambda *pair: jnp.stack(pair), sums, new), axis=0)

    zeros = jnp.zeros((embedding.shape[0], *chosen.shape), jnp.float32)
    nothing = _Sums(zeros + LOWEST, zeros, zeros if form.entropy else None, zeros)
    return _merge(_over_chunks(add, nothing, embedding, form), axis=0)


def _merge(sums: _Sums, axis: int) -> _Sums:
    """The sums of everything along the axis."""
    largest = sums.largest.max(axis)
    gap = sums.largest - jnp.expand_dims(largest, axis)
    scale = jnp.exp(gap)
    weighted = None
    if sums.weighted is not None:
        # The select changes nothing. Without it XLA has a library multiply and sum, on CPUs, which takes ten times as long.
        weighted = jnp.sum(
            jnp.where(scale > 0, scale * (sums.weighted + sums.total * gap), 0.0), axis
        )
    return _Sums(largest, jnp.sum(scale * sums.total, axis), weighted, sums.chosen.sum(axis))


def _score_backward(form: _Form, residuals: Any, gradients: Any) -> tuple[Array, Array, None, None]:
    """For each chunk its logits, their gradient, and that one's products: the parts of both results.

    d_hidden is summed for each shard apart, and over the shards once, at the end.
    """
    hidden, embedding, chosen, temperature, kept, log_normalizer, entropy = residuals
    temperature = jnp.asarray(temperature)  # jax.checkpoint hands over a constant as NumPy's
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add(sums: tuple[Array, Array], chunk: _Chunk) -> tuple[Array, Array]:
        finish = lambda products: _finish(products, temperature, form.softcap)
        logits, pull = jax.vjp(finish, _chunk_products(hidden, chunk.embedding, kept))
        d_logits = _d_logits(
            logits - log_normalizer[..., None], entropy, _is_chosen(chosen, chunk), *gradients
        )
        if form.unused:
            d_logits = jnp.where(chunk.used, d_logits, 0.0)
        d_products = pull(d_logits)[0].astype(hidden.dtype)
        fresh = jnp.where(jnp.expand_dims(chunk.fresh, -1), chunk.embedding, 0).astype(hidden.dtype)
        d_hidden = sums[0] + product("sbnv,svd->sbnd", d_products, fresh)
        d_chunk = product("sbnv,bnd->svd", d_products, hidden).astype(embedding.dtype)
        return d_hidden, jax.lax.dynamic_update_slice_in_dim(sums[1], d_chunk, chunk.first, axis=1)

    zeros = jnp.zeros((embedding.shape[0], *hidden.shape), jnp.float32), jnp.zeros_like(embedding)
    d_hidden, d_embedding = _over_chunks(add, zeros, embedding, form)
    return d_hidden.sum(axis=0).astype(hidden.dtype), d_embedding, None, None


_score.defvjp(
    lambda form, *arrays: _score_forward(form, *(array.value for array in arrays)),
    _score_backward,
    symbolic_zeros=True,
)


def _d_logits(
    logprobs: Float[Array, "S B N v"],
    entropy: Float[Array, "B N"] | None,
    is_chosen: Bool[Array, "S B N v"],
    d_logprob: Any,
    d_entropy: Any,
) -> Float[Array, "S B N v"]:
    """(is_chosen - p) * d_logprob - p * (log p + H) * d_entropy; what nobody differentiated costs nothing."""
    wide = lambda x: jnp.zeros(()) if isinstance(x, SymbolicZero) else x[..., None]
    share = wide(d_logprob)
    if entropy is not None and not isinstance(d_entropy, SymbolicZero):
        share = share + wide(d_entropy) * (logprobs + wide(entropy))
    return jnp.where(is_chosen, wide(d_logprob), 0.0) - jnp.exp(logprobs) * share


def _chunk_products(
    hidden: Float[Array, "B N D"],
    embedding: Float[Array, "S v D"],
    kept: Float[Array, "S B N v"] | None = None,
) -> Float[Array, "S B N v"]:
    if kept is not None:
        return kept
    products = _products(hidden, embedding.reshape(-1, hidden.shape[-1]))
    return jnp.moveaxis(products.reshape(*hidden.shape[:-1], *embedding.shape[:-1]), -2, 0)


def _is_chosen(chosen: Int[Array, "B N"], chunk: _Chunk) -> Bool[Array, "S B N v"]:
    return chosen[..., None] == chunk.ids[:, None, None]


def _over_chunks(
    add: Callable[[State, _Chunk], State],
    state: State,
    embedding: Float[Array, "S columns D"],
    form: _Form,
) -> State:
    """add(state, chunk) for chunks of form.size columns, or a little less where that makes them more even."""
    shards, columns, _ = embedding.shape
    count = -(-columns // form.size)
    size = min(form.size, -(-columns // (count * LANES)) * LANES)
    used_mask = jnp.asarray(used_ids(shards * columns, form.unused)) if form.unused else None

    def step(index: Int[Array, ""] | int, state: State) -> State:
        first = jnp.minimum(index * size, columns - size)
        ids = jnp.arange(shards)[:, None] * columns + first + jnp.arange(size)
        part = jax.lax.dynamic_slice_in_dim(embedding, first, size, axis=1)
        used = True if used_mask is None else used_mask[ids][:, None, None]
        return add(state, _Chunk(first, part, ids, first + jnp.arange(size) >= index * size, used))

    return step(0, state) if count == 1 else jax.lax.fori_loop(0, count, step, state)
