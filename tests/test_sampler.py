"""Laws of the device's half of sampling.

Slots know nothing of each other, nor of the columns that their past is kept in.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.device import sampler
from jaxgrpo.device.sampler import DecodeSpec
from jaxgrpo.types import NewRows, SamplingParams
from tests.tiny_engines import ENDS, NETWORK, make_params

WIDTH = 6
SLOTS = 4
NEW = 12
RING = WIDTH + NEW
CHUNK = 5
PROMPTS = 3
ROWS = ((0, 0, 10), (1, 1, 11), (2, 2, 12), (3, 0, 13))
"""(slot, prompt, key) of a row in each slot."""
NO_END = SamplingParams(1.5, min_tokens=NEW)
"""No row ends by itself."""

SPEC = DecodeSpec(chunk=CHUNK, eos_ids=ENDS, dtype=jnp.float32)
jitted_decode = jax.jit(partial(sampler.decode, NETWORK, spec=SPEC))
insert = jax.jit(sampler.insert)
grow = jax.jit(sampler.grow, static_argnames="ring_length")
compact = jax.jit(sampler.compact)


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def prefilled(params):
    """Prompts of 6, 3 and 1 tokens."""
    tokens = (
        np.random.default_rng(0).integers(12, 23, (PROMPTS, WIDTH)).astype(np.int32)
    )
    mask = np.arange(WIDTH) >= WIDTH - np.array([6, 3, 1])[:, None]
    return jax.jit(partial(sampler.prefill, NETWORK, dtype=jnp.float32))(
        params, tokens, mask
    )


def new_rows(*rows: tuple[int, int, int], max_tokens: int = NEW) -> NewRows:
    """Returns rows that start, each of them (slot, prompt, key); the other places start none."""
    rows += ((SLOTS, 0, 0),) * (SLOTS - len(rows))
    slots, prompts, keys = zip(*rows, strict=True)
    return NewRows(
        slot=np.array(slots, np.int32),
        prompt=np.array(prompts, np.int32),
        max_tokens=np.full(SLOTS, max_tokens, np.int32),
        keys=np.array([[key, 77] for key in keys], np.uint32),
    )


def empty_state(ring_length: int = RING) -> sampler.DecodeState:
    return sampler.empty_state(
        NETWORK,
        slots=SLOTS,
        ring_length=ring_length,
        dtype=jnp.float32,
    )


def decode(
    params,
    state,
    stopped=(),
    max_steps=CHUNK,
    leave_at=0,
    sampling=NO_END,
    jitted=jitted_decode,
):
    is_stopped = np.isin(np.arange(state.active.shape[0]), stopped)
    return jitted(
        params,
        state,
        is_stopped,
        sampling.as_arrays(),
        np.int32(max_steps),
        np.int32(leave_at),
    )


def run(params, state, calls=3, texts=None, **changes):
    """Returns the tokens and log-probabilities of each row after some calls, and the state.

    texts: what the rows have already, {name: (tokens, log-probabilities)} in the order of slots
    """
    texts = texts or {slot: ([], []) for slot in range(SLOTS)}
    for _ in range(calls):
        state, output = decode(params, state, **changes)
        for slot, (tokens, logprobs) in enumerate(texts.values()):
            count = int(output.num_tokens[slot])
            tokens.extend(output.tokens[slot, :count].tolist())
            logprobs.extend(output.logprobs[slot, :count].tolist())
    return texts, state


def assert_same(texts, others):
    assert texts.keys() == others.keys()
    for row, (tokens, logprobs) in texts.items():
        assert tokens == others[row][0]
        np.testing.assert_allclose(logprobs, others[row][1], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def expected(params, prefilled):
    texts, _ = run(params, insert(empty_state(), prefilled, new_rows(*ROWS)))
    assert {len(tokens) for tokens, _ in texts.values()} == {NEW}
    assert len({tuple(tokens) for tokens, _ in texts.values()}) == SLOTS
    return texts


def test_a_row_does_not_depend_on_its_slot_nor_on_its_neighbours(
    params, prefilled, expected
):
    reversed_rows = [(3 - slot, prompt, key) for slot, prompt, key in ROWS]
    texts, _ = run(params, insert(empty_state(), prefilled, new_rows(*reversed_rows)))
    assert_same(
        {3 - slot: text for slot, text in texts.items()},
        {slot: expected[slot] for slot in (3, 2, 1, 0)},
    )
    alone, _ = run(params, insert(empty_state(), prefilled, new_rows(ROWS[1])))
    assert [len(tokens) for tokens, _ in alone.values()] == [0, NEW, 0, 0]
    assert_same({1: alone[1]}, {1: expected[1]})


def test_a_row_sees_nothing_of_those_before_it_in_its_slot(params, prefilled, expected):
    """Bit for bit: neither what stands in the cache matters, nor the ring's position."""

    def noise(x):
        return jnp.asarray(np.random.default_rng(2).normal(0, 100, x.shape), x.dtype)

    clean = empty_state()
    dirty = clean._replace(
        cache=jax.tree.map(noise, clean.cache),
        hidden=noise(clean.hidden),
        prompt_length=clean.prompt_length + WIDTH,
        num_generated=clean.num_generated + NEW,
    )
    for ring_position in (0, 5, RING - 1):
        state = dirty._replace(ring_position=jnp.int32(ring_position))
        texts, _ = run(params, insert(state, prefilled, new_rows(*ROWS)))
        assert_same(texts, expected)
    texts, _ = run(params, insert(dirty, prefilled, new_rows(*ROWS)))
    assert texts == expected


