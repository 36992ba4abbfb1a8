"""Laws of rounding: sums over tokens are made in float32, and float32 means float32 on every device."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo.distributed.mesh import make_mesh, named_leaves, to_device
from jaxgrpo.losses import Supervised
from jaxgrpo.models import attention, lora, products, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.programs import compile_programs
from jaxgrpo.types import TrainBatch
from tests.tiny_devices import output_on_devices
from tests.tiny_models import NETWORK, random_params

WIDTH, LENGTH, ROWS, GROUP = 64, 256, 32, 8
FREQUENT = 7
ADAPTERS = Lora(rank=2, alpha=3.0)
ONE_LAYER = replace(NETWORK, layers=1, tied_embeddings=False)
NETWORKS = {
    "biases": replace(ONE_LAYER, out_bias=True),
    "norms of heads, around, tied": replace(
        ONE_LAYER, tied_embeddings=True, head_norm="head", norms="around", norm_offset=1.0
    ),
    "a norm of all heads, after": replace(ONE_LAYER, head_norm="all", norms="after"),
}


def make_steps(network=ONE_LAYER, dtype=jnp.bfloat16, devices=1, **changes):
    """Plain gradient descent at rate 1: an update is the gradient."""
    shapes = {
        "prompt_width": WIDTH,
        "new_tokens": LENGTH - WIDTH,
        "ends": (7,),
        "slots": 8,
        "group_size": GROUP,
    }
    mesh = make_mesh(devices=jax.devices()[:devices])
    return compile_programs(
        network, optax.sgd(1.0), mesh, **{"micro_batch": 0, "dtype": dtype, **shapes, **changes}
    )


def make_batch(rows: int = ROWS, copies: int = 1) -> TrainBatch:
    """Long rows in which every second token is the same, all of them so many times. Groups share their prompts."""
    rng = np.random.default_rng(0)
    shape = (rows, LENGTH)
    tokens = np.where(
        rng.random(shape) < 0.5, FREQUENT, rng.integers(0, NETWORK.vocab_size, shape)
    ).astype(np.int32)
    tokens[:, :WIDTH] = np.repeat(tokens[::GROUP, :WIDTH], GROUP, axis=0)
    tokens, shape = np.tile(tokens, (copies, 1)), (rows * copies, LENGTH)
    return TrainBatch(
        tokens=tokens,
        segments=np.ones(shape, np.int32),
        completion_mask=np.broadcast_to(np.arange(LENGTH) >= WIDTH, shape),
        rewards=np.zeros(shape[0], np.float32),
        sampler_logprobs=np.zeros(shape, np.float32),
    )


def on_the_grid(network):
    """Random parameters that bfloat16 holds exactly, so that what differs is how sums are made."""
    smaller = lambda leaf: leaf * (0.25 if leaf.ndim > 1 else 1.0)
    return jax.tree.map(
        lambda leaf: smaller(leaf).astype(jnp.bfloat16).astype(jnp.float32), random_params(network)
    )


def gradient(
    network, params, dtype, adapters=lora.NO_LORA, batch=None, **changes
) -> dict[str, np.ndarray]:
    """The gradient of the mean -log p of all completion tokens, by parameter; with adapters, theirs."""
    steps = make_steps(network, dtype, adapters=adapters, **changes)
    base = to_device(
        jax.device_get(params), jax.tree.map(lambda leaf: leaf.sharding, steps.params_like)
    )
    state = steps.init(base)
    if adapters.rank:
        rng = np.random.default_rng(1)
        draw = lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.bfloat16).astype(
            jnp.float32
        )
        state = state._replace(params=jax.tree.map(draw, state.params))
    before = jax.device_get(state.params)
    batch = to_device(batch or make_batch(), steps.rows)
    after, _ = steps.update(
        state, steps.refer(base) if adapters.rank else None, batch, Supervised(), 1.0
    )
    return named_leaves(jax.tree.map(np.subtract, before, jax.device_get(after.params)))


def assert_near(found, exact, most=0.01):
    """Each parameter's gradient within a share of its norm. Softmax hardly depends on what all keys share: gradients of keys
    are small differences of what is rounded, and their share is three times that."""
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
        assert error < most * (3 if "/key" in name else 1), (name, error)


@pytest.fixture(scope="module")
def exact():
    return gradient(ONE_LAYER, on_the_grid(ONE_LAYER), jnp.float32)


def test_every_parameters_gradient_in_bfloat16_is_that_in_float32(exact):
    """A bfloat16 sum of 4,096 times the same would end at 256 times it. Within a hundredth: what is summed is rounded."""
    found = gradient(ONE_LAYER, on_the_grid(ONE_LAYER), jnp.bfloat16)
    assert_near(found, exact)
    assert_near({"row": found["embedding"][FREQUENT]}, {"row": exact["embedding"][FREQUENT]})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_over_copies_of_a_batch_is_that_over_the_batch(name):
    """Here rounding of what is summed is the same on both sides: what is left is the sum."""
    params = on_the_grid(NETWORKS[name])
    once, often = (make_batch(GROUP, copies) for copies in (1, 16))
    found, expected = (
        gradient(NETWORKS[name], params, jnp.bfloat16, batch=batch) for batch in (often, once)
    )
    assert_near(found, expected, most=0.005)


def test_so_is_every_adapters():
    params = on_the_grid(ONE_LAYER)
    exact, found = (
        gradient(ONE_LAYER, params, dtype, ADAPTERS) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert_near(found, exact, 0.015)  # adapters' products are rounded twice
    assert len(found) == 2 * len(ADAPTERS.targets)


def test_so_is_each_with_scanned_layers_in_micro_batches(exact):
    found = gradient(
        ONE_LAYER, on_the_grid(ONE_LAYER), jnp.bfloat16, scan_layers=True, micro_batch=16
    )
    assert_near(
        {name.replace("layers/", "layers_0/"): np.squeeze(leaf) for name, leaf in found.items()},
        exact,
    )


def compare_devices():
    """Run in a process with eight devices: what each has summed is summed in float32."""
    params = on_the_grid(ONE_LAYER)
    exact, found = (
        gradient(ONE_LAYER, params, dtype, devices=8) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert_near(found, exact)
    steps = make_steps(devices=8)
    arguments = steps.state_like, None, to_device(make_batch(), steps.rows), Supervised(), 1.0
    text = steps.update.trace(*arguments).lower().compile().as_text()
    sums = [
        line for line in text.splitlines() if " all-reduce(" in line or " reduce-scatter(" in line
    ]
    assert sums
    assert not [line for line in sums if "bf16[" in line.partition("(")[0]]
    print("equal")


def test_so_is_each_summed_over_devices():
    assert "equal" in output_on_devices(compare_devices)


def test_parameters_stored_in_bfloat16_get_sums_made_in_float32():
    """4,096 times 1/64 is 64; summed in bfloat16 it would be 4."""
    tokens = jnp.full((4, 1024), 3, jnp.int32)
    part = 1 / 64
    rows = jax.grad(lambda e: jnp.sum(products.embed(e, tokens, jnp.bfloat16)) * part)(
        jnp.ones((5, 2), jnp.bfloat16)
    )
    assert rows.dtype == jnp.bfloat16
    assert rows.tolist() == [[0, 0]] * 3 + [[64, 64]] + [[0, 0]]
    x = jnp.ones((4, 1024, 3), jnp.bfloat16)
    kernel = jax.grad(lambda w: jnp.sum(products.matmul(x, w)) * part)(
        jnp.ones((3, 2), jnp.bfloat16)
    )
    assert kernel.tolist() == [[64, 64]] * 3
    copies = jax.grad(lambda x: jnp.sum(products.repeat_rows(x, 4096)) * part)(
        jnp.ones((2, 3), jnp.bfloat16)
    )
    assert copies.tolist() == [[64] * 3] * 2


def products(jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """Every matrix product of a program, inside loops and calls, too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def programs(steps):
    """Those that multiply matrices, with what they take."""
    published = steps.publish.trace(steps.params_like).out_info
    tokens = jnp.zeros((steps.prompts, WIDTH), jnp.int32)
    slots = steps.empty.trace(8, steps.rings[0]).out_info
    how = np.float32(1), np.int32(0), np.float32(1), np.float32(0), np.int32(0)
    yield steps.prefill, (published, tokens, tokens > 0)
    yield steps.decode, (published, slots, np.zeros(8, bool), how, np.int32(1), np.int32(0))
    yield steps.update, (steps.state_like, None, make_batch(), Supervised(), 1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_is_float32_on_every_device(dtype):
    """A TPU multiplies float32 in one pass of bfloat16, a GPU in TF32, unless it is told not to; bfloat16 needs no telling."""
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for program, arguments in programs(make_steps(dtype=dtype)):
        found = [
            equation.params["precision"]
            for equation in products(program.trace(*arguments).jaxpr.jaxpr)
        ]
        assert len(found) >= 8
        assert all(
            precision == (highest if dtype == jnp.float32 else None) for precision in found
        ), program.name


@partial(jax.jit, static_argnums=0)
def hidden(network, params, tokens):
    """In float32, so that nothing but the parameters differs."""
    segments = jnp.ones_like(tokens)
    positions, mask = attention.sequence_positions(segments), attention.sequence_mask(segments)
    return transformer.forward(network, params, tokens, positions, mask)[0]


@pytest.mark.parametrize("change", [1e-5, 1e-3])
def test_the_sampler_has_the_whole_of_a_small_change_by_adapters(change):
    """Merged, W + A B rounded to bfloat16 would be W wherever A B is less than half a unit in the last place of W."""
    steps = make_steps(adapters=ADAPTERS)
    base = steps.refer(on_the_grid(ONE_LAYER))
    trained = jax.tree.map(lambda leaf: leaf + change, steps.init(base).params)
    exact = lora.merge(
        lora.attach(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base), trained),
        ADAPTERS.scale,
    )
    published = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), steps.publish(lora.attach(base, trained))
    )
    tokens = jnp.asarray(make_batch().tokens[:4, :WIDTH])
    at_first, wanted, found = (
        hidden(ONE_LAYER, params, tokens) for params in (base, exact, published)
    )
    share = jnp.vdot(found - at_first, wanted - at_first) / jnp.vdot(
        wanted - at_first, wanted - at_first
    )
    np.testing.assert_allclose(share, 1.0, atol=0.02)
