"""Laws of sampling: rows are independent, ends are ends, and the log-probabilities are those the scorer finds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo import sampler
from jaxgrpo.logprobs import to_logits, token_logprobs
from jaxgrpo.models import transformer
from jaxgrpo.types import Prompts
from tests.tiny_models import NETWORK, random_params

WIDTH, NEW, GROUP, PAD, END = 6, 10, 3, 0, 7


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@pytest.fixture(scope="module")
def sample():
    return jax.jit(partial(sampler.sample, NETWORK, new_tokens=NEW, ends=(END,), pad=PAD))


def make_prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(8, NETWORK.vocab_size, (len(lengths), WIDTH)).astype(np.int32)
    mask = np.arange(WIDTH) >= WIDTH - np.array(lengths)[:, None]
    keys = rng.integers(0, 2**32, (len(lengths), GROUP, 2), dtype=np.uint32)
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(keys))


def test_sampler_and_scorer_agree(params, sample):
    for temperature in (0.5, 1.0, 2.0):
        rollout = sample(params, make_prompts(6, 3), temperature)
        segments = rollout.attention_mask.astype(jnp.int32)
        hidden, _ = transformer.forward(
            NETWORK,
            params,
            rollout.tokens,
            transformer.sequence_positions(segments),
            transformer.sequence_mask(segments),
        )
        scored, _ = token_logprobs(hidden, transformer.output_embedding(params), rollout.tokens, temperature, start=WIDTH)
        gap = np.where(rollout.completion_mask, scored - rollout.logprobs, 0.0)
        assert np.abs(gap).max() < 1e-4
        assert (np.asarray(rollout.logprobs)[np.asarray(rollout.completion_mask)] < 0).all()


def test_the_end_is_the_completions_last_token_and_nothing_follows(params, sample):
    seen = 0
    for seed in range(12):
        rollout = jax.device_get(sample(params, make_prompts(6, 4, 2, seed=seed), 2.0))
        for tokens, chosen, finished in zip(rollout.tokens, rollout.completion_mask, rollout.finished, strict=True):
            length = int(chosen.sum())
            assert chosen.tolist() == [WIDTH <= column < WIDTH + length for column in range(WIDTH + NEW)]
            completion = tokens[chosen].tolist()
            assert END not in completion[:-1]
            assert finished == (completion[-1] == END)
            assert finished or length == NEW
            assert (tokens[WIDTH + length :] == PAD).all()
            seen += bool(finished)
    assert seen > 5


def test_a_row_does_not_depend_on_its_neighbours(params, sample):
    prompts = make_prompts(6, 3, 5)
    turned = jax.tree.map(lambda x: x[::-1], prompts)
    straight, other = (jax.device_get(sample(params, p, 1.0)) for p in (prompts, turned))
    for name in ("tokens", "completion_mask", "finished"):
        a, b = getattr(straight, name), getattr(other, name)
        np.testing.assert_array_equal(a.reshape(3, GROUP, -1), b.reshape(3, GROUP, -1)[::-1])


def test_different_keys_give_different_texts_and_the_same_key_the_same(params, sample):
    prompts = make_prompts(6)
    same = prompts._replace(keys=jnp.broadcast_to(prompts.keys[:, :1], prompts.keys.shape))
    tokens = np.asarray(sample(params, prompts, 1.0).tokens)
    assert len({tuple(row) for row in tokens}) == GROUP
    tokens = np.asarray(sample(params, same, 1.0).tokens)
    assert len({tuple(row) for row in tokens}) == 1


def test_filler_rows_choose_nothing(params, sample):
    rollout = sample(params, make_prompts(6, 0), 1.0)
    assert not rollout.completion_mask[GROUP:].any()
    assert rollout.finished[GROUP:].all()


def test_temperature_compiles_nothing(params, sample):
    sample(params, make_prompts(6, 3), 1.0)
    programs = sample._cache_size()
    sample(params, make_prompts(2, 5, seed=3), 0.7)
    assert sample._cache_size() == programs


@pytest.mark.parametrize("vocabulary", [5, 64, 200])
def test_choose_follows_the_distribution(vocabulary):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=vocabulary) * 2, jnp.float32)
    many = 20_000
    uniform = jnp.asarray((np.arange(many) + 0.5) / many, jnp.float32)
    tokens, logprobs = sampler.choose(jnp.broadcast_to(logits, (many, vocabulary)), uniform)
    probs = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(np.bincount(tokens, minlength=vocabulary) / many, probs, atol=2e-4)
    np.testing.assert_allclose(logprobs, np.log(probs)[np.asarray(tokens)], rtol=1e-3, atol=1e-5)


def test_choose_never_takes_what_has_no_probability():
    logits = jnp.array([[-jnp.inf, 0.0, -jnp.inf, 0.0, -jnp.inf]] * 4)
    tokens, _ = sampler.choose(logits, jnp.array([0.0, 0.4999999, 0.5, 0.99999994]))
    assert set(tokens.tolist()) <= {1, 3}


def test_logits_are_divided_by_the_temperature():
    hidden, embedding = jnp.ones((1, 4)), jnp.ones((3, 4))
    np.testing.assert_allclose(to_logits(hidden, embedding, 2.0), 2.0)
