"""Chunked log-probabilities and entropies are the plain ones, forward and backward.

A chunk of the logits is the most that is held.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgrpo.device.logprobs import (
    chosen_logprobs,
    to_logits,
    token_logprobs,
    used_ids,
)
from jaxgrpo.distributed.mesh import make_mesh, row_sharding
from tests.tiny_devices import DEFAULT, output_on_devices

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 12
CHUNKS = [1, 5, 12, None]
SETTINGS = [(1, None, 0.7), (4, None, 1.0), (1, 2.0, 1.3)]
"""First column that is scored, softcap, temperature."""


def make_case(rows=ROWS, length=LENGTH, width=WIDTH, vocabulary=VOCABULARY):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, length, width))
    embedding = jax.random.normal(keys[1], (vocabulary, width))
    return hidden, embedding, jax.random.randint(keys[2], (rows, length), 0, vocabulary)


@pytest.fixture(scope="module")
def case():
    return make_case()


@partial(jax.jit, static_argnums=(4, 5), static_argnames=("start", "softcap"))
def plain(hidden, embedding, tokens, temperature, start=1, softcap=None):
    """Computes log-probabilities and entropies from all logits at once; 0 before `start`."""
    logits = hidden @ embedding.T
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logprobs = jax.nn.log_softmax(logits / temperature)[:, :-1]
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    is_scored = jnp.arange(tokens.shape[1]) >= start
    return tuple(
        jnp.pad(score, ((0, 0), (1, 0))) * is_scored for score in (chosen, entropy)
    )


@partial(
    jax.jit,
    static_argnames=("start", "softcap", "entropy", "chunk", "shards", "unused"),
)
def scores_from(hidden, embedding, tokens, temperature, start=1, **options):
    """Scores the columns from `start` on alone, from the hidden state before them; 0 elsewhere."""
    first = start - 1
    scores = token_logprobs(
        hidden[:, first:], embedding, tokens[:, first:], temperature, **options
    )
    return jax.tree.map(lambda score: jnp.pad(score, ((0, 0), (first, 0))), scores)


both = partial(scores_from, entropy=True)


def weighted(function, tokens, *settings, **options):
    """Returns (hidden, embedding) -> a sum where each entry of both results has its own weight."""
    weights = jax.random.normal(jax.random.key(1), (2, *tokens.shape))

    def total(hidden, embedding):
        scores = function(hidden, embedding, tokens, *settings, **options)
        return sum(jnp.sum(w * score) for w, score in zip(weights, scores, strict=True))

    return total


def gradients(function, hidden, embedding):
    """Computes the gradients for hidden and embedding."""
    return jax.grad(function, argnums=(0, 1))(hidden, embedding)


def values_and_gradients(function, hidden, embedding):
    """Computes the value, and its gradients for hidden and embedding."""
    return jax.value_and_grad(function, argnums=(0, 1))(hidden, embedding)


def assert_close(ours, theirs, rtol=1e-5, atol=1e-5):
    """Compares the arrays of two pytrees."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("start", "softcap", "temperature"), SETTINGS)
def test_chunks_are_exact(case, chunk, start, softcap, temperature):
    expected = plain(*case, temperature, start, softcap)
    assert_close(
        both(*case, temperature, start, softcap=softcap, chunk=chunk), expected
    )


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("start", "softcap", "temperature"), SETTINGS)
def test_gradients_are_those_of_the_plain_form(
    case, chunk, start, softcap, temperature
):
    hidden, embedding, tokens = case
    settings = {"start": start, "softcap": softcap}
    ours = weighted(both, tokens, temperature, **settings, chunk=chunk)
    theirs = weighted(plain, tokens, temperature, **settings)
    assert_close(
        gradients(ours, hidden, embedding), gradients(theirs, hidden, embedding)
    )


@pytest.mark.parametrize("which", [0, 1])
def test_each_result_has_its_own_gradient(case, which):
    hidden, embedding, tokens = case

    def ours(hidden, embedding):
        return jnp.sum(both(hidden, embedding, tokens, 0.7, chunk=5)[which])

    def theirs(hidden, embedding):
        return jnp.sum(plain(hidden, embedding, tokens, 0.7)[which])

    assert_close(
        gradients(ours, hidden, embedding), gradients(theirs, hidden, embedding)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 12},
        {"chunk": 5},
        {"chunk": 4, "shards": 2},
        {"chunk": 5, "unused": ((2, 4),)},
    ],
)
def test_the_gradient_is_added_to_that_of_the_embeddings_next_use(case, options):
    hidden, embedding, tokens = case
    next_use = jax.random.normal(jax.random.key(3), embedding.shape)

    def total(embedding):
        logprobs, entropy, passed_on = chosen_logprobs(
            hidden, embedding, tokens, 0.7, entropy=True, **options
        )
        return jnp.sum(logprobs + 0.5 * entropy), passed_on

    (_, passed_on), pull_back = jax.vjp(total, embedding)
    np.testing.assert_array_equal(passed_on, embedding)
    (alone,) = pull_back((1.0, jnp.zeros_like(next_use)))
    (together,) = pull_back((1.0, next_use))
    assert np.abs(alone).max() > 0.01
    np.testing.assert_allclose(together, alone + next_use, atol=1e-6)


