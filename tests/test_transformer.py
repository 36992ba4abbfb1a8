"""Laws of the network: what may read what, and that a cache changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.models import transformer
from jaxgrpo.models.rope import Rope
from tests.tiny_models import NETWORK, random_params


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@jax.jit
def hidden(params, tokens, segments):
    segments = jnp.asarray(segments)
    mask, positions = transformer.sequence_mask(segments), transformer.sequence_positions(segments)
    return transformer.forward(NETWORK, params, jnp.asarray(tokens), positions, mask)


def test_causality(params):
    tokens = np.arange(12).reshape(1, 12) + 3
    changed = tokens.copy()
    changed[0, 7] = 40
    ones = np.ones((1, 12), np.int32)
    before, after = hidden(params, tokens, ones)[0], hidden(params, changed, ones)[0]
    np.testing.assert_array_equal(before[0, :7], after[0, :7])
    assert not np.allclose(before[0, 7:], after[0, 7:])


def test_padding_on_the_left_changes_nothing(params):
    tokens = np.arange(6).reshape(1, 6) + 3
    padded = np.concatenate([np.full((1, 4), 9), tokens], axis=1)
    alone = hidden(params, tokens, np.ones((1, 6), bool))[0]
    after_padding = hidden(params, padded, np.arange(10)[None] >= 4)[0]
    np.testing.assert_allclose(after_padding[:, 4:], alone, atol=2e-5)


def test_packed_texts_do_not_see_each_other(params):
    first, second = np.arange(5) + 3, np.arange(7) + 20
    packed = np.concatenate([first, second, [0, 0]])[None]
    segments = np.array([[1] * 5 + [2] * 7 + [0] * 2])
    together = hidden(params, packed, segments)[0]
    alone = hidden(params, second[None], np.ones((1, 7), np.int32))[0]
    np.testing.assert_allclose(together[0, 5:12], alone[0], atol=2e-5)


def test_positions_count_tokens_of_their_own_text():
    positions = transformer.sequence_positions(jnp.array([[0, 0, 1, 1, 1, 2, 2, 0]]))
    assert positions[0, 2:7].tolist() == [0, 1, 2, 0, 1]


def test_reading_through_a_cache_is_reading_at_once(params):
    tokens, ones = jnp.arange(8).reshape(1, 8) + 3, jnp.ones((1, 8), bool)
    whole, _ = hidden(params, tokens, ones)
    _, key_values = hidden(params, tokens[:, :5], ones[:, :5])
    recent = jax.tree.map(lambda x: jnp.zeros_like(x[:, :, :3]), key_values)
    for column in range(5, 8):
        mask = (jnp.arange(8) <= column)[None, None]
        cache = transformer.Cache(key_values, recent, jnp.int32(column - 5))
        state, recent = transformer.forward(
            NETWORK, params, tokens[:, column : column + 1], jnp.array([[column]]), mask, cache
        )
        np.testing.assert_allclose(state[:, 0], whole[:, column], atol=2e-5)


def test_rotation_depends_on_the_distance_alone():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    near, far = (transformer.rotate(x, jnp.array([[p, p + 3]]), Rope().frequencies(8)) for p in (0, 50))
    products = [jnp.einsum("e,e->", r[0, 0, 0], r[0, 0, 1]) for r in (near, far)]
    np.testing.assert_allclose(*products, rtol=1e-4)


def test_a_row_of_padding_stays_finite(params):
    assert np.isfinite(hidden(params, np.zeros((1, 4), int), np.zeros((1, 4), bool))[0]).all()
