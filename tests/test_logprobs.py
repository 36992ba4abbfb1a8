"""Chunked log-probabilities and entropies are the plain ones, forward and backward, and a chunk is the most that is held."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgrpo.device.logprobs import to_logits, token_logprobs, used_ids
from jaxgrpo.distributed.mesh import make_mesh, row_sharding
from tests.tiny_devices import DEFAULT, output_on_devices

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 12
CHUNKS = [1, 5, 12, None]
SETTINGS = [(1, None, 0.7), (4, None, 1.0), (1, 2.0, 1.3)]


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
    logits = hidden @ embedding.T
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    logprobs = jax.nn.log_softmax(logits / temperature)[:, :-1]
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    wide = lambda x: jnp.pad(x, ((0, 0), (1, 0))) * (jnp.arange(tokens.shape[1]) >= start)
    return wide(chosen), wide(entropy)


compiled = jax.jit(
    token_logprobs, static_argnames=("start", "softcap", "entropy", "chunk", "shards", "unused")
)
both = partial(compiled, entropy=True)


def weighted(function, tokens, *settings, **options):
    """(hidden, embedding) -> a sum in which every entry of both results has its own weight."""
    weights = jax.random.normal(jax.random.key(1), (2, *tokens.shape))
    return lambda h, e: sum(
        jnp.sum(w * x)
        for w, x in zip(weights, function(h, e, tokens, *settings, **options), strict=True)
    )


def assert_close(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or {"rtol": 1e-5, "atol": 1e-5}))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("start", "softcap", "temperature"), SETTINGS)
def test_chunks_are_exact(case, chunk, start, softcap, temperature):
    expected = plain(*case, temperature, start, softcap)
    assert_close(both(*case, temperature, start, softcap=softcap, chunk=chunk), expected)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("start", "softcap", "temperature"), SETTINGS)
def test_gradients_are_those_of_the_plain_form(case, chunk, start, softcap, temperature):
    hidden, embedding, tokens = case
    settings = {"start": start, "softcap": softcap}
    ours = weighted(both, tokens, temperature, **settings, chunk=chunk)
    theirs = weighted(plain, tokens, temperature, **settings)
    assert_close(*(jax.grad(f, argnums=(0, 1))(hidden, embedding) for f in (ours, theirs)))


@pytest.mark.parametrize("which", [0, 1])
def test_each_result_has_its_own_gradient(case, which):
    hidden, embedding, tokens = case
    total = lambda function: lambda h, e: jnp.sum(function(h, e, tokens, 0.7)[which])
    assert_close(
        *(
            jax.grad(total(f), argnums=(0, 1))(hidden, embedding)
            for f in (partial(both, chunk=5), plain)
        )
    )


def test_without_entropy_the_logprobs_are_the_same(case):
    logprobs, nothing = token_logprobs(*case, 0.7)
    assert nothing is None
    assert_close(logprobs, both(*case, 0.7)[0])


@pytest.mark.parametrize(("shards", "chunk"), [(2, 1), (2, 8), (3, 7), (3, None), (12, 5)])
def test_shards_change_nothing(case, shards, chunk):
    hidden, embedding, tokens = case
    ours = weighted(both, tokens, 0.7, shards=shards, chunk=chunk)
    theirs = weighted(plain, tokens, 0.7)
    assert_close(
        *(jax.value_and_grad(f, argnums=(0, 1))(hidden, embedding) for f in (ours, theirs))
    )


def test_a_vocabulary_divides_by_its_shards(case):
    with pytest.raises(ValueError, match="vocabulary of 12 cannot be divided into shards=5"):
        token_logprobs(*case, 1.0, shards=5)


@pytest.mark.parametrize("chunk", [4, 5])
def test_every_token_counts_once(case, chunk):
    """At the borders of chunks too, and where the last one reaches back."""
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
    gradient = jax.grad(weighted(both, tokens, 1.0, start=4))(hidden, embedding)
    for score in both(*case, 1.0, start=4):
        assert not score[:, :4].any()
    assert not gradient[:, :3].any()
    assert not gradient[:, -1].any()
    assert gradient[:, 3:-1].all()
    for score in both(*case, 1.0, start=LENGTH):
        np.testing.assert_array_equal(score, np.zeros((ROWS, LENGTH)))


def test_bfloat16_stays_near_float32():
    """A hundredth: bfloat16 has three digits, and sums are in float32."""
    hidden, embedding, tokens = make_case(width=64, vocabulary=300)
    half = (hidden / 8).astype(jnp.bfloat16), embedding.astype(jnp.bfloat16)
    full = tuple(x.astype(jnp.float32) for x in half)
    assert_close(
        both(*half, tokens, 0.7, chunk=128), plain(*full, tokens, 0.7), rtol=1e-4, atol=1e-4
    )
    ours = jax.grad(weighted(both, tokens, 0.7, chunk=128), argnums=(0, 1))(*half)
    theirs = jax.grad(weighted(plain, tokens, 0.7), argnums=(0, 1))(*full)
    assert [x.dtype for x in ours] == [jnp.bfloat16] * 2
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(np.asarray(a, np.float32) - b) < 0.01 * np.linalg.norm(b)


def test_gradients_come_in_the_dtypes_of_the_inputs(case):
    hidden, embedding, tokens = case
    gradient = jax.grad(weighted(both, tokens, 1.0), argnums=(0, 1))(
        hidden.astype(jnp.bfloat16), embedding
    )
    assert [x.dtype for x in gradient] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_logits_are_finite(case, dtype, scale):
    hidden, embedding, tokens = case
    inputs = (hidden * scale).astype(dtype), embedding.astype(dtype)
    logprobs, entropy = both(*inputs, tokens, 0.5, chunk=5)
    for array in (
        logprobs,
        entropy,
        *jax.grad(weighted(both, tokens, 0.5, chunk=5), argnums=(0, 1))(*inputs),
    ):
        assert np.isfinite(np.asarray(array, np.float32)).all()
    assert (logprobs <= 0).all()
    assert (entropy >= 0).all()


def shapes_of(rows, length, width, vocabulary):
    shapes = [(rows, length, width), (vocabulary, width)]
    return [
        *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
    ]


def temp_bytes(program, inputs):
    return (
        jax.jit(program)
        .lower(*inputs)
        .compile(compiler_options=DEFAULT)
        .memory_analysis()
        .temp_size_in_bytes
    )


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("vocabulary", [4096, 4096 - 100])
def test_all_logits_are_never_held(entropy, vocabulary):
    rows, length, chunk = 8, 65, 128
    scores = lambda *inputs: token_logprobs(*inputs, 1.0, chunk=chunk, entropy=entropy)
    loss = lambda *inputs: sum(jnp.sum(score) for score in jax.tree.leaves(scores(*inputs)))
    for program in (scores, jax.value_and_grad(loss, argnums=(0, 1))):
        temp = temp_bytes(program, shapes_of(rows, length, 8, vocabulary))
        chunk_bytes, all_bytes = (rows * length * columns * 4 for columns in (chunk, vocabulary))
        assert temp < 6 * chunk_bytes < all_bytes / 5


def test_the_default_chunk_holds_little_of_a_large_vocabulary():
    """A language model's: compiled only, for nobody has the time to run it here."""
    inputs = shapes_of(8, 1025, 64, 151936)
    loss = lambda *inputs: jnp.sum(token_logprobs(*inputs, 1.0)[0])
    assert (
        temp_bytes(jax.value_and_grad(loss, argnums=(0, 1)), inputs) < 0.1 * 8 * 1024 * 151936 * 4
    )


