"""The device's half of sampling: read prompts, put them into free slots, choose tokens for all slots that are live.

A slot is a row with a prompt and a length of its own. Its keys and values lie in two parts: the prompt's, W columns padded on
the left, and the recent ones, a ring of R columns. In the ring all slots write the same column, `clock`, at each step: one
contiguous update in place where columns of their own would be a scatter. How many of the columns before `clock` are a slot's
own, its `written` says. Rotary positions are applied before keys are stored, so the order of columns does not matter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxgrpo.device.logprobs import Ranges, to_logits, used_ids
from jaxgrpo.models import transformer
from jaxgrpo.models.transformer import UNCONSTRAINED, ActivationShardings, KeyValues, ModelConfig
from jaxgrpo.types import Params


class Prefilled(NamedTuple):
    """Prompts that have been read; any number of slots may start from each."""

    key_values: KeyValues
    """[A K E W] and [A K W E] of each layer."""
    hidden: Float[Array, "A D"]
    """The last hidden state: it decides the first token."""
    length: Int[Array, "A"]


class DecodeState(NamedTuple):
    """S rows in the making. A row that is not live chooses nothing; what it holds does not matter."""

    prompt: KeyValues
    """[S K E W] and [S K W E] of each layer."""
    recent: KeyValues
    """[S K E R] and [S K R E] of each layer, a ring."""
    clock: Int[Array, ""]
    """The ring's column that is written next."""
    hidden: Float[Array, "S D"]
    """The last hidden state of each row: it decides the next token."""
    prompt_length: Int[Array, "S"]
    written: Int[Array, "S"]
    """How many tokens the row has chosen; at most R."""
    limit: Int[Array, "S"]
    """How many it may choose."""
    live: Bool[Array, "S"]
    keys: UInt32[Array, "S 2"]


class NewRows(NamedTuple):
    """Rows that are to start, M of them; a slot of S (one past the last) means none."""

    slot: Int[Array, "M"]
    source: Int[Array, "M"]
    """Which of the prefilled prompts."""
    limit: Int[Array, "M"]
    keys: UInt32[Array, "M 2"]
    """Random key data of each row: a function of (seed, step, purpose, problem, sample)."""


class How(NamedTuple):
    """How tokens are drawn; all of it is traced."""

    temperature: Float[Array, ""] | float = 1.0
    """0: always the likeliest token. Log-probabilities are then those at temperature 1."""
    top_k: Int[Array, ""] | int = 0
    """Only the k likeliest tokens (0: all)."""
    top_p: Float[Array, ""] | float = 1.0
    """Only the likeliest tokens that together have this probability (arXiv 1904.09751)."""
    min_p: Float[Array, ""] | float = 0.0
    """Only tokens at least this probable, as a share of the likeliest (arXiv 2407.01082)."""
    min_tokens: Int[Array, ""] | int = 0
    """No end token before the row has so many."""


class DecodeOutput(NamedTuple):
    """What a call of `decode` chose: row s chose n[s] tokens, tokens[s, :n[s]]."""

    tokens: Int[Array, "S C"]
    logprobs: Float[Array, "S C"]
    n: Int[Array, "S"]
    live: Bool[Array, "S"]
    """Whether the row goes on."""
    ended: Bool[Array, "S"]
    """Whether it chose an end token."""
    steps: Int[Array, ""]
    """How many were made."""


