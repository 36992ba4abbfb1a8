"""Laws of the device's half of sampling: slots know nothing of each other, nor of the columns their past is kept in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgrpo.device import sampler
from jaxgrpo.device.logits import to_logits, used_ids
from jaxgrpo.device.sampler import How
from jaxgrpo.types import NewRows
from tests.tiny_engines import ENDS, NETWORK, make_params

WIDTH, SLOTS, RING, CHUNK, PROMPTS = 6, 4, 12, 5, 3
LONG = np.int32(1_000)

decode_to = jax.jit(
    partial(sampler.decode, NETWORK, chunk=CHUNK, ends=ENDS, dtype=jnp.float32),
    static_argnames=("chunk", "ends", "dtype"),
)
insert = jax.jit(sampler.insert)
grow = jax.jit(sampler.grow, static_argnames="ring")
compact = jax.jit(sampler.compact)
choose = jax.jit(sampler.sample_categorical)
only_likely = jax.jit(sampler.truncate_logits)


@pytest.fixture(scope="module")
def params():
    return make_params()


@pytest.fixture(scope="module")
def prefilled(params):
    """Prompts of 6, 3 and 1 tokens."""
    tokens = np.random.default_rng(0).integers(12, 23, (PROMPTS, WIDTH)).astype(np.int32)
    mask = np.arange(WIDTH) >= WIDTH - np.array([6, 3, 1])[:, None]
    return jax.jit(partial(sampler.prefill, NETWORK, dtype=jnp.float32))(params, tokens, mask)


def key(row: int) -> np.ndarray:
    return np.array([row, 77], np.uint32)


def starts(*rows: tuple[int, int, int], limit: int = RING) -> NewRows:
    """(slot, prompt, key) of each row that starts; the other places start none."""
    rows += ((SLOTS, 0, 0),) * (SLOTS - len(rows))
    slot, source, keys = zip(*rows, strict=True)
    limits = np.full(SLOTS, limit, np.int32)
    return NewRows(
        np.array(slot, np.int32),
        np.array(source, np.int32),
        limits,
        np.stack([key(k) for k in keys]),
    )


def empty(ring: int = RING, slots: int = SLOTS) -> sampler.DecodeState:
    return sampler.empty(NETWORK, slots=slots, prompt_width=WIDTH, ring=ring, dtype=jnp.float32)


def typed(how: How) -> How:
    """Arrays of the same types whatever the numbers."""
    return How(
        *(jnp.asarray(x, t) for x, t in zip(how, (float, int, float, float, int), strict=True))
    )


def decode(params, slots, halt=(), most=CHUNK, leave_at=0, how=None):
    halted = np.isin(np.arange(slots.live.shape[0]), halt)
    how = how or How(1.5, min_tokens=RING)  # no row ends by itself
    return decode_to(params, slots, halted, typed(how), np.int32(most), np.int32(leave_at))


def run(params, slots, calls=3, texts=None, rows=None, **changes):
    """Tokens and log-probabilities of each row after some calls; also the slots."""
    texts = texts or {row: ([], []) for row in (rows or range(SLOTS))}
    for _ in range(calls):
        slots, chosen = decode(params, slots, **changes)
        for place, (tokens, logprobs) in enumerate(texts.values()):
            n = int(chosen.n[place])
            tokens.extend(chosen.tokens[place, :n].tolist())
            logprobs.extend(chosen.logprobs[place, :n].tolist())
    return texts, slots


def assert_same(texts, others):
    assert texts.keys() == others.keys()
    for row, (tokens, logprobs) in texts.items():
        assert tokens == others[row][0]
        np.testing.assert_allclose(logprobs, others[row][1], rtol=0, atol=1e-5)


ALL = ((0, 0, 10), (1, 1, 11), (2, 2, 12), (3, 0, 13))


@pytest.fixture(scope="module")
def expected(params, prefilled):
    texts, _ = run(params, insert(empty(), prefilled, starts(*ALL)))
    assert {len(tokens) for tokens, _ in texts.values()} == {RING}
    assert len({tuple(tokens) for tokens, _ in texts.values()}) == SLOTS
    return texts


def test_a_row_does_not_depend_on_its_slot_nor_on_its_neighbours(params, prefilled, expected):
    turned = [(3 - slot, source, row) for slot, source, row in ALL]
    texts, _ = run(params, insert(empty(), prefilled, starts(*turned)))
    assert_same(
        {3 - slot: text for slot, text in texts.items()},
        {slot: expected[slot] for slot in (3, 2, 1, 0)},
    )
    alone, _ = run(params, insert(empty(), prefilled, starts(ALL[1])))
    assert [len(tokens) for tokens, _ in alone.values()] == [0, RING, 0, 0]
    assert_same({1: alone[1]}, {1: expected[1]})


def test_a_row_sees_nothing_of_those_before_it_in_its_slot(params, prefilled, expected):
    """Bit for bit: not whatever stands in the cache, nor where the clock is."""
    numbers = lambda x: jnp.asarray(np.random.default_rng(2).normal(0, 100, x.shape), x.dtype)
    clean = empty()
    dirty = clean._replace(
        prompt=jax.tree.map(numbers, clean.prompt),
        recent=jax.tree.map(numbers, clean.recent),
        hidden=numbers(clean.hidden),
        prompt_length=clean.prompt_length + WIDTH,
        written=clean.written + RING,
    )
    for clock in (0, 5, RING - 1):
        texts, _ = run(
            params, insert(dirty._replace(clock=jnp.int32(clock)), prefilled, starts(*ALL))
        )
        assert_same(texts, expected)
    texts, _ = run(params, insert(dirty, prefilled, starts(*ALL)))
    assert texts == expected


def test_rows_that_start_later_read_what_is_theirs(params, prefilled, expected):
    """Slots 0 and 2 start two calls later, in the slots of rows that were halted; the ring comes round."""
    others = insert(empty(), prefilled, starts((0, 2, 30), ALL[1], (2, 1, 32), ALL[3]))
    texts, slots = run(params, others, calls=1, most=4)
    slots, _ = decode(params, slots, halt=(0, 2), most=0)
    assert slots.live.tolist() == [False, True, False, True]
    slots = insert(slots, prefilled, starts(ALL[2], ALL[0]))
    texts = {0: ([], []), 1: texts[1], 2: ([], []), 3: texts[3]}
    texts, slots = run(params, slots, texts=texts)
    assert_same(texts, expected)
    assert not slots.live.any()


@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_longer_ring_changes_nothing(params, prefilled, expected, first):
    """From 5 columns to 12, with the clock at the ring's end or inside it, and with rows of unequal age."""
    short = insert(empty(ring=5), prefilled, starts(*ALL[:2]))._replace(clock=jnp.int32(first))
    texts, slots = run(params, short, calls=1, most=2)
    slots = insert(slots, prefilled, starts(*ALL[2:]))
    texts, slots = run(params, slots, calls=1, texts=texts, most=3)
    assert slots.written.tolist() == [5, 5, 3, 3]
    slots = grow(slots, ring=RING)
    assert (int(slots.clock), slots.recent[0][1].shape[2]) == (5, RING)
    texts, _ = run(params, slots, texts=texts)
    assert_same(texts, expected)


