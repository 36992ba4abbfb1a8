"""Laws of the network: what may read what, and that a cache changes nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.models import attention, transformer
from jaxgrpo.models.rope import Linear, Llama3, Rope, Yarn
from jaxgrpo.models.transformer import SequenceInputs
from tests.tiny_models import NETWORK, random_params

SLIDING = replace(
    NETWORK, windows=(3, 0), local_rope=Llama3(100.0, original_positions=16)
)
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


def sequence_inputs(tokens, segments):
    """Returns the inputs of sequences that read themselves."""
    segments = jnp.asarray(segments)
    return SequenceInputs(
        tokens=jnp.asarray(tokens),
        positions=attention.sequence_positions(segments),
        mask=attention.sequence_mask(segments),
    )


@partial(jax.jit, static_argnames="network")
def hidden(params, tokens, segments, network=NETWORK):
    """Returns hidden states, and keys and values."""
    return transformer.forward(network, params, sequence_inputs(tokens, segments))


def test_causality(params):
    tokens = np.arange(12).reshape(1, 12) + 3
    changed = tokens.copy()
    changed[0, 7] = 40
    ones = np.ones((1, 12), np.int32)
    before, _ = hidden(params, tokens, ones)
    after, _ = hidden(params, changed, ones)
    np.testing.assert_array_equal(before[0, :7], after[0, :7])
    assert not np.allclose(before[0, 7:], after[0, 7:])


def test_padding_on_the_left_changes_nothing(params):
    tokens = np.arange(6).reshape(1, 6) + 3
    padded = np.concatenate([np.full((1, 4), 9), tokens], axis=1)
    alone = hidden(params, tokens, np.ones((1, 6), bool))[0]
    after_padding = hidden(params, padded, np.arange(10)[None] >= 4)[0]
    np.testing.assert_allclose(after_padding[:, 4:], alone, atol=2e-5)


def test_packed_texts_do_not_see_each_other(params):
    first = np.arange(5) + 3
    second = np.arange(7) + 20
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
    tokens = np.arange(12).reshape(1, 12) + 3
    ones = np.ones((1, 12), np.int32)
    changed = tokens.copy()
    changed[0, 4] = 40
    before, _ = hidden(params, tokens, ones, network)
    after, _ = hidden(params, changed, ones, network)
    differs = np.abs(before[0] - after[0]).max(axis=1) > 1e-4
    assert np.flatnonzero(differs).tolist() == [4, 5, 6]


def test_windows_go_by_positions_where_columns_are_in_no_order(varied):
    """The keys of tokens 0 to 7 lie in columns 5, 6, 7, 0, 1, ... of the ring."""
    tokens = jnp.arange(8).reshape(1, 8) + 3
    ones = jnp.ones((1, 8), bool)
    expected, _ = hidden(varied, tokens, ones, VARIED)
    _, prompt = hidden(varied, tokens[:, :5], ones[:, :5], VARIED)
    widths = ((0, 0), (0, 0), (0, 0))
    ring = tuple(
        (
            jnp.roll(jnp.pad(keys, (*widths, (0, 3))), 5, axis=3),
            jnp.roll(jnp.pad(values, (*widths[:2], (0, 3), (0, 0))), 5, axis=2),
        )
        for keys, values in prompt
    )
    key_positions = (jnp.arange(8) - 5)[None] % 8

    @jax.jit
    def read(token, position, ring, column):
        mask = (key_positions <= position)[:, None]
        inputs = SequenceInputs(token, position, mask, key_positions)
        cache = attention.KVCache(ring, column)
        return transformer.forward(VARIED, varied, inputs, cache)

    for position, column in ((5, 2), (6, 3), (7, 4)):
        token = tokens[:, position : position + 1]
        state, ring = read(token, jnp.array([[position]]), ring, jnp.int32(column))
        np.testing.assert_allclose(state[:, 0], expected[:, position], atol=2e-5)
    without_key_positions = SequenceInputs(
        tokens[:, :1], jnp.zeros((1, 1), int), jnp.ones((1, 1, 8), bool)
    )
    with pytest.raises(ValueError, match="this network has windows"):
        transformer.forward(
            VARIED, varied, without_key_positions, attention.KVCache(prompt)
        )


def test_scalings_leave_fast_pairs_and_slow_the_others():
    """A pair that turns often within the original context keeps its pace.

    One that hardly turns is slowed by the factor.
    """
    plain = Rope(1e4).frequencies(32)
    np.testing.assert_allclose(plain, 1e4 ** (-np.arange(16) / 16), rtol=1e-7)
    np.testing.assert_allclose(Linear(1e4, 4.0).frequencies(32), plain / 4, rtol=1e-6)
    for scaled in (
        Llama3(1e4, 4.0, original_positions=64),
        Yarn(1e4, 4.0, original_positions=64),
    ):
        share = scaled.frequencies(32) / plain
        np.testing.assert_allclose(share[[0, -1]], [1.0, 0.25], rtol=1e-6)
        assert np.all(np.diff(share) <= 1e-6)
    assert Yarn(1e4, 4.0).magnitude() == pytest.approx(1.0 + 0.1 * np.log(4.0))
    assert Yarn(1e4, 4.0, attention_factor=1.5).magnitude() == 1.5


def test_rotation_depends_on_the_distance_alone():
    x = jax.random.normal(jax.random.key(0), (1, 1, 2, 8))
    near, far = (
        attention.apply_rotary(
            x, attention.rotary_table(Rope(), 8, jnp.array([[p, p + 3]]))
        )
        for p in (0, 50)
    )
    products = [jnp.einsum("e,e->", r[0, 0, 0], r[0, 0, 1]) for r in (near, far)]
    np.testing.assert_allclose(*products, rtol=1e-4)


def test_a_row_of_padding_stays_finite(params):
    assert np.isfinite(
        hidden(params, np.zeros((1, 4), int), np.zeros((1, 4), bool))[0]
    ).all()


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
    """Returns a function of (params, remat) that reads texts which go on from prompts.

    It returns their hidden states, and the gradient of a number made of them.
    """
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, NETWORK.vocab_size)
    direction = jax.random.normal(jax.random.key(2), (3, 5, NETWORK.width))
    whole = sequence_inputs(tokens, jnp.ones(tokens.shape, bool))

    def inputs_of(columns):
        return SequenceInputs(
            tokens=whole.tokens[:, columns],
            positions=whole.positions[:, columns],
            mask=whole.mask[:, columns, : columns.stop],
            key_positions=whole.positions[:, : columns.stop],
        )

    sequences = (inputs_of(slice(0, 4)), inputs_of(slice(4, 9)))

    def read(params, remat):
        (_, hidden), _ = transformer.forward_sequences(
            SLIDING, params, sequences, attention_fns=(None, None), remat=remat
        )
        return hidden

    def number(params, remat):
        return jnp.vdot(read(params, remat), direction)

    @partial(jax.jit, static_argnums=1)
    def hidden_and_gradient(params, remat):
        return read(params, remat), jax.grad(number)(params, remat)

    return hidden_and_gradient


@pytest.mark.parametrize("remat", transformer.REMAT)
@pytest.mark.parametrize("layout", [transformer.unstack, transformer.stack])
def test_neither_scanning_nor_rematerialising_changes_a_number(
    params, read_on, layout, remat
):
    expected_hidden, expected_gradient = read_on(params, "none")
    hidden, gradient = read_on(layout(params), remat)
    np.testing.assert_allclose(hidden, expected_hidden, rtol=1e-6, atol=2e-6)

    def assert_near(leaf, expected):
        atol = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=atol)

    jax.tree.map(assert_near, transformer.unstack(gradient), expected_gradient)


def hidden_states(remat):
    """Returns a function of parameters that reads two texts of 16 tokens."""
    inputs = sequence_inputs(jnp.zeros((2, 16), int), jnp.ones((2, 16), bool))

    def read(params):
        (hidden,), _ = transformer.forward_sequences(
            NETWORK, params, (inputs,), remat=remat
        )
        return hidden

    return read


def test_less_is_kept_for_the_backward_pass(params):
    """Full keeps a layer's input alone, dots the matrix products too."""

    def kept(remat):
        read = hidden_states(remat)

        def residuals(params):
            return jax.vjp(read, params)[1]

        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(residuals, params))
        )

    assert kept("full") < kept("dots") < kept("none")