def sample_categorical(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], block: int = 64
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token from softmax(logits) by the inverse of its cumulative distribution; also its log-probability.

    One uniform number in [0, 1) a row, where Gumbel noise needs V of them. The cumulative sum is taken over blocks, then
    inside the block that was hit: two short sums, where one over V is slow and, in float32, coarse.
    """
    rows, vocabulary = logits.shape
    largest = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.pad(jnp.exp(logits - largest), ((0, 0), (0, -vocabulary % block))).reshape(
        rows, -1, block
    )
    masses = weights.sum(axis=-1)
    total = masses.sum(axis=-1, keepdims=True)
    which, rest = _hit(masses, uniform[:, None] * total)
    offset, _ = _hit(jnp.take_along_axis(weights, which[..., None], axis=1)[:, 0], rest)
    token = which * block + offset
    return token[:, 0], (jnp.take_along_axis(logits, token, axis=1) - largest - jnp.log(total))[
        :, 0
    ]


def _hit(
    weights: Float[Array, "B n"], target: Float[Array, "B 1"]
) -> tuple[Int[Array, "B 1"], Float[Array, "B 1"]]:
    """Which weight the target falls on where they are laid end to end, and how far into it. Never on a weight of 0: where
    rounding leads there, or past the end, on the largest."""
    ends = jnp.cumsum(weights, axis=-1)
    index = jnp.minimum(jnp.sum(ends <= target, axis=-1, keepdims=True), weights.shape[-1] - 1)
    of = lambda array: jnp.take_along_axis(array, index, axis=-1)
    into = target - (of(ends) - of(weights))
    return jnp.where(of(weights) > 0, index, jnp.argmax(weights, axis=-1, keepdims=True)), into


def truncate_logits(logits: Float[Array, "B V"], how: How) -> Float[Array, "B V"]:
    """The logits with -inf for what top-k, top-p and min-p leave out, in this order; the likeliest token always stays."""

    def least(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        k = jnp.where(how.top_k > 0, how.top_k, logits.shape[-1])
        ranked = jnp.where(jnp.arange(logits.shape[-1]) < k, ranked, -jnp.inf)
        before = jnp.cumsum(jax.nn.softmax(ranked), axis=-1) - jax.nn.softmax(ranked)
        kept = jnp.where((before < how.top_p) & (ranked > -jnp.inf), ranked, jnp.inf)
        least = jnp.minimum(jnp.min(kept, axis=-1, keepdims=True), ranked[:, :1])
        # log(0) = -inf: without min-p everything is at least as likely.
        return jnp.maximum(least, ranked[:, :1] + jnp.log(jnp.asarray(how.min_p, jnp.float32)))

    cuts = (how.top_k > 0) | (how.top_p < 1.0) | (how.min_p > 0.0)
    # The bound is chosen, not the logits: these would be copied.
    bound = jax.lax.cond(cuts, least, lambda logits: jnp.full_like(logits[:, :1], -jnp.inf), logits)
    return jnp.where(logits >= bound, logits, -jnp.inf)


def next_token(
    hidden: Float[Array, "S D"],
    embedding: Float[Array, "V D"],
    uniform: Float[Array, "S"],
    written: Int[Array, "S"],
    how: How,
    ends: tuple[int, ...],
    softcap: float | None = None,
    place: Callable = lambda logits: logits,
    unused: Ranges = (),
) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """The next token of each row and its log-probability, by one uniform number a row.

    softcap: as of to_logits. place: logits -> the same where rows are drawn from. unused: ids that no token has
    """
    greedy = jnp.asarray(how.temperature == 0)
    logits = place(to_logits(hidden, embedding, jnp.where(greedy, 1.0, how.temperature), softcap))
    if unused:
        logits = jnp.where(used_ids(logits.shape[-1], unused), logits, -jnp.inf)
    is_end = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(ends))
    logits = jnp.where(is_end & (written < how.min_tokens)[:, None], -jnp.inf, logits)
    logits = truncate_logits(logits, how)
    # A choice, not a selection: the place of the largest takes as long to find as all else here together.
    return jax.lax.cond(greedy, argmax_token, sample_categorical, logits, uniform)


def argmax_token(
    logits: Float[Array, "B V"], _: Any = None
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The token with the largest logit, the first if there are several, and its log-probability."""
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def row_uniforms(
    keys: UInt32[Array, "S 2"], first: Int[Array, "S"], count: int
) -> Float[Array, "S {count}"]:
    """Numbers in [0, 1): those of each row's tokens first, first + 1, ... A function of the row's key and the token's number
    alone."""
    wrap = partial(jax.random.wrap_key_data, impl="threefry2x32")
    one = lambda key, n: jax.random.uniform(jax.random.fold_in(wrap(key), n))
    return jax.vmap(jax.vmap(one, (None, 0)))(keys, first[:, None] + jnp.arange(count))