def test_compaction_keeps_rows_as_they_are(params, prefilled, expected):
    slots = insert(empty(), prefilled, starts(*ALL))
    texts, slots = run(params, slots, calls=1)
    slots = compact(slots, np.array([3, 1], np.int32))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(slots) if leaf.ndim} == {2}
    texts, _ = run(params, slots, texts={3: texts[3], 1: texts[1]})
    assert_same(texts, {3: expected[3], 1: expected[1]})


def test_a_call_makes_no_more_steps_than_it_may_and_leaves_when_few_are_live(params, prefilled):
    begun = insert(empty(), prefilled, starts(*ALL[:2], limit=2))
    begun = insert(begun, prefilled, starts(*ALL[2:], limit=9))
    for most, leave_at, steps, n in (
        (0, 0, 0, [0] * 4),
        (3, 0, 3, [2, 2, 3, 3]),
        (99, 2, 2, [2] * 4),
        (99, 4, 0, [0] * 4),
    ):
        _, chosen = decode(params, begun, most=most, leave_at=leave_at)
        assert int(chosen.steps) == steps
        assert chosen.n.tolist() == n
    _, chosen = decode(params, begun, most=99)
    assert int(chosen.steps) == CHUNK
    assert chosen.live.tolist() == [False, False, True, True]
    assert not chosen.ended.any()
    slots, chosen = decode(params, begun, halt=(0, 1, 2, 3))
    assert int(chosen.steps) == 0
    assert not slots.live.any()


