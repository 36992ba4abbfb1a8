"""Laws of the network: what may read what, and that a cache changes nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.models import attention, transformer
from jaxgrpo.models.rope import Linear, Llama3, Rope, Yarn
from tests.tiny_models import NETWORK, random_params

SLIDING = replace(NETWORK, windows=(3, 0), local_rope=Llama3(100.0, original_positions=16))
"""Layers that differ."""

VARIED = replace(
    SLIDING,
    head_norm="head",
    norms="around",
    norm_offset=1.0,
    activation="gelu_tanh",
    embedding_scale=4.0,
    query_scale=0.7,
    attention_softcap=2.0,
)
"""And whatever else a family may have."""


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORK)


@pytest.fixture(scope="module")
def varied():
    return random_params(VARIED)


@partial(jax.jit, static_argnames="network")
def hidden(params, tokens, segments, network=NETWORK):
    segments = jnp.asarray(segments)
    mask, positions = attention.sequence_mask(segments), attention.sequence_positions(segments)
    return transformer.forward(network, params, jnp.asarray(tokens), positions, mask)


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
    positions = attention.sequence_positions(jnp.array([[0, 0, 1, 1, 1, 2, 2, 0]]))
    assert positions[0, 2:7].tolist() == [0, 1, 2, 0, 1]


def test_a_window_ends_what_a_layer_reads(params):
    """One layer of a window of 3 reads a token from its own column and the two after it."""
    network = replace(NETWORK, layers=1, windows=(3,))
    tokens, ones = np.arange(12).reshape(1, 12) + 3, np.ones((1, 12), np.int32)
    changed = tokens.copy()
    changed[0, 4] = 40
    before, after = (hidden(params, t, ones, network)[0][0] for t in (tokens, changed))
    differs = np.abs(before - after).max(axis=1) > 1e-4
    assert np.flatnonzero(differs).tolist() == [4, 5, 6]


def test_windows_go_by_positions_where_columns_are_in_no_order(varied):
    """The keys of tokens 5 to 7 lie in columns 2, 0, 1 of the recent ones, as in a ring."""
    network, tokens, ones = VARIED, jnp.arange(8).reshape(1, 8) + 3, jnp.ones((1, 8), bool)
    whole, _ = hidden(varied, tokens, ones, network)
    _, key_values = hidden(varied, tokens[:, :5], ones[:, :5], network)
    recent = jax.tree.map(
        jnp.zeros_like, tuple((keys[..., :3], values[:, :, :3]) for keys, values in key_values)
    )
    key_positions = jnp.array([[0, 1, 2, 3, 4, 6, 7, 5]])

    @jax.jit
    def read(token, position, recent, column):
        cache = attention.KVCache(key_values, recent, column)
        mask = (key_positions <= position)[:, None]
        return transformer.forward(
            network, varied, token, position, mask, cache, key_positions=key_positions
        )

    for position, column in ((5, 2), (6, 0), (7, 1)):
        state, recent = read(
            tokens[:, position : position + 1], jnp.array([[position]]), recent, jnp.int32(column)
        )
        np.testing.assert_allclose(state[:, 0], whole[:, position], atol=2e-5)
    unknown = (
        network,
        varied,
        tokens[:, :1],
        jnp.zeros((1, 1), int),
        jnp.ones((1, 1, 8), bool),
        attention.KVCache(key_values),
    )
    with pytest.raises(ValueError, match="this network has windows"):
        transformer.forward(*unknown)


def test_scalings_leave_fast_pairs_and_slow_the_others():
    """A pair that turns often within the original context keeps its pace; one that hardly turns is slowed by the factor."""
    plain = Rope(1e4).frequencies(32)
    np.testing.assert_allclose(plain, 1e4 ** (-np.arange(16) / 16), rtol=1e-7)
    np.testing.assert_allclose(Linear(1e4, 4.0).frequencies(32), plain / 4, rtol=1e-6)
    for scaled in (Llama3(1e4, 4.0, original_positions=64), Yarn(1e4, 4.0, original_positions=64)):
        share = scaled.frequencies(32) / plain
        np.testing.assert_allclose(share[[0, -1]], [1.0, 0.25], rtol=1e-6)
        assert np.all(np.diff(share) <= 1e-6)
    assert Yarn(1e4, 4.0).magnitude() == pytest.approx(1.0 + 0.1 * np.log(4.0))
    assert Yarn(1e4, 4.0, attention_factor=1.5).magnitude() == 1.5


def test_rotation_depends_on_the_distance_alone():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    near, far = (
        attention.apply_rotary(x, attention.rotary_table(Rope(), 8, jnp.array([[p, p + 3]])))
        for p in (0, 50)
    )
    products = [jnp.einsum("e,e->", r[0, 0, 0], r[0, 0, 1]) for r in (near, far)]
    np.testing.assert_allclose(*products, rtol=1e-4)


def test_a_row_of_padding_stays_finite(params):
    assert np.isfinite(hidden(params, np.zeros((1, 4), int), np.zeros((1, 4), bool))[0]).all()


def test_stacking_loses_nothing(params):
    stacked = transformer.stack(params)
    assert stacked.keys() == {"embedding", "norm", "layers"}
    back = transformer.unstack(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert transformer.stack(stacked) is stacked
    assert transformer.unstack(params) is params


@pytest.fixture(scope="module")
def read_on():
    """(params, remat) -> hidden states of texts that go on from prompts, and the gradient of a number made of them."""
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, NETWORK.vocab_size)
    ones, direction = (
        jnp.ones(tokens.shape, bool),
        jax.random.normal(jax.random.key(2), (3, 5, NETWORK.width)),
    )

    def read(params, remat):
        mask, positions = attention.sequence_mask(ones), attention.sequence_positions(ones)
        forward = lambda cut, *cache: transformer.forward(
            SLIDING,
            params,
            tokens[:, cut],
            positions[:, cut],
            mask[:, cut, : cut.stop],
            *cache,
            remat=remat,
            key_positions=positions[:, : cut.stop],
        )
        _, prompt = forward(slice(0, 4))
        return forward(slice(4, 9), attention.KVCache(prompt))[0]

    number = lambda params, remat: jnp.vdot(read(params, remat), direction)
    return jax.jit(
        lambda params, remat: (read(params, remat), jax.grad(number)(params, remat)),
        static_argnums=1,
    )


@pytest.mark.parametrize("remat", transformer.REMAT)
@pytest.mark.parametrize("layout", [transformer.unstack, transformer.stack])
def test_neither_scanning_nor_rematerialising_changes_a_number(params, read_on, layout, remat):
    expected, expected_gradient = read_on(params, "none")
    hidden, gradient = read_on(layout(params), remat)
    np.testing.assert_allclose(hidden, expected, rtol=1e-6, atol=2e-6)
    for leaf, wanted in zip(
        *map(jax.tree.leaves, (transformer.unstack(gradient), expected_gradient)), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_less_is_kept_for_the_backward_pass(params):
    """Full keeps a layer's input alone, dots the matrix products too."""

    def kept(remat):
        tokens, ones = jnp.zeros((2, 16), int), jnp.ones((2, 16), bool)
        mask, positions = attention.sequence_mask(ones), attention.sequence_positions(ones)
        hidden = lambda params: transformer.forward(
            NETWORK, params, tokens, positions, mask, remat=remat
        )[0]
        return sum(
            leaf.size
            for leaf in jax.tree.leaves(
                jax.eval_shape(lambda params: jax.vjp(hidden, params)[1], params)
            )
        )

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("layout", [transformer.unstack, transformer.stack])
def test_the_backward_pass_computes_only_what_is_not_kept(params, layout):
    """Full computes all matrix products of a layer again, dots the two of attention."""
    tokens, ones = jnp.zeros((2, 16), int), jnp.ones((2, 16), bool)
    mask, positions = attention.sequence_mask(ones), attention.sequence_positions(ones)

    def products(remat):
        hidden = lambda params: transformer.forward(
            NETWORK, params, tokens, positions, mask, remat=remat
        )[0]
        gradient = jax.grad(lambda params: hidden(params).sum())
        return jax.jit(gradient).lower(layout(params)).as_text().count("dot_general")

    layers = NETWORK.layers if layout is transformer.unstack else 1
    assert products("dots") - products("none") == 2 * layers
    # The last product is left out: nothing in its layer is made of it.
    assert products("full") - products("none") == 8 * layers