def test_without_entropy_the_logprobs_are_the_same(case):
    logprobs, nothing = token_logprobs(*case, 0.7)
    assert nothing is None
    assert_close(logprobs, both(*case, 0.7)[0])


@pytest.mark.parametrize(
    ("shards", "chunk"), [(2, 1), (2, 8), (3, 7), (3, None), (12, 5)]
)
def test_shards_change_nothing(case, shards, chunk):
    hidden, embedding, tokens = case
    ours = weighted(both, tokens, 0.7, shards=shards, chunk=chunk)
    theirs = weighted(plain, tokens, 0.7)
    assert_close(
        values_and_gradients(ours, hidden, embedding),
        values_and_gradients(theirs, hidden, embedding),
    )


def test_a_vocabulary_divides_by_its_shards(case):
    with pytest.raises(
        ValueError, match="vocabulary of 12 cannot be divided into shards=5"
    ):
        token_logprobs(*case, 1.0, shards=5)


@pytest.mark.parametrize("chunk", [4, 5])
def test_every_token_counts_once(case, chunk):
    """This holds at the borders of chunks too, and where the last one overlaps."""
    hidden, embedding, _ = case
    tokens = jnp.broadcast_to(jnp.arange(VOCABULARY)[:, None], (VOCABULARY, 2))
    hidden = jnp.broadcast_to(hidden[:1, :2], (VOCABULARY, 2, WIDTH))
    logprobs, _ = token_logprobs(hidden, embedding, tokens, 1.0, chunk=chunk)
    np.testing.assert_allclose(
        logprobs[:, 1], jax.nn.log_softmax(embedding @ hidden[0, 0]), atol=1e-5
    )
    np.testing.assert_allclose(jnp.exp(logprobs[:, 1]).sum(), 1.0, atol=1e-5)


def test_entries_before_start_are_zero_and_have_no_gradient(case):
    hidden, embedding, tokens = case
    gradient, _ = gradients(weighted(both, tokens, 1.0, start=4), hidden, embedding)
    for score in both(*case, 1.0, start=4):
        assert not score[:, :4].any()
    assert not gradient[:, :3].any()
    assert not gradient[:, -1].any()
    assert gradient[:, 3:-1].all()
    for score in both(*case, 1.0, start=LENGTH):
        np.testing.assert_array_equal(score, np.zeros((ROWS, LENGTH)))


def test_bfloat16_stays_near_float32():
    """The tolerance is a hundredth: bfloat16 has three digits, and sums are in float32."""
    hidden, embedding, tokens = make_case(width=64, vocabulary=300)
    half = ((hidden / 8).astype(jnp.bfloat16), embedding.astype(jnp.bfloat16))
    full = tuple(x.astype(jnp.float32) for x in half)
    assert_close(
        both(*half, tokens, 0.7, chunk=128),
        plain(*full, tokens, 0.7),
        rtol=1e-4,
        atol=1e-4,
    )
    ours = gradients(weighted(both, tokens, 0.7, chunk=128), *half)
    theirs = gradients(weighted(plain, tokens, 0.7), *full)
    assert [x.dtype for x in ours] == [jnp.bfloat16] * 2
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(np.asarray(a, np.float32) - b) < 0.01 * np.linalg.norm(b)


def test_gradients_come_in_the_dtypes_of_the_inputs(case):
    hidden, embedding, tokens = case
    found = gradients(
        weighted(both, tokens, 1.0), hidden.astype(jnp.bfloat16), embedding
    )
    assert [x.dtype for x in found] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_logits_are_finite(case, dtype, scale):
    hidden, embedding, tokens = case
    inputs = ((hidden * scale).astype(dtype), embedding.astype(dtype))
    logprobs, entropy = both(*inputs, tokens, 0.5, chunk=5)
    d_inputs = gradients(weighted(both, tokens, 0.5, chunk=5), *inputs)
    for array in (logprobs, entropy, *d_inputs):
        assert np.isfinite(np.asarray(array, np.float32)).all()
    assert (logprobs <= 0).all()
    assert (entropy >= 0).all()


def shapes_of(rows, length, width, vocabulary):
    """Returns the shapes of hidden, embedding and tokens."""
    return [
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    ]