@pytest.mark.parametrize("how", [How(8.0), How(0.0), How(8.0, top_k=3)])
def test_ids_that_no_token_has_are_never_drawn(params, prefilled, how):
    """And the others have the probabilities that are left to them, as the scorer has them."""
    unused = ((0, 12), (30, NETWORK.vocab_size - 1))
    used = used_ids(NETWORK.vocab_size, unused)
    hidden, embedding = prefilled.hidden, params["embedding"]
    uniform = jnp.asarray([0.1, 0.5, 0.999])
    args = hidden, embedding, uniform, jnp.zeros(PROMPTS, jnp.int32), typed(how), ENDS
    drawn, logprobs = sampler.next_token(*args, unused=unused)
    assert used[np.asarray(drawn)].all()
    logits = np.where(used, to_logits(hidden, embedding, float(how.temperature) or 1.0), -np.inf)
    if how.top_k:
        logits = np.where(logits >= np.sort(logits)[:, -3:-2], logits, -np.inf)
    left = np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(logprobs, logits[np.arange(PROMPTS), drawn] - left, atol=1e-5)


def test_an_end_token_ends_a_row_and_is_its_last(params, prefilled):
    ended = 0
    for seed in range(0, 40, 4):
        begun = insert(
            empty(), prefilled, starts(*((slot, source, seed + slot) for slot, source, _ in ALL))
        )
        _, chosen = decode(params, begun, how=How(2.0))
        for tokens, n, live, end in zip(
            chosen.tokens, chosen.n, chosen.live, chosen.ended, strict=True
        ):
            found = tokens[:n].tolist()
            assert not set(found[:-1]) & set(ENDS)
            assert bool(end) == (found[-1] in ENDS) == (not live)
            ended += bool(end)
    assert ended > 5


def test_a_row_that_may_choose_nothing_is_not_live(prefilled):
    assert not insert(empty(), prefilled, starts(*ALL, limit=0)).live.any()


def test_rows_of_the_same_key_are_the_same_and_a_number_depends_on_key_and_count_alone():
    keys, first = jnp.stack([key(1), key(2), key(1)]), jnp.array([4, 4, 3])
    a, b, c = np.asarray(jax.jit(sampler.row_uniforms, static_argnums=2)(keys, first, 5))
    assert a[:4].tolist() == c[1:].tolist()
    assert len({*a.tolist(), *b.tolist(), c[0].item()}) == 11
    for numbers in (a, b, c):
        assert ((numbers >= 0) & (numbers < 1)).all()


def kept_by(logits, how):
    """Which tokens top-k, top-p and min-p leave, one after the other, in plain numpy."""
    probs = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    if how.top_k:
        order = order[: how.top_k]
    share = probs[order] / probs[order].sum()
    order = order[: max(1, int(np.sum(np.cumsum(share) - share < how.top_p)))]
    order = order[probs[order] >= how.min_p * probs.max()]
    return np.isin(np.arange(len(logits)), order)


HOWS = (
    How(),
    How(top_k=1),
    How(top_k=7),
    How(top_k=999),
    How(top_p=0.0),
    How(top_p=0.6),
    How(top_p=0.95),
    How(min_p=0.1),
    How(min_p=1.0),
    How(top_k=9, top_p=0.8),
    How(top_k=5, top_p=0.9, min_p=0.2),
    How(top_p=0.5, min_p=0.3),
)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_exactly_the_likely_tokens_are_left(how):
    logits = np.random.default_rng(3).normal(0, 2, (20, 48)).astype(np.float32)
    left = np.asarray(only_likely(jnp.asarray(logits), typed(how)))
    expected = np.stack([kept_by(row, how) for row in logits])
    np.testing.assert_array_equal(left > -np.inf, expected)
    np.testing.assert_array_equal(left[expected], logits[expected])
    assert expected.any(axis=1).all()


@pytest.fixture(scope="module")
def row():
    """A hidden state and an embedding whose distribution over 48 tokens is far from uniform."""
    rng = np.random.default_rng(4)
    return jnp.asarray(rng.normal(size=(1, 16)), jnp.float32), jnp.asarray(
        rng.normal(0, 0.5, (48, 16)), jnp.float32
    )


MANY = 20_000


@jax.jit
def draw_many(hidden, embedding, how, written):
    keys = jnp.stack([jnp.arange(MANY, dtype=jnp.uint32), jnp.full(MANY, 5, jnp.uint32)], axis=1)
    count = jnp.full(MANY, written)
    return sampler.next_token(
        jnp.repeat(hidden, MANY, axis=0),
        embedding,
        sampler.row_uniforms(keys, count, 1)[:, 0],
        count,
        how,
        ENDS,
    )