def test_entropy_costs_nothing_unless_asked_for():
    """Nor does its gradient, where nothing is made of it."""

    def flops(program):
        return jax.jit(program).lower(*shapes_of(2, 9, 4, 256)).cost_analysis()["flops"]

    def gradient(entropy, use):
        def loss(*inputs):
            logprobs, value = token_logprobs(*inputs, 1.0, entropy=entropy)
            return jnp.sum(logprobs) + use(value)

        return flops(jax.grad(loss, argnums=(0, 1)))

    forward = [
        flops(lambda *inputs, e=e: token_logprobs(*inputs, 1.0, entropy=e)) for e in (False, True)
    ]
    without, metric = (
        gradient(False, lambda _: 0.0),
        gradient(True, lambda value: jax.lax.stop_gradient(value).sum()),
    )
    bonus = gradient(True, jnp.sum)
    logits = 2 * 8 * 256
    assert forward[0] + logits < forward[1]
    assert metric - without < forward[1] - forward[0] + logits / 2
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
        add = jax.checkpoint(lambda total, scale: (total + once(hidden * scale, embedding), None))
        return jax.lax.scan(add, 0.0, jnp.array([1.0, 0.5]))[0]

    twice = lambda h, e: once(h, e) + once(h * 0.5, e)
    assert_close(
        *(
            jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(hidden, embedding)
            for f in (scanned, twice)
        )
    )


