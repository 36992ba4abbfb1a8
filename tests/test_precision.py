"""Laws of rounding.

Sums over tokens are made in float32, and float32 means float32 on every device.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo.device.program import Program
from jaxgrpo.device.specs import ModelSpec, Precision, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device
from jaxgrpo.losses import Supervised
from jaxgrpo.models import attention, lora, products, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.transformer import SequenceInputs
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.types import SamplingParams, TrainBatch
from tests.tiny_devices import output_on_devices
from tests.tiny_models import NETWORK, random_params

WIDTH = 64
LENGTH = 256
ROWS = 32
GROUP = 8
FREQUENT = 7
"""The id of every second token."""
ADAPTERS = Lora(rank=2, alpha=3.0)
ONE_LAYER = replace(NETWORK, layers=1, tied_embeddings=False)
NETWORKS = {
    "biases": replace(ONE_LAYER, out_bias=True),
    "norms of heads, around, tied": replace(
        ONE_LAYER,
        tied_embeddings=True,
        head_norm="head",
        norms="around",
        norm_offset=1.0,
    ),
    "a norm of all heads, after": replace(ONE_LAYER, head_norm="all", norms="after"),
}


def make_programs(
    network=ONE_LAYER,
    dtype=jnp.bfloat16,
    devices=1,
    adapters=lora.NO_LORA,
    scan_layers=False,
    micro_batch=0,
) -> Programs:
    """Returns programs with plain gradient descent at rate 1: an update is the gradient."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    return compile_programs(
        ModelSpec(network, mesh, Precision(compute=dtype), adapters, scan_layers),
        SamplingSpec(WIDTH, LENGTH - WIDTH, slots=8, eos_ids=(7,), group_size=GROUP),
        UpdateSpec(micro_batch=micro_batch, group_size=GROUP, prompt_width=WIDTH),
        optax.sgd(1.0),
    )


def make_batch(rows: int = ROWS, copies: int = 1) -> TrainBatch:
    """Returns `copies` times the same long rows, in which every second token is the same.

    Groups share their prompts.
    """
    rng = np.random.default_rng(0)
    shape = (rows, LENGTH)
    is_frequent = rng.random(shape) < 0.5
    ids = rng.integers(0, NETWORK.vocab_size, shape)
    tokens = np.where(is_frequent, FREQUENT, ids).astype(np.int32)
    tokens[:, :WIDTH] = np.repeat(tokens[::GROUP, :WIDTH], GROUP, axis=0)
    tokens = np.tile(tokens, (copies, 1))
    return TrainBatch(
        tokens=tokens,
        segments=np.ones(tokens.shape, np.int32),
        completion_mask=np.broadcast_to(np.arange(LENGTH) >= WIDTH, tokens.shape),
        rewards=np.zeros(len(tokens), np.float32),
        sampler_logprobs=np.zeros(tokens.shape, np.float32),
    )