def test_rows_that_start_later_read_what_is_theirs(params, prefilled, expected):
    """Slots 0 and 2 start two calls later, in the slots of rows that were stopped.

    The ring comes round.
    """
    first_rows = new_rows((0, 2, 30), ROWS[1], (2, 1, 32), ROWS[3])
    state = insert(empty_state(), prefilled, first_rows)
    texts, state = run(params, state, calls=1, max_steps=4)
    state, _ = decode(params, state, stopped=(0, 2), max_steps=0)
    assert state.active.tolist() == [False, True, False, True]
    state = insert(state, prefilled, new_rows(ROWS[2], ROWS[0]))
    texts = {0: ([], []), 1: texts[1], 2: ([], []), 3: texts[3]}
    texts, state = run(params, state, texts=texts)
    assert_same(texts, expected)
    assert not state.active.any()


@pytest.mark.parametrize("first", [1, 7, 10])
def test_a_longer_ring_changes_nothing(params, prefilled, expected, first):
    """From 11 columns, which the longest row fills, to 18, with rows of unequal age.

    The ring's position is at its end or inside it.
    """
    state = empty_state(ring_length=11)._replace(ring_position=jnp.int32(first))
    state = insert(state, prefilled, new_rows(*ROWS[:2]))
    texts, state = run(params, state, calls=1, max_steps=2)
    state = insert(state, prefilled, new_rows(*ROWS[2:]))
    texts, state = run(params, state, calls=1, texts=texts, max_steps=3)
    assert state.num_generated.tolist() == [5, 5, 3, 3]
    state = grow(state, ring_length=RING)
    assert int(state.ring_position) == 11
    assert state.cache[0][1].shape[2] == RING
    texts, _ = run(params, state, texts=texts)
    assert_same(texts, expected)


@pytest.mark.parametrize("ring_length", [3 + NEW, 40])
def test_a_ring_has_no_more_columns_than_its_rows_have_tokens(
    params, prefilled, expected, ring_length
):
    """Rows of short prompts in a ring that the widest prompt would not fit, and in a longer one."""
    rows = new_rows(*ROWS[1:3])
    texts, _ = run(params, insert(empty_state(ring_length), prefilled, rows))
    assert_same({1: texts[1], 2: texts[2]}, {1: expected[1], 2: expected[2]})


@pytest.mark.parametrize("windows", [(), (3,)])
def test_a_ring_may_be_read_before_it_is_written(params, prefilled, windows):
    """The order that TPUs have, for rows of unequal age; a full ring comes round."""
    network = replace(NETWORK, windows=windows)
    state = empty_state()._replace(ring_position=jnp.int32(7))
    state = insert(state, prefilled, new_rows(*ROWS[:2]))
    texts = {}
    for writes_first in (True, False):
        spec = SPEC._replace(writes_first=writes_first)
        decode = jax.jit(partial(sampler.decode, network, spec=spec))
        texts[writes_first], later = run(params, state, calls=1, jitted=decode)
        later = insert(later, prefilled, new_rows(*ROWS[2:]))
        run(params, later, texts=texts[writes_first], jitted=decode)
    assert [len(tokens) for tokens, _ in texts[True].values()] == [NEW] * SLOTS
    assert_same(texts[False], texts[True])


def test_compaction_keeps_rows_as_they_are(params, prefilled, expected):
    state = insert(empty_state(), prefilled, new_rows(*ROWS))
    texts, state = run(params, state, calls=1)
    state = compact(state, np.array([3, 1], np.int32))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state) if leaf.ndim} == {2}
    texts, _ = run(params, state, texts={3: texts[3], 1: texts[1]})
    assert_same(texts, {3: expected[3], 1: expected[1]})


def test_a_call_makes_no_more_steps_than_it_may_and_leaves_when_few_are_active(
    params, prefilled
):
    begun = insert(empty_state(), prefilled, new_rows(*ROWS[:2], max_tokens=2))
    begun = insert(begun, prefilled, new_rows(*ROWS[2:], max_tokens=9))
    for max_steps, leave_at, num_steps, num_tokens in (
        (0, 0, 0, [0] * 4),
        (3, 0, 3, [2, 2, 3, 3]),
        (99, 2, 2, [2] * 4),
        (99, 4, 0, [0] * 4),
    ):
        _, output = decode(params, begun, max_steps=max_steps, leave_at=leave_at)
        assert int(output.num_steps) == num_steps
        assert output.num_tokens.tolist() == num_tokens
    _, output = decode(params, begun, max_steps=99)
    assert int(output.num_steps) == CHUNK
    assert output.active.tolist() == [False, False, True, True]
    assert not output.hit_eos.any()
    state, output = decode(params, begun, stopped=(0, 1, 2, 3))
    assert int(output.num_steps) == 0
    assert not state.active.any()


def test_an_end_token_ends_a_row_and_is_its_last(params, prefilled):
    ended = 0
    for seed in range(0, 40, 4):
        rows = [(slot, prompt, seed + slot) for slot, prompt, _ in ROWS]
        begun = insert(empty_state(), prefilled, new_rows(*rows))
        _, output = decode(params, begun, sampling=SamplingParams(2.0))
        for slot in range(SLOTS):
            tokens = output.tokens[slot, : output.num_tokens[slot]].tolist()
            hit_eos = bool(output.hit_eos[slot])
            assert not set(tokens[:-1]) & set(ENDS)
            assert hit_eos == (tokens[-1] in ENDS) == (not output.active[slot])
            ended += hit_eos
    assert ended > 5


def test_a_row_that_may_choose_nothing_is_not_active(prefilled):
    rows = new_rows(*ROWS, max_tokens=0)
    assert not insert(empty_state(), prefilled, rows).active.any()