def temp_bytes(program, inputs):
    """Returns the memory that a program needs beyond its arguments and results."""
    compiled = jax.jit(program).lower(*inputs).compile(compiler_options=DEFAULT)
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("vocabulary", [4096, 4096 - 100])
def test_all_logits_are_never_held(entropy, vocabulary):
    rows, length, chunk = 8, 65, 128

    def scores(*inputs):
        return token_logprobs(*inputs, 1.0, chunk=chunk, entropy=entropy)

    def loss(*inputs):
        return sum(jnp.sum(score) for score in jax.tree.leaves(scores(*inputs)))

    chunk_bytes = rows * length * chunk * 4
    all_bytes = rows * length * vocabulary * 4
    for program in (scores, jax.value_and_grad(loss, argnums=(0, 1))):
        temp = temp_bytes(program, shapes_of(rows, length, 8, vocabulary))
        assert temp < 6 * chunk_bytes < all_bytes / 5


def test_the_default_chunk_holds_little_of_a_large_vocabulary():
    """The sizes are a language model's: compiled only, as running them here would take long."""

    def loss(*inputs):
        return jnp.sum(token_logprobs(*inputs, 1.0)[0])

    temp = temp_bytes(
        jax.value_and_grad(loss, argnums=(0, 1)), shapes_of(8, 1025, 64, 151936)
    )
    assert temp < 0.1 * 8 * 1024 * 151936 * 4


def test_entropy_costs_nothing_unless_asked_for():
    """Its gradient does not either, where it is not used."""

    def flops(program):
        return jax.jit(program).lower(*shapes_of(2, 9, 4, 256)).cost_analysis()["flops"]

    def gradient(entropy, use):
        def loss(*inputs):
            logprobs, value = token_logprobs(*inputs, 1.0, entropy=entropy)
            return jnp.sum(logprobs) + use(value)

        return flops(jax.grad(loss, argnums=(0, 1)))

    forward = flops(lambda *inputs: token_logprobs(*inputs, 1.0, entropy=False))
    forward_entropy = flops(lambda *inputs: token_logprobs(*inputs, 1.0, entropy=True))
    without = gradient(False, lambda _: 0.0)
    metric = gradient(True, lambda value: jax.lax.stop_gradient(value).sum())
    bonus = gradient(True, jnp.sum)
    logits = 2 * 8 * 256
    assert forward + logits < forward_entropy
    assert metric - without < forward_entropy - forward + logits / 2
    assert metric + logits < bonus


def test_a_temperature_compiles_nothing(case):
    program = jax.jit(partial(token_logprobs, entropy=True))
    for temperature in (0.5, 1.0, 1.5):
        assert_close(program(*case, temperature), plain(*case, temperature))
    assert program._cache_size() == 1


def test_it_can_be_rematerialized_and_scanned(case):
    hidden, embedding, tokens = case
    once = weighted(both, tokens, 0.7, chunk=5)

    def scanned(hidden, embedding):
        add = jax.checkpoint(
            lambda total, scale: (total + once(hidden * scale, embedding), None)
        )
        return jax.lax.scan(add, 0.0, jnp.array([1.0, 0.5]))[0]

    def twice(hidden, embedding):
        return once(hidden, embedding) + once(hidden * 0.5, embedding)

    assert_close(
        jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(hidden, embedding),
        jax.jit(jax.value_and_grad(twice, argnums=(0, 1)))(hidden, embedding),
    )


def test_a_softcap_bounds_logits_before_the_temperature():
    logits = to_logits(
        jnp.array([[100.0], [0.01]]), jnp.array([[1.0], [-1.0]]), 0.5, 30.0
    )
    bound = 60 * np.tanh(10 / 3)
    np.testing.assert_allclose(logits, [[bound, -bound], [0.02, -0.02]], rtol=1e-6)


COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def moved(program):
    """Returns the elements of the largest array that a compiled program moves between devices."""
    shapes = []
    for result in re.findall(
        rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", program.as_text()
    ):
        shapes.extend(re.findall(r"\w\[([\d,]*)\]", result))
    assert shapes
    sizes = []
    for shape in shapes:
        axes = [int(axis) for axis in shape.split(",") if axis]
        sizes.append(int(np.prod(axes)))
    return max(sizes)


def compare_meshes():
    """Compares every mesh of eight devices with one device, in a process that has eight.

    No more than a chunk moves between devices at a time.
    """
    chunk, vocabulary, width = 512, 8192, 16
    hidden, embedding, tokens = make_case(8, 9, width, vocabulary)
    expected = values_and_gradients(weighted(plain, tokens, 0.7), hidden, embedding)
    for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
        mesh = make_mesh(*sizes)
        rows = row_sharding(mesh)
        matrix = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
        replicated = NamedSharding(mesh, PartitionSpec())
        inputs = jax.device_put((hidden, embedding, tokens), (rows, matrix, rows))

        def loss(hidden, embedding, tokens, shards=mesh.shape["tensor"]):
            return weighted(both, tokens, 0.7, chunk=chunk, shards=shards)(
                hidden, embedding
            )

        program = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1)),
            out_shardings=(replicated, (rows, matrix)),
        )
        compiled = program.lower(*inputs).compile()
        assert_close(compiled(*inputs), expected, rtol=1e-4, atol=1e-4)
        assert moved(compiled) <= chunk * width, moved(compiled)
        print("equal", *sizes)