def round_to_bfloat16(x):
    """Returns float32 numbers that bfloat16 holds exactly."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def bfloat16_params(network):
    """Returns random parameters that bfloat16 holds exactly: what differs is how sums are made."""

    def shrink(leaf):
        return leaf * (0.25 if leaf.ndim > 1 else 1.0)

    return jax.tree.map(
        lambda leaf: round_to_bfloat16(shrink(leaf)), random_params(network)
    )


def gradient(
    network, params, dtype, adapters=lora.NO_LORA, batch=None, **changes
) -> dict[str, np.ndarray]:
    """Returns the gradient of the mean -log p of all completion tokens, by parameter.

    With adapters it is theirs. changes: arguments of make_programs
    """
    programs = make_programs(network, dtype, adapters=adapters, **changes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, programs.params_like)
    base = to_device(jax.device_get(params), shardings)
    state = programs.init_state(base)
    reference = None
    if adapters.rank:
        rng = np.random.default_rng(1)

        def draw(leaf):
            return round_to_bfloat16(jnp.asarray(rng.normal(0, 0.2, leaf.shape)))

        state = state._replace(params=jax.tree.map(draw, state.params))
        reference = programs.make_reference(base)
    before = jax.device_get(state.params)
    placed = to_device(batch or make_batch(), programs.row_sharding)
    after, _ = programs.update(state, reference, placed, Supervised(), 1.0)
    return named_leaves(jax.tree.map(np.subtract, before, jax.device_get(after.params)))


def assert_near(actual, exact, max_error=0.01):
    """Asserts that each parameter's gradient is right within a share of its norm.

    Softmax hardly depends on what all keys share. So gradients of keys are small differences of
    numbers that are rounded, and their share is three times that.
    """
    assert actual.keys() == exact.keys()
    for name, expected in exact.items():
        error = np.linalg.norm(actual[name] - expected) / np.linalg.norm(expected)
        assert error < max_error * (3 if "/key" in name else 1), (name, error)


@pytest.fixture(scope="module")
def exact():
    return gradient(ONE_LAYER, bfloat16_params(ONE_LAYER), jnp.float32)


def test_every_parameters_gradient_in_bfloat16_is_that_in_float32(exact):
    """A bfloat16 sum of 4,096 equal terms would end at 256 of them.

    A hundredth is allowed, as the terms themselves are rounded.
    """
    actual = gradient(ONE_LAYER, bfloat16_params(ONE_LAYER), jnp.bfloat16)
    assert_near(actual, exact)
    assert_near(
        {"row": actual["embedding"][FREQUENT]}, {"row": exact["embedding"][FREQUENT]}
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_over_copies_of_a_batch_is_that_over_the_batch(name):
    """The terms are rounded alike on both sides, so that only the sum may differ."""
    params = bfloat16_params(NETWORKS[name])

    def gradient_of_copies(copies: int):
        batch = make_batch(GROUP, copies)
        return gradient(NETWORKS[name], params, jnp.bfloat16, batch=batch)

    assert_near(gradient_of_copies(16), gradient_of_copies(1), max_error=0.005)


def test_so_is_every_adapters():
    params = bfloat16_params(ONE_LAYER)
    exact = gradient(ONE_LAYER, params, jnp.float32, ADAPTERS)
    actual = gradient(ONE_LAYER, params, jnp.bfloat16, ADAPTERS)
    assert_near(actual, exact, 0.015)  # adapters' products are rounded twice
    assert len(actual) == 2 * len(ADAPTERS.targets)


def test_so_is_each_with_scanned_layers_in_micro_batches(exact):
    params = bfloat16_params(ONE_LAYER)
    scanned = gradient(
        ONE_LAYER, params, jnp.bfloat16, scan_layers=True, micro_batch=16
    )
    actual = {
        name.replace("layers/", "layers_0/"): np.squeeze(leaf)
        for name, leaf in scanned.items()
    }
    assert_near(actual, exact)


def compare_devices():
    """Checks that sums over devices are made in float32; runs in a process with eight devices."""
    params = bfloat16_params(ONE_LAYER)
    exact = gradient(ONE_LAYER, params, jnp.float32, devices=8)
    assert_near(gradient(ONE_LAYER, params, jnp.bfloat16, devices=8), exact)
    programs = make_programs(devices=8)
    batch = to_device(make_batch(), programs.row_sharding)
    traced = programs.update.trace(programs.state_like, None, batch, Supervised(), 1.0)
    text = traced.lower().compile().as_text()
    sums = [
        line
        for line in text.splitlines()
        if " all-reduce(" in line or " reduce-scatter(" in line
    ]
    assert sums
    assert not [line for line in sums if "bf16[" in line.partition("(")[0]]
    print("equal")


def test_so_is_each_summed_over_devices():
    assert "equal" in output_on_devices(compare_devices)


def test_parameters_stored_in_bfloat16_get_sums_made_in_float32():
    """4,096 times 1/64 is 64; summed in bfloat16 it would be 4."""
    tokens = jnp.full((4, 1024), 3, jnp.int32)
    x = jnp.ones((4, 1024, 3), jnp.bfloat16)

    def sum_embedded(embedding):
        return jnp.sum(products.embed(embedding, tokens, jnp.bfloat16)[0]) / 64

    def sum_product(kernel):
        return jnp.sum(products.matmul(x, kernel)) / 64

    def sum_copies(x):
        return jnp.sum(products.repeat_rows(x, 4096)) / 64

    d_embedding = jax.grad(sum_embedded)(jnp.ones((5, 2), jnp.bfloat16))
    assert d_embedding.dtype == jnp.bfloat16
    assert d_embedding.tolist() == [[0, 0]] * 3 + [[64, 64]] + [[0, 0]]
    d_kernel = jax.grad(sum_product)(jnp.ones((3, 2), jnp.bfloat16))
    assert d_kernel.tolist() == [[64, 64]] * 3
    d_copied = jax.grad(sum_copies)(jnp.ones((2, 3), jnp.bfloat16))
    assert d_copied.tolist() == [[64] * 3] * 2


def matrix_products(jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """Yields every matrix product of a program, inside loops and calls, too."""

    def is_jaxpr(x) -> bool:
        return hasattr(x, "eqns") or hasattr(x, "jaxpr")

    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


def multiplying_programs(programs: Programs) -> Iterator[tuple[Program, tuple]]:
    """Yields those that multiply matrices, with arguments that they take."""
    published = programs.publish.trace(programs.params_like).out_info
    tokens = jnp.zeros((programs.prompts_per_prefill, WIDTH), jnp.int32)
    state = programs.empty_state.trace(8, programs.ring_lengths[0]).out_info
    sampling = SamplingParams().as_arrays()
    stopped = np.zeros(8, bool)
    yield programs.prefill, (published, tokens, tokens > 0)
    yield (
        programs.decode,
        (published, state, stopped, sampling, np.int32(1), np.int32(0)),
    )
    yield programs.update, (programs.state_like, None, make_batch(), Supervised(), 1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_is_float32_on_every_device(dtype):
    """A TPU multiplies float32 in one pass of bfloat16, a GPU in TF32, unless they are told not to.

    bfloat16 needs no telling.
    """
    expected = (jax.lax.Precision.HIGHEST,) * 2 if dtype == jnp.float32 else None
    for program, arguments in multiplying_programs(make_programs(dtype=dtype)):
        jaxpr = program.trace(*arguments).jaxpr.jaxpr
        precisions = [
            equation.params["precision"] for equation in matrix_products(jaxpr)
        ]
        assert len(precisions) >= 8
        assert all(precision == expected for precision in precisions), program.name


@partial(jax.jit, static_argnums=0)
def hidden_states(network, params, tokens):
    """Returns hidden states in float32, so that nothing but the parameters differs."""
    segments = jnp.ones_like(tokens)
    positions = attention.sequence_positions(segments)
    inputs = SequenceInputs(tokens, positions, attention.sequence_mask(segments))
    return transformer.forward(network, params, inputs)[0]


def to_float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


@pytest.mark.parametrize("change", [1e-5, 1e-3])
def test_the_sampler_has_the_whole_of_a_small_change_by_adapters(change):
    """Merged, W + A B rounded to bfloat16 would lose it.

    It would be W wherever A B is less than half a unit in the last place of W.
    """
    programs = make_programs(adapters=ADAPTERS)
    base = programs.make_reference(bfloat16_params(ONE_LAYER))
    trained = jax.tree.map(lambda leaf: leaf + change, programs.init_state(base).params)
    merged = lora.merge(lora.attach(to_float32(base), trained), ADAPTERS.scale)
    published = to_float32(programs.publish(lora.attach(base, trained)))
    tokens = jnp.asarray(make_batch().tokens[:4, :WIDTH])
    before = hidden_states(ONE_LAYER, base, tokens)
    expected = hidden_states(ONE_LAYER, merged, tokens) - before
    actual = hidden_states(ONE_LAYER, published, tokens) - before
    share = jnp.vdot(actual, expected) / jnp.vdot(expected, expected)
    np.testing.assert_allclose(share, 1.0, atol=0.02)