def test_a_softcap_bounds_logits_before_the_temperature():
    logits = to_logits(jnp.array([[100.0], [0.01]]), jnp.array([[1.0], [-1.0]]), 0.5, 30.0)
    bound = 60 * np.tanh(10 / 3)
    np.testing.assert_allclose(logits, [[bound, -bound], [0.02, -0.02]], rtol=1e-6)


def moved(program):
    """The largest array that any of a compiled program's exchanges between devices is about, in elements."""
    pattern = r"= (.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    shapes = [
        shape
        for found in re.findall(pattern, program.as_text())
        for shape in re.findall(r"\w\[([\d,]*)\]", found)
    ]
    assert shapes
    return max(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)


def compare_meshes():
    """Run in a process with eight devices: every mesh gives what one gives, and no more than a chunk moves at a time."""
    chunk, vocabulary, width = 512, 8192, 16
    hidden, embedding, tokens = make_case(8, 9, width, vocabulary)
    expected = jax.value_and_grad(weighted(plain, tokens, 0.7), argnums=(0, 1))(hidden, embedding)
    for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
        mesh = make_mesh(*sizes)
        rows, matrix = row_sharding(mesh), NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
        one = NamedSharding(mesh, PartitionSpec())
        inputs = jax.device_put((hidden, embedding, tokens), (rows, matrix, rows))
        loss = lambda h, e, t, mesh=mesh: weighted(
            both, t, 0.7, chunk=chunk, shards=mesh.shape["tensor"]
        )(h, e)
        program = jax.jit(
            jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(one, (rows, matrix))
        )
        placed = program.lower(*inputs).compile()
        assert_close(placed(*inputs), expected, rtol=1e-4, atol=1e-4)
        assert moved(placed) <= chunk * width, moved(placed)
        print("equal", *sizes)


def test_every_mesh_gives_the_same_and_keeps_the_vocabulary_where_it_is():
    assert output_on_devices(compare_meshes).count("equal") == 4


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shards", [1, 3])
def test_ids_that_no_token_has_are_in_no_softmax(case, chunk, shards):
    """As if their logits were minus infinity, forward and backward."""
    hidden, embedding, tokens = case
    unused = ((0, 1), (5, 7), (11, 12))
    used = jnp.asarray(used_ids(VOCABULARY, unused))
    assert used.tolist() == [False, *[True] * 4, False, False, *[True] * 4, False]
    tokens = jnp.where(used[tokens], tokens, 3)

    def masked(hidden, embedding, tokens):
        logprobs = jax.nn.log_softmax(jnp.where(used, hidden @ embedding.T / 0.7, -jnp.inf))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        finite = jnp.where(used, logprobs, 0.0)
        entropy = -jnp.sum(jnp.where(used, jnp.exp(finite), 0.0) * finite, axis=-1)
        return tuple(jnp.pad(score, ((0, 0), (1, 0))) for score in (chosen, entropy))

    ours = weighted(both, tokens, 0.7, chunk=chunk, shards=shards, unused=unused)
    expected = jax.value_and_grad(weighted(masked, tokens), argnums=(0, 1))(hidden, embedding)
    found = jax.value_and_grad(ours, argnums=(0, 1))(hidden, embedding)
    assert_close(found, expected)
    assert not found[1][1][~used].any()