def prefill(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "A W"],
    mask: Bool[Array, "A W"],
    *,
    dtype: DTypeLike,
    whole: Callable = lambda segments: None,
    places: ActivationShardings = UNCONSTRAINED,
) -> Prefilled:
    """Reads prompts, padded on the left. whole: segments -> what attends, as splash.attention; None: transformer.attend."""
    positions, reads = transformer.sequence_positions(mask), transformer.sequence_mask(mask)
    forward = partial(
        transformer.forward, config, params, dtype=dtype, whole=whole(mask), places=places
    )
    hidden, key_values = forward(tokens, positions, reads)
    return Prefilled(key_values, hidden[:, -1], mask.sum(axis=1, dtype=jnp.int32))


def empty(
    config: ModelConfig, *, slots: int, prompt_width: int, ring: int, dtype: DTypeLike
) -> DecodeState:
    """No row is live."""

    def cache(columns: int) -> KeyValues:
        zeros = lambda *sizes: jnp.zeros((slots, config.kv_heads, *sizes), dtype)
        each = config.head_width, columns
        return tuple((zeros(*each), zeros(*each[::-1])) for _ in range(config.layers))

    numbers = lambda: jnp.zeros(slots, jnp.int32)
    return DecodeState(
        prompt=cache(prompt_width),
        recent=cache(ring),
        clock=jnp.int32(0),
        hidden=jnp.zeros((slots, config.width), dtype),
        prompt_length=numbers(),
        written=numbers(),
        limit=numbers(),
        live=jnp.zeros(slots, bool),
        keys=jnp.zeros((slots, 2), jnp.uint32),
    )


def insert(slots: DecodeState, prefilled: Prefilled, starts: NewRows) -> DecodeState:
    """Rows start from prefilled prompts in the slots given. Of the ring nothing is theirs yet, and so none of it changes."""
    put = lambda array, new: array.at[starts.slot].set(new.astype(array.dtype), mode="drop")
    take = lambda array, new: put(array, new[starts.source])
    nothing = jnp.zeros_like(starts.slot)
    return slots._replace(
        prompt=jax.tree.map(take, slots.prompt, prefilled.key_values),
        hidden=take(slots.hidden, prefilled.hidden),
        prompt_length=take(slots.prompt_length, prefilled.length),
        written=put(slots.written, nothing),
        limit=put(slots.limit, starts.limit),
        live=put(slots.live, starts.limit > 0),
        keys=put(slots.keys, starts.keys),
    )