@pytest.mark.parametrize("layout", [transformer.unstack, transformer.stack])
def test_the_backward_pass_computes_only_what_is_not_kept(params, layout):
    """Full computes all matrix products of a layer again, dots the two of attention."""

    def products(remat):
        read = hidden_states(remat)
        gradient = jax.grad(lambda params: read(params).sum())
        return jax.jit(gradient).lower(layout(params)).as_text().count("dot_general")

    layers = NETWORK.layers if layout is transformer.unstack else 1
    assert products("dots") - products("none") == 2 * layers
    # The last product is left out: nothing in its layer is made of it.
    assert products("full") - products("none") == 8 * layers


def test_a_token_attends_by_products_of_more_than_one_row():
    """With one row, as where each head has its own keys, TPUs would copy all keys for a token."""
    queries = jnp.zeros((2, 4, 1, 8))
    parts = [(jnp.zeros((2, 4, 8, 6)), jnp.zeros((2, 4, 6, 8)))]
    mask = jnp.ones((2, 1, 6), bool)
    jaxpr = jax.make_jaxpr(attention.attend)(queries, parts, mask)
    products = [
        eqn.outvars[0].aval.shape
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert products == [(2, 4, 2, 6), (2, 4, 2, 8)]
    assert jaxpr.out_avals[0].shape == queries.shape
