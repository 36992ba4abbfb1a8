"""The device's half of sampling: read each prompt once, then choose a token for every row until all have ended."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from jaxgrpo.logprobs import to_logits
from jaxgrpo.models import transformer
from jaxgrpo.models.transformer import KeyValues, ModelConfig
from jaxgrpo.types import Params, Prompts, Rollout


class SamplerState(NamedTuple):
    """What one decoding step hands to the next; every row is at the same column."""

    column: Int[Array, ""]
    """The next column to be chosen, W .. T."""
    cache: KeyValues
    hidden: Float[Array, "B D"]
    """The last hidden state of each row: it decides the next token."""
    rollout: Rollout
    """Columns before `column` are final; `finished` rows choose nothing more."""


def choose(
    logits: Float[Array, "B V"], uniform: Float[Array, "B"], block: int = 64
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Draws a token from softmax(logits) by the inverse of its cumulative distribution; also its log-probability.

    One uniform number in [0, 1) a row, where Gumbel noise needs V of them. The cumulative sum is taken over blocks, then
    inside the block that was hit: two short sums, where one over V is slow and, in float32, coarse.
    """
    logprobs = jax.nn.log_softmax(logits)
    rows, vocabulary = logits.shape
    probs = jnp.pad(jnp.exp(logprobs), ((0, 0), (0, -vocabulary % block))).reshape(rows, -1, block)
    tops = jnp.cumsum(probs.sum(axis=-1), axis=-1)
    target = (uniform * tops[:, -1])[:, None]
    which = jnp.minimum(jnp.sum(tops <= target, axis=-1, keepdims=True), tops.shape[1] - 1)
    below = jnp.where(which > 0, jnp.take_along_axis(tops, jnp.maximum(which - 1, 0), axis=1), 0.0)
    inside = jnp.cumsum(jnp.take_along_axis(probs, which[..., None], axis=1)[:, 0], axis=-1)
    offset = jnp.sum(inside <= target - below, axis=-1, keepdims=True)
    token = which * block + offset
    # Rounding may step past the last token with any probability: fall back to the likeliest, never to one of probability 0.
    chosen_logprob = jnp.take_along_axis(logprobs, jnp.minimum(token, vocabulary - 1), axis=1)
    valid = (offset < block) & (token < vocabulary) & (chosen_logprob > -jnp.inf)
    token = jnp.where(valid, token, jnp.argmax(logits, axis=-1, keepdims=True))
    return token[:, 0], jnp.take_along_axis(logprobs, token, axis=1)[:, 0]


def uniforms(keys: UInt32[Array, "B 2"], column: Int[Array, ""]) -> Float[Array, "B"]:
    """One number in [0, 1) a row, a function of the row's key and the column alone."""
    fold = lambda key: jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), column))
    return jax.vmap(fold)(keys)


def start(
    config: ModelConfig, params: Params, prompts: Prompts, new_tokens: int, pad: int, dtype: DTypeLike
) -> SamplerState:
    """Reads each prompt once and hands its keys, values and last hidden state to its G rows."""
    group = prompts.keys.shape[1]
    mask = prompts.attention_mask
    hidden, key_values = transformer.forward(
        config,
        params,
        prompts.tokens,
        transformer.sequence_positions(mask),
        transformer.sequence_mask(mask),
        dtype=dtype,
    )
    repeat = partial(jnp.repeat, repeats=group, axis=0)
    widen = lambda x, value=0: jnp.pad(x, ((0, 0), (0, new_tokens)), constant_values=value)
    cache = jax.tree.map(lambda x: jnp.pad(repeat(x), ((0, 0), (0, 0), (0, new_tokens), (0, 0))), key_values)
    tokens = repeat(widen(prompts.tokens, pad))
    rollout = Rollout(
        tokens=tokens,
        attention_mask=repeat(widen(mask)),
        completion_mask=jnp.zeros(tokens.shape, bool),
        logprobs=jnp.zeros(tokens.shape, jnp.float32),
        finished=repeat(~mask.any(axis=1)),  # filler rows have nothing to say
    )
    return SamplerState(jnp.int32(mask.shape[1]), cache, repeat(hidden[:, -1]), rollout)


def decode(
    config: ModelConfig,
    params: Params,
    state: SamplerState,
    keys: UInt32[Array, "B 2"],
    temperature: Float[Array, ""],
    ends: tuple[int, ...],
    dtype: DTypeLike,
) -> SamplerState:
    """Chooses one token for every row that has not ended, writes it, and reads it."""
    column, cache, hidden, rollout = state
    live = ~rollout.finished
    logits = to_logits(hidden, transformer.output_embedding(params), temperature)
    token, logprob = choose(logits, uniforms(keys, column))

    def write(array: Array, new: Array) -> Array:
        old = jax.lax.dynamic_slice_in_dim(array, column, 1, axis=1)[:, 0]
        new = jnp.where(live, new, old).astype(array.dtype)
        return jax.lax.dynamic_update_slice_in_dim(array, new[:, None], column, axis=1)

    rollout = Rollout(
        tokens=write(rollout.tokens, token),
        attention_mask=write(rollout.attention_mask, live),
        completion_mask=write(rollout.completion_mask, live),
        logprobs=write(rollout.logprobs, logprob),
        finished=rollout.finished | jnp.isin(token, jnp.array(ends)),
    )
    position = rollout.attention_mask.sum(axis=1, dtype=jnp.int32) - 1
    hidden, cache = transformer.forward(
        config,
        params,
        token[:, None],
        jnp.maximum(position, 0)[:, None],
        rollout.attention_mask[:, None],
        cache,
        column,
        dtype=dtype,
    )
    return SamplerState(column + 1, cache, hidden[:, 0], rollout)


def sample(
    config: ModelConfig,
    params: Params,
    prompts: Prompts,
    temperature: Float[Array, ""],
    *,
    new_tokens: int,
    ends: tuple[int, ...],
    pad: int,
    dtype: DTypeLike = jnp.float32,
) -> Rollout:
    """G completions of each prompt, each of at most N = new_tokens tokens; stops early when every row has ended.

    A row's text is a function of its prompt, its key, the parameters and the temperature: neither of its neighbours nor of
    its place. Its end token is part of the completion and nothing follows it.
    """
    state = start(config, params, prompts, new_tokens, pad, dtype)
    keys = prompts.keys.reshape(-1, 2)
    width = state.rollout.tokens.shape[1]
    running = lambda state: (state.column < width) & ~state.rollout.finished.all()
    step = lambda state: decode(config, params, state, keys, temperature, ends, dtype)
    return jax.lax.while_loop(running, step, state).rollout