@pytest.mark.parametrize(
    "how", [*HOWS, How(0.6), How(1.7, top_p=0.8), How(0.8, min_tokens=9)], ids=str
)
def test_tokens_follow_the_distribution_that_is_left(row, how):
    """Chi-square, with the support exact; the log-probability is that under what is left."""
    logits = np.asarray(to_logits(*row, how.temperature))[0].astype(np.float64)
    if how.min_tokens:
        logits[list(ENDS)] = -np.inf
    probs = np.where(kept_by(logits, how), np.exp(logits), 0.0)
    probs /= probs.sum()
    tokens, logprobs = draw_many(*row, typed(how), jnp.int32(4))
    np.testing.assert_allclose(logprobs, np.log(probs[np.asarray(tokens)]), atol=1e-4)
    found = np.bincount(tokens, minlength=48)
    assert not found[probs == 0].any()
    common = probs * MANY >= 5
    counts, wanted = found[common], probs[common] * MANY
    if not np.isclose(wanted.sum(), MANY, rtol=1e-6):
        counts, wanted = (
            np.append(counts, found[~common].sum()),
            np.append(wanted, MANY - wanted.sum()),
        )
    assert (
        stats.chisquare(counts, wanted * counts.sum() / wanted.sum()).pvalue > 1e-3
        or len(counts) == 1
    )


def test_at_temperature_0_the_likeliest_token_is_chosen_and_scored_at_1(row):
    logits = np.asarray(to_logits(*row, 1.0))[0]
    for how in (How(0.0), How(0.0, top_p=0.9)):
        tokens, logprobs = draw_many(*row, typed(how), jnp.int32(4))
        assert set(np.asarray(tokens).tolist()) == {int(logits.argmax())}
        kept = np.where(kept_by(logits, how), np.exp(logits.astype(np.float64)), 0.0)
        np.testing.assert_allclose(logprobs, np.log(kept.max() / kept.sum()), atol=1e-5)
    end = int(logits.argmax())
    draw = jax.jit(sampler.next_token, static_argnames="ends")
    tokens, _ = draw(
        *row, jnp.zeros(1), jnp.zeros(1, jnp.int32), How(0.0, min_tokens=1), ends=(end,)
    )
    assert (
        int(tokens[0]) == np.argsort(-logits)[1]
    )  # the end would be likeliest, and may not be yet
    tokens, _ = draw(
        *row, jnp.zeros(1), jnp.ones(1, jnp.int32), How(0.0, min_tokens=1), ends=(end,)
    )
    assert int(tokens[0]) == end


@pytest.mark.parametrize("vocabulary", [5, 64, 200])
def test_choose_follows_the_distribution(vocabulary):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=vocabulary) * 2, jnp.float32)
    many = 20_000
    uniform = jnp.asarray((np.arange(many) + 0.5) / many, jnp.float32)
    tokens, logprobs = choose(jnp.broadcast_to(logits, (many, vocabulary)), uniform)
    probs = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(np.bincount(tokens, minlength=vocabulary) / many, probs, atol=2e-4)
    np.testing.assert_allclose(logprobs, np.log(probs)[np.asarray(tokens)], rtol=1e-3, atol=1e-5)


def test_choose_never_takes_what_has_no_probability():
    logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf, 0.0, -jnp.inf]] * 4)
    tokens, _ = choose(logits, jnp.array([0.0, 0.4999999, 0.5, 0.99999994]))
    assert set(tokens.tolist()) <= {1, 3}
    # Over blocks, most of which have nothing; the numbers are where one token ends and the next begins, and next to that.
    logits = np.random.default_rng(1).normal(0, 3, 500).astype(np.float32)
    logits[np.random.default_rng(2).random(500) < 0.95] = -np.inf
    ends = np.cumsum(np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    beside = [np.nextafter(ends, np.float32(side)) for side in (0, 1)]
    edges = np.concatenate([*beside, ends]).clip(0, np.nextafter(1, 0, dtype=np.float32))
    tokens, logprobs = choose(jnp.broadcast_to(logits, (len(edges), 500)), jnp.asarray(edges))
    assert np.isfinite(logits[np.asarray(tokens)]).all()
    assert np.isfinite(logprobs).all()


def test_logits_are_divided_by_the_temperature():
    hidden, embedding = jnp.ones((1, 4)), jnp.ones((3, 4))
    np.testing.assert_allclose(to_logits(hidden, embedding, 2.0), 2.0)
