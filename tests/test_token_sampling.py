"""Laws of drawing one token: exactly the likely tokens are left, and draws follow their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgrpo.device import token_sampling
from jaxgrpo.device.logits import to_logits, used_ids
from jaxgrpo.types import SamplingParams
from tests.tiny_engines import ENDS

NUM_DRAWS = 20_000
TRUNCATIONS = (
    SamplingParams(),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_k=999),
    SamplingParams(top_p=0.0),
    SamplingParams(top_p=0.6),
    SamplingParams(top_p=0.95),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=9, top_p=0.8),
    SamplingParams(top_k=5, top_p=0.9, min_p=0.2),
    SamplingParams(top_p=0.5, min_p=0.3),
)


def reading(rows):
    """Returns the reading of products that are the logits themselves."""
    return token_sampling.Reading(jnp.ones(()), jnp.zeros(rows, bool), ENDS, None, ())


@jax.jit
def lowest_kept(logits, sampling):
    """Returns the lowest logit of each row [B V] that is left."""
    return token_sampling.lowest_kept(reading(len(logits)), logits.T, sampling)


@jax.jit
def sample_categorical(logits, uniform):
    """Draws from all tokens of each row [B V]."""
    rows = len(logits)
    everything = jnp.full(rows, -jnp.inf)
    return token_sampling.sample_categorical(
        reading(rows), logits.T, everything, uniform
    )


@pytest.fixture(scope="module")
def distribution():
    """Returns a hidden state [1, 16] and an embedding [48, 16].

    Their distribution over 48 tokens is far from uniform.
    """
    rng = np.random.default_rng(4)
    hidden = jnp.asarray(rng.normal(size=(1, 16)), jnp.float32)
    embedding = jnp.asarray(rng.normal(0, 0.5, (48, 16)), jnp.float32)
    return hidden, embedding


@jax.jit
def draw_many(hidden, embedding, sampling, num_generated):
    """Draws a token for each of many rows that differ in their key alone."""
    row = jnp.arange(NUM_DRAWS, dtype=jnp.uint32)
    keys = jnp.stack([row, jnp.full(NUM_DRAWS, 5, jnp.uint32)], axis=1)
    counts = jnp.full(NUM_DRAWS, num_generated)
    return token_sampling.next_token(
        jnp.repeat(hidden, NUM_DRAWS, axis=0),
        embedding,
        token_sampling.row_uniforms(keys, counts, 1)[:, 0],
        counts,
        sampling,
        ENDS,
    )


def kept_tokens(logits, sampling):
    """Returns which tokens top-k, top-p and min-p leave, one after the other, in plain numpy."""
    probs = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    share = probs[order] / probs[order].sum()
    order = order[: max(1, int(np.sum(np.cumsum(share) - share < sampling.top_p)))]
    order = order[probs[order] >= sampling.min_p * probs.max()]
    return np.isin(np.arange(len(logits)), order)


@pytest.mark.parametrize("sampling", TRUNCATIONS, ids=str)
def test_exactly_the_likely_tokens_are_left(sampling):
    logits = np.random.default_rng(3).normal(0, 2, (20, 48)).astype(np.float32)
    lowest = np.asarray(lowest_kept(jnp.asarray(logits), sampling.as_arrays()))
    expected = np.stack([kept_tokens(row, sampling) for row in logits])
    np.testing.assert_array_equal(logits >= lowest[:, None], expected)
    assert expected.any(axis=1).all()


@pytest.mark.parametrize(
    "sampling",
    [
        *TRUNCATIONS,
        SamplingParams(0.6),
        SamplingParams(1.7, top_p=0.8),
        SamplingParams(0.8, min_tokens=9),
    ],
    ids=str,
)
def test_tokens_follow_the_distribution_that_is_left(distribution, sampling):
    """Chi-square, with the support exact; the log-probability is that under what is left."""
    logits = np.asarray(to_logits(*distribution, sampling.temperature))[0].astype(
        np.float64
    )
    if sampling.min_tokens:
        logits[list(ENDS)] = -np.inf
    probs = np.where(kept_tokens(logits, sampling), np.exp(logits), 0.0)
    probs /= probs.sum()
    tokens, logprobs = draw_many(*distribution, sampling.as_arrays(), jnp.int32(4))
    np.testing.assert_allclose(logprobs, np.log(probs[np.asarray(tokens)]), atol=1e-4)
    counts = np.bincount(tokens, minlength=48)
    assert not counts[probs == 0].any()
    # Tokens that are too rare for the test are counted together.
    common = probs * NUM_DRAWS >= 5
    observed = counts[common]
    wanted = probs[common] * NUM_DRAWS
    if not np.isclose(wanted.sum(), NUM_DRAWS, rtol=1e-6):
        observed = np.append(observed, counts[~common].sum())
        wanted = np.append(wanted, NUM_DRAWS - wanted.sum())
    wanted = wanted * observed.sum() / wanted.sum()
    assert len(observed) == 1 or stats.chisquare(observed, wanted).pvalue > 1e-3


def test_at_temperature_0_the_likeliest_token_is_chosen_and_scored_at_1(distribution):
    logits = np.asarray(to_logits(*distribution, 1.0))[0]
    likeliest = int(logits.argmax())
    for sampling in (SamplingParams(0.0), SamplingParams(0.0, top_p=0.9)):
        tokens, logprobs = draw_many(*distribution, sampling.as_arrays(), jnp.int32(4))
        assert set(np.asarray(tokens).tolist()) == {likeliest}
        kept = np.where(
            kept_tokens(logits, sampling), np.exp(logits.astype(np.float64)), 0.0
        )
        np.testing.assert_allclose(logprobs, np.log(kept.max() / kept.sum()), atol=1e-5)


def test_an_end_token_may_not_come_before_the_row_has_its_fewest_tokens(distribution):
    """The end token is the likeliest: at temperature 0 it comes as soon as it may."""
    logits = np.asarray(to_logits(*distribution, 1.0))[0]
    likeliest = int(logits.argmax())
    next_token = jax.jit(token_sampling.next_token, static_argnames="eos_ids")
    sampling = SamplingParams(0.0, min_tokens=1)
    uniform = jnp.zeros(1)
    tokens, _ = next_token(
        *distribution, uniform, jnp.zeros(1, jnp.int32), sampling, eos_ids=(likeliest,)
    )
    assert int(tokens[0]) == np.argsort(-logits)[1]
    tokens, _ = next_token(
        *distribution, uniform, jnp.ones(1, jnp.int32), sampling, eos_ids=(likeliest,)
    )
    assert int(tokens[0]) == likeliest


@pytest.mark.parametrize("vocabulary", [5, 128, 200, 5000])
def test_samples_follow_the_distribution(vocabulary):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=vocabulary) * 2, jnp.float32)
    uniform = jnp.asarray((np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS, jnp.float32)
    rows = jnp.broadcast_to(logits, (NUM_DRAWS, vocabulary))
    tokens, logprobs = sample_categorical(rows, uniform)
    probs = np.asarray(jax.nn.softmax(logits))
    shares = np.bincount(tokens, minlength=vocabulary) / NUM_DRAWS
    np.testing.assert_allclose(shares, probs, atol=2e-4)
    np.testing.assert_allclose(
        logprobs, np.log(probs)[np.asarray(tokens)], rtol=1e-3, atol=1e-5
    )


def test_a_sample_is_never_a_token_of_no_probability():
    logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf, 0.0, -jnp.inf]] * 4)
    tokens, _ = sample_categorical(logits, jnp.array([0.0, 0.4999999, 0.5, 0.99999994]))
    assert set(tokens.tolist()) <= {1, 3}
    # Over blocks, most of which have nothing. The uniform numbers are where one token ends and the
    # next begins, and those next to that.
    logits = np.random.default_rng(1).normal(0, 3, 500).astype(np.float32)
    logits[np.random.default_rng(2).random(500) < 0.95] = -np.inf
    ends = np.cumsum(np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    beside = [np.nextafter(ends, np.float32(side)) for side in (0, 1)]
    edges = np.concatenate([*beside, ends]).clip(
        0, np.nextafter(1, 0, dtype=np.float32)
    )
    rows = jnp.broadcast_to(logits, (len(edges), 500))
    tokens, logprobs = sample_categorical(rows, jnp.asarray(edges))
    assert np.isfinite(logits[np.asarray(tokens)]).all()
    assert np.isfinite(logprobs).all()


def test_logits_are_divided_by_the_temperature():
    hidden = jnp.ones((1, 4))
    embedding = jnp.ones((3, 4))
    np.testing.assert_allclose(to_logits(hidden, embedding, 2.0), 2.0)


def test_rows_of_the_same_key_are_the_same_and_a_number_depends_on_key_and_count_alone():
    keys = jnp.array([[1, 77], [2, 77], [1, 77]], jnp.uint32)
    first = jnp.array([4, 4, 3])
    row_uniforms = jax.jit(token_sampling.row_uniforms, static_argnums=2)
    a, b, c = np.asarray(row_uniforms(keys, first, 5))
    assert a[:4].tolist() == c[1:].tolist()
    assert len({*a.tolist(), *b.tolist(), c[0].item()}) == 11
    for numbers in (a, b, c):
        assert ((numbers >= 0) & (numbers < 1)).all()


@pytest.mark.parametrize(
    "sampling", [SamplingParams(8.0), SamplingParams(0.0), SamplingParams(8.0, top_k=3)]
)
def test_ids_that_no_token_has_are_never_drawn(sampling):
    """And the others have the probabilities that are left to them, as the scorer has them."""
    vocabulary = 48
    unused = ((0, 12), (30, vocabulary - 1))
    used = used_ids(vocabulary, unused)
    rng = np.random.default_rng(5)
    hidden = jnp.asarray(rng.normal(size=(3, 16)), jnp.float32)
    embedding = jnp.asarray(rng.normal(0, 0.3, (vocabulary, 16)), jnp.float32)
    drawn, logprobs = token_sampling.next_token(
        hidden,
        embedding,
        jnp.asarray([0.1, 0.5, 0.999]),
        jnp.zeros(3, jnp.int32),
        sampling.as_arrays(),
        ENDS,
        unused=unused,
    )
    assert used[np.asarray(drawn)].all()
    logits = to_logits(hidden, embedding, float(sampling.temperature) or 1.0)
    logits = np.where(used, logits, -np.inf)
    if sampling.top_k:
        logits = np.where(logits >= np.sort(logits)[:, -3:-2], logits, -np.inf)
    left = np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(logprobs, logits[np.arange(3), drawn] - left, atol=1e-5)
