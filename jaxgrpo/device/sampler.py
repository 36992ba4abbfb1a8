"""The device's half of sampling: prefill prompts, insert rows into free slots, decode all slots.

A slot holds one row: a prompt of its own length and the tokens that the row has chosen so far. Its
keys and values lie in a ring cache of R columns: in each decode step all slots write the same
column, `ring_position`, which is one contiguous update in place, where a column of each slot's own
would be a scatter. A prompt is put right before that column, so that of each slot the last
`prompt_length + num_generated` columns before it are the row's, and R need not be more than the
longest row that is there. Rotary positions are applied before keys are stored, so the order of the
columns does not matter.

Axes: S slots, A prompts of a prefill, M rows of an insert, W prompt width, R ring length, C tokens
of a decode call, V vocabulary, D model width, K key-value heads, E head width.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxgrpo.device.token_sampling import next_token, row_uniforms
from jaxgrpo.models import transformer
from jaxgrpo.models.attention import (
    AttentionFn,
    KeyValues,
    KVCache,
    LayerKeyValues,
    sequence_mask,
    sequence_positions,
)
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings, write_column
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.types import DecodeOutput, NewRows, Params, SamplingParams


class Prefilled(NamedTuple):
    """Prompts that have been read; any number of rows may start from each."""

    cache: KeyValues
    """Of each layer the keys [A K E W] and the values [A K W E]."""
    hidden: Float[Array, "A D"]
    """The last hidden state, which decides the first token."""
    length: Int[Array, "A"]
    """Tokens of the prompt."""


class DecodeState(NamedTuple):
    """The state of S slots. A slot that is not active chooses nothing; its contents are unused."""

    cache: KeyValues
    """The ring: of each layer the keys [S K E R] and the values [S K R E]."""
    ring_position: Int[Array, ""]
    """The column of the ring that is written next, the same for all slots."""
    hidden: Float[Array, "S D"]
    """The last hidden state of each row, which decides its next token."""
    prompt_length: Int[Array, "S"]
    num_generated: Int[Array, "S"]
    """Tokens that the row has chosen; with its prompt at most R."""
    max_tokens: Int[Array, "S"]
    """Tokens that the row may choose."""
    active: Bool[Array, "S"]
    keys: UInt32[Array, "S 2"]
    """Random key data of each row."""


class DecodeSpec(NamedTuple):
    """The static arguments of `decode`: another value is another program.

    chunk: C, decode steps of one call, at most
    eos_ids: ids that end a completion
    dtype: of matrix products
    shardings: where the activations of a decode step lie on a mesh
    writes_first: a token's keys and values are written into the ring before it is read, or after
    """

    chunk: int
    eos_ids: tuple[int, ...]
    dtype: DTypeLike
    shardings: ActivationShardings = UNCONSTRAINED
    writes_first: bool = True


def prefill(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "A W"],
    mask: Bool[Array, "A W"],
    *,
    dtype: DTypeLike,
    attention_fn: AttentionFn | None = None,
    shardings: ActivationShardings = UNCONSTRAINED,
) -> Prefilled:
    """Runs the model on prompts.

    tokens: padded on the left
    mask: True on tokens that are no padding
    attention_fn: an attention kernel that makes the mask itself (splash.py); None: `attend`
    """
    inputs = SequenceInputs(tokens, sequence_positions(mask), sequence_mask(mask))
    hidden, cache = transformer.forward(
        config,
        params,
        inputs,
        dtype=dtype,
        attention_fn=attention_fn,
        shardings=shardings,
    )
    return Prefilled(cache, hidden[:, -1], mask.sum(axis=1, dtype=jnp.int32))


def empty_state(
    config: ModelConfig,
    *,
    slots: int,
    ring_length: int,
    dtype: DTypeLike,
) -> DecodeState:
    """Returns slots of which none is active."""
    keys_shape = (slots, config.kv_heads, config.head_width, ring_length)
    values_shape = (slots, config.kv_heads, ring_length, config.head_width)
    return DecodeState(
        cache=tuple(
            (jnp.zeros(keys_shape, dtype), jnp.zeros(values_shape, dtype))
            for _ in range(config.layers)
        ),
        ring_position=jnp.int32(0),
        hidden=jnp.zeros((slots, config.width), dtype),
        prompt_length=jnp.zeros(slots, jnp.int32),
        num_generated=jnp.zeros(slots, jnp.int32),
        max_tokens=jnp.zeros(slots, jnp.int32),
        active=jnp.zeros(slots, bool),
        keys=jnp.zeros((slots, 2), jnp.uint32),
    )


def insert(state: DecodeState, prefilled: Prefilled, rows: NewRows) -> DecodeState:
    """Starts rows from prefilled prompts in the slots that they name.

    The caller sees to it that the ring has a column for each token of the prompts.
    """

    def put(old: Array, new: Array) -> Array:
        # "drop": a slot past the last starts no row.
        return old.at[rows.slot].set(new.astype(old.dtype), mode="drop")

    def put_prompt(old: Array, new: Array) -> Array:
        return put(old, new[rows.prompt])

    def put_columns(old: Array, new: Array, axis: int) -> Array:
        # A prompt ends in the column before ring_position; padding, and what an earlier row left,
        # may be anything.
        columns = _last_columns(new[rows.prompt], old.shape[axis], axis)
        return put(old, jnp.roll(columns, state.ring_position, axis))

    cache = tuple(
        (put_columns(keys, new_keys, 3), put_columns(values, new_values, 2))
        for (keys, values), (new_keys, new_values) in _each_layer(
            state.cache, prefilled.cache
        )
    )
    return state._replace(
        cache=cache,
        hidden=put_prompt(state.hidden, prefilled.hidden),
        prompt_length=put_prompt(state.prompt_length, prefilled.length),
        num_generated=put(state.num_generated, jnp.zeros_like(rows.slot)),
        max_tokens=put(state.max_tokens, rows.max_tokens),
        active=put(state.active, rows.max_tokens > 0),
        keys=put(state.keys, rows.keys),
    )


def _each_layer(
    cache: KeyValues, other: KeyValues
) -> Iterator[tuple[LayerKeyValues, LayerKeyValues]]:
    """Returns the layers of two caches, in pairs."""
    layers = cast(tuple[LayerKeyValues, ...], cache)
    other_layers = cast(tuple[LayerKeyValues, ...], other)
    return zip(layers, other_layers, strict=True)


def _last_columns(x: Array, count: int, axis: int) -> Array:
    """Returns the last columns along an axis, with zeros before them where there are fewer."""
    missing = max(0, count - x.shape[axis])
    kept = jax.lax.slice_in_dim(x, max(0, x.shape[axis] - count), None, axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (missing, 0)
    return jnp.pad(kept, padding)


def decode(
    config: ModelConfig,
    params: Params,
    state: DecodeState,
    stopped: Bool[Array, "S"],
    sampling: SamplingParams,
    max_steps: Int[Array, ""],
    leave_at: Int[Array, ""],
    *,
    spec: DecodeSpec,
) -> tuple[DecodeState, DecodeOutput]:
    """Chooses tokens for all active rows, step after step.

    The caller sees to it that the ring is long enough: no row may come to have more tokens, with
    those of its prompt, than the ring has columns.

    stopped: rows that the host has ended, by a stop string
    max_steps: steps to make, at most; no more than spec.chunk
    leave_at: the loop ends once no more rows than this are active
    """
    # A stop string is found by the host, which tells the device with the next call.
    state = state._replace(active=state.active & ~stopped)
    num_slots = state.active.shape[0]
    output = DecodeOutput(
        tokens=jnp.zeros((num_slots, spec.chunk), jnp.int32),
        logprobs=jnp.zeros((num_slots, spec.chunk), jnp.float32),
        num_tokens=jnp.zeros(num_slots, jnp.int32),
        active=state.active,
        hit_eos=jnp.zeros(num_slots, bool),
        num_steps=jnp.int32(0),
    )
    embedding = transformer.sampler_embedding(params)
    # Within a call an active row has chosen a token in every step, so its random numbers can be
    # drawn beforehand.
    uniforms = row_uniforms(state.keys, state.num_generated, spec.chunk)  # [S, C]

    def goes_on(carry: tuple[DecodeState, DecodeOutput]) -> Array:
        state, output = carry
        has_steps = output.num_steps < jnp.minimum(max_steps, spec.chunk)
        return has_steps & (state.active.sum() > leave_at)

    def step(
        carry: tuple[DecodeState, DecodeOutput],
    ) -> tuple[DecodeState, DecodeOutput]:
        state, output = carry
        # 1. Draw a token for every slot, from the hidden state of its last token.
        uniform = jax.lax.dynamic_index_in_dim(
            uniforms, output.num_steps, axis=1, keepdims=False
        )
        token, logprob = next_token(
            spec.shardings.layer(state.hidden),
            embedding,
            uniform,
            state.num_generated,
            sampling,
            spec.eos_ids,
            softcap=config.logit_softcap,
            shardings=spec.shardings,
            unused=config.unused_ids,
        )

        def write(array: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(
                array, new[:, None], output.num_steps, axis=1
            )

        # 2. Count it for the active rows, and run the model on it: the ring gets its column.
        hit_eos = state.active & jnp.isin(token, jnp.array(spec.eos_ids))
        counted = state.active.astype(jnp.int32)
        state = state._replace(num_generated=state.num_generated + counted)
        state = _read_token(config, params, state, token, spec)

        # 3. A row ends at an end token or at its bound.
        active = state.active & ~hit_eos & (state.num_generated < state.max_tokens)
        output = DecodeOutput(
            tokens=write(output.tokens, token),
            logprobs=write(output.logprobs, logprob),
            num_tokens=output.num_tokens + counted,
            active=active,
            hit_eos=output.hit_eos | hit_eos,
            num_steps=output.num_steps + 1,
        )
        return state._replace(active=active), output

    return jax.lax.while_loop(goes_on, step, (state, output))


def _read_token(
    config: ModelConfig,
    params: Params,
    state: DecodeState,
    token: Int[Array, "S"],
    spec: DecodeSpec,
) -> DecodeState:
    """Runs the model on every row's newest token, which is counted already.

    It gives a new hidden state, and its keys and values go into the ring at `ring_position`.
    """
    ring_length = state.cache[0][1].shape[2]
    position = (state.prompt_length + state.num_generated - 1)[:, None]  # [S, 1]

    # 1. A row reads its own columns of the ring, as many as it has tokens, and no others. An unused
    # slot attends to nothing, and its output is finite all the same (`attend`).
    columns = jnp.arange(ring_length)
    age = (state.ring_position - columns) % ring_length  # [R], 0: the newest
    if not spec.writes_first:
        # The oldest column will be written over; the token reads itself after the ring.
        age = jnp.append(jnp.where(age == 0, ring_length, age), 0)  # [R + 1]
    inputs = SequenceInputs(
        tokens=token[:, None],
        positions=position,
        mask=(age <= position)[:, None],  # [S, 1, R] or [S, 1, R + 1]
        # For layers with a sliding window: keys are rotated already.
        key_positions=position - age,
    )
    ring_position = state.ring_position if spec.writes_first else None
    hidden, cache = transformer.forward(
        config,
        params,
        inputs,
        KVCache(state.cache, ring_position),
        dtype=spec.dtype,
        shardings=spec.shardings,
    )

    # 2. Where it was not written first, the ring gets its column once all layers have read.
    if not spec.writes_first:
        hidden, token_columns = jax.lax.optimization_barrier((hidden, cache))
        cache = tuple(
            write_column(ring, column, state.ring_position)
            for ring, column in _each_layer(state.cache, token_columns)
        )
    # Sharded as a layer's input is, or XLA would move the last matrices instead of the activations.
    last = spec.shardings.layer(hidden[:, 0])
    return state._replace(
        cache=cache,
        ring_position=(state.ring_position + 1) % ring_length,
        hidden=last.astype(state.hidden.dtype),
    )


def grow(state: DecodeState, *, ring_length: int) -> DecodeState:
    """Returns the same rows with a longer ring: the old columns, oldest first, then new ones."""
    old_length = state.cache[0][1].shape[2]

    def widen(x: Array, axis: int) -> Array:
        oldest_first = jnp.roll(x, -state.ring_position, axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, ring_length - old_length)
        return jnp.pad(oldest_first, padding)

    cache = tuple((widen(keys, 3), widen(values, 2)) for keys, values in state.cache)
    return state._replace(cache=cache, ring_position=jnp.int32(old_length))


def compact(state: DecodeState, slots: Int[Array, "n"]) -> DecodeState:
    """Returns the state of these slots alone, in this order."""

    def keep(x: Array) -> Array:
        # ring_position, the only number without an axis of slots, stays.
        return x[slots] if x.ndim else x

    return jax.tree.map(keep, state)