def test_every_mesh_gives_the_same_and_keeps_the_vocabulary_where_it_is():
    assert output_on_devices(compare_meshes).count("equal") == 4


def compare_inside_shard_map():
    """Compares rows of each device's own beside one embedding for all with one device.

    The gradient is taken inside and outside, with JAX's check of what varies and without it.
    """
    rows = PartitionSpec("data")
    same = PartitionSpec()
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    hidden, embedding, tokens = make_case(rows=8)
    weights = jnp.arange(1.0, LENGTH)

    def loss(hidden, embedding, tokens, chunk):
        logprobs, entropy = both(hidden, embedding, tokens, 0.7, chunk=chunk)
        return jnp.sum(weights * (logprobs + entropy)[:, 1:])

    def total(hidden, embedding, tokens, chunk):
        return jax.lax.psum(loss(hidden, embedding, tokens, chunk), "data")

    def own_gradients(hidden, embedding, tokens, chunk, is_checked):
        value, (d_hidden, d_embedding) = jax.value_and_grad(loss, argnums=(0, 1))(
            hidden, embedding, tokens, chunk
        )
        if not is_checked:
            # Without the check JAX does not know that the embedding is the same on all devices.
            d_embedding = jax.lax.psum(d_embedding, "data")
        return jax.lax.psum(value, "data"), (d_hidden, d_embedding)

    for chunk in (5, 12):
        expected = jax.value_and_grad(partial(loss, chunk=chunk), argnums=(0, 1))(
            hidden, embedding, tokens
        )
        for is_checked in (True, False):
            place = partial(
                jax.shard_map,
                mesh=mesh,
                in_specs=(rows, same, rows),
                check_vma=is_checked,
            )
            outside = place(partial(total, chunk=chunk), out_specs=same)
            inside = place(
                partial(own_gradients, chunk=chunk, is_checked=is_checked),
                out_specs=(same, (rows, same)),
            )
            for program in (jax.value_and_grad(outside, argnums=(0, 1)), inside):
                found = jax.jit(program)(hidden, embedding, tokens)
                assert_close(found, expected, rtol=1e-4, atol=1e-4)
                print("equal", chunk, is_checked)


def test_inside_shard_map_the_embeddings_gradient_is_that_of_all_rows():
    assert output_on_devices(compare_inside_shard_map).count("equal") == 8


def test_an_embedding_that_lies_the_wrong_way_is_named(case, monkeypatch):
    # The checks of types and axes, which are made in tests alone, would speak first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    hidden, embedding, tokens = case
    with pytest.raises(
        ValueError, match=r"it must be \[vocabulary, 5\]; .* embedding\.T"
    ):
        token_logprobs(hidden, embedding.T, tokens, 1.0)
    with pytest.raises(
        ValueError, match=r"\[12, 4\], and hidden states have 5 columns"
    ):
        token_logprobs(hidden, embedding[:, :4], tokens, 1.0)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shards", [1, 3])
def test_ids_that_no_token_has_are_in_no_softmax(case, chunk, shards):
    """Forward and backward are as if their logits were minus infinity."""
    hidden, embedding, tokens = case
    unused = ((0, 1), (5, 7), (11, 12))
    used = jnp.asarray(used_ids(VOCABULARY, unused))
    assert used.tolist() == [False, *[True] * 4, False, False, *[True] * 4, False]
    tokens = jnp.where(used[tokens], tokens, 3)

    def masked(hidden, embedding, tokens):
        logprobs = jax.nn.log_softmax(
            jnp.where(used, hidden @ embedding.T / 0.7, -jnp.inf)
        )[:, :-1]
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        finite = jnp.where(used, logprobs, 0.0)
        entropy = -jnp.sum(jnp.where(used, jnp.exp(finite), 0.0) * finite, axis=-1)
        return tuple(jnp.pad(score, ((0, 0), (1, 0))) for score in (chosen, entropy))

    ours = weighted(both, tokens, 0.7, chunk=chunk, shards=shards, unused=unused)
    expected = values_and_gradients(weighted(masked, tokens), hidden, embedding)
    value, (d_hidden, d_embedding) = values_and_gradients(ours, hidden, embedding)
    assert_close((value, (d_hidden, d_embedding)), expected)
    assert not d_embedding[~used].any()