def decode(
    config: ModelConfig,
    params: Params,
    slots: DecodeState,
    halt: Bool[Array, "S"],
    how: How,
    most_steps: Int[Array, ""],
    leave_at: Int[Array, ""],
    *,
    chunk: int,
    ends: tuple[int, ...],
    dtype: DTypeLike,
    places: ActivationShardings = UNCONSTRAINED,
) -> tuple[DecodeState, DecodeOutput]:
    """Chooses tokens for all live rows but those in `halt`, step after step: at most min(most_steps, chunk) of them, and none
    once no more than leave_at rows are live. No row may come to have more tokens than the ring has columns."""
    slots = slots._replace(live=slots.live & ~halt)
    rows = slots.live.shape[0]
    chosen = DecodeOutput(
        tokens=jnp.zeros((rows, chunk), jnp.int32),
        logprobs=jnp.zeros((rows, chunk), jnp.float32),
        n=jnp.zeros(rows, jnp.int32),
        live=slots.live,
        ended=jnp.zeros(rows, bool),
        steps=jnp.int32(0),
    )
    embedding = transformer.output_embedding(params)
    softcap, unused = config.logit_softcap, config.unused_ids
    # A row that is live has been so from the first step, and has chosen a token at each.
    uniform = row_uniforms(slots.keys, slots.written, chunk)

    def goes_on(state: tuple[DecodeState, DecodeOutput]) -> Array:
        slots, chosen = state
        return (chosen.steps < jnp.minimum(most_steps, chunk)) & (slots.live.sum() > leave_at)

    def step(state: tuple[DecodeState, DecodeOutput]) -> tuple[DecodeState, DecodeOutput]:
        slots, chosen = state
        number = jax.lax.dynamic_index_in_dim(uniform, chosen.steps, axis=1, keepdims=False)
        hidden = places.layer(slots.hidden)
        token, logprob = next_token(
            hidden, embedding, number, slots.written, how, ends, softcap, places.logits, unused
        )
        write = lambda array, new: jax.lax.dynamic_update_slice_in_dim(
            array, new[:, None], chosen.steps, axis=1
        )
        ended = slots.live & jnp.isin(token, jnp.array(ends))
        n = slots.live.astype(jnp.int32)
        moved = _read(
            config, params, slots._replace(written=slots.written + n), token, dtype, places
        )
        live = slots.live & ~ended & (moved.written < slots.limit)
        chosen = DecodeOutput(
            write(chosen.tokens, token),
            write(chosen.logprobs, logprob),
            chosen.n + n,
            live,
            chosen.ended | ended,
            chosen.steps + 1,
        )
        return moved._replace(live=live), chosen

    return jax.lax.while_loop(goes_on, step, (slots, chosen))


def _read(
    config: ModelConfig,
    params: Params,
    slots: DecodeState,
    token: Int[Array, "S"],
    dtype: DTypeLike,
    places: ActivationShardings,
) -> DecodeState:
    """Every row's newest token, already counted, is read: into the ring's column at the clock, and to a new hidden state."""
    width, ring = slots.prompt[0][1].shape[2], slots.recent[0][1].shape[2]
    position = (slots.prompt_length + slots.written - 1)[:, None]
    of_prompt = jnp.arange(width) >= width - slots.prompt_length[:, None]
    age = (slots.clock - jnp.arange(ring)) % ring
    of_ring = age < slots.written[:, None]
    positions = [jnp.arange(width) - width + slots.prompt_length[:, None], position - age]
    hidden, recent = transformer.forward(
        config,
        params,
        token[:, None],
        position,
        jnp.concatenate([of_prompt, of_ring], axis=1)[:, None],
        transformer.KVCache(slots.prompt, slots.recent, slots.clock),
        dtype=dtype,
        places=places,
        key_positions=jnp.concatenate(positions, axis=1),
    )
    clock = (slots.clock + 1) % ring
    last = places.layer(hidden[:, 0])  # as a layer's input, or the last matrices would move
    return slots._replace(recent=recent, clock=clock, hidden=last.astype(slots.hidden.dtype))


def grow(slots: DecodeState, *, ring: int) -> DecodeState:
    """The same rows with a longer ring: the old columns, oldest first, then new ones."""
    old = slots.recent[0][1].shape[2]

    def widen(x: Array, axis: int) -> Array:
        x = jnp.roll(x, -slots.clock, axis)
        return jnp.pad(x, [(0, ring - old if i == axis else 0) for i in range(x.ndim)])

    recent = tuple((widen(keys, 3), widen(values, 2)) for keys, values in slots.recent)
    return slots._replace(recent=recent, clock=jnp.int32(old))


def compact(slots: DecodeState, rows: Int[Array, "S2"]) -> DecodeState:
    """Slots with only these rows, in this order."""
    return jax.tree.map(lambda x: x[rows] if x.ndim else x, slots)
