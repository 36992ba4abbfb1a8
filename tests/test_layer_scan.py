"""Tests of the scan over layers whose gradient is added up in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.device.gradients import accumulate_gradients
from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.models.layer_scan import scan_layers

NUM_LAYERS, WIDTH, ROWS = 4, 256, 8


def apply_layer(params, hidden, offset, constants):
    """Returns two sequences after a layer; the second one reads the first."""
    first, second = (
        jnp.tanh(x @ params["kernel"] + x @ params["a"] @ params["b"]) for x in hidden
    )
    return first + offset, second + constants["weight"] * first.sum()


CONSTANTS = {"weight": np.linspace(0.1, 0.4, NUM_LAYERS, dtype=np.float32)}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(0, 0.05, (NUM_LAYERS, *shape)), jnp.float32)

    return {
        "kernel": normal(WIDTH, WIDTH),
        "a": normal(WIDTH, 2),
        "b": normal(2, WIDTH),
    }


@pytest.fixture(scope="module")
def rows():
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, WIDTH)), jnp.float32)


def in_place(params, hidden):
    return scan_layers(apply_layer, params, hidden, 0.5, CONSTANTS)


def by_jax(params, hidden):
    """Returns the same, with JAX's own gradient."""

    def step(hidden, layer):
        return apply_layer(layer[0], hidden, 0.5, layer[1]), None

    return jax.lax.scan(step, hidden, (params, CONSTANTS))[0], params


def read_twice(scan):
    """Returns a function of parameters and rows that uses the parameters two times."""

    def number(params, rows):
        first, params = scan(params, (rows, 2 * rows))
        second, _ = scan(params, (rows - 1, rows))
        return first[0].sum() + (first[1] * second[1]).mean()

    return number


def test_values_and_gradients_are_those_of_a_scan(params, rows):
    for argument in (0, 1):
        (value, gradient), (expected, expected_gradient) = (
            jax.value_and_grad(read_twice(scan), argument)(params, rows)
            for scan in (in_place, by_jax)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for leaf, expected_leaf in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
        ):
            atol = 1e-5 * np.abs(expected_leaf).max()
            np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-5, atol=atol)


def test_frozen_parameters_get_no_gradient(params, rows):
    """With LoRA the large matrices are frozen: no array of the gradient is as large."""

    def of_adapters(scan):
        def number(adapters, kernel):
            hidden, _ = scan(adapters | {"kernel": kernel}, (rows, 2 * rows))
            return hidden[1].sum()

        return jax.grad(number)

    adapters = {name: params[name] for name in ("a", "b")}
    gradient, expected = (
        of_adapters(scan)(adapters, params["kernel"]) for scan in (in_place, by_jax)
    )
    for name, leaf in expected.items():
        np.testing.assert_allclose(gradient[name], leaf, rtol=1e-4, atol=1e-5)
    jaxpr = jax.make_jaxpr(of_adapters(in_place))(adapters, params["kernel"])
    made = [var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars]
    assert made
    assert params["kernel"].shape not in made


def test_micro_batches_share_one_gradient(params, rows):
    """JAX's own scan makes one for all layers in each micro-batch, beside the sum."""

    def temporaries(scan):
        def loss(params, rows):
            hidden, params = scan(params, (rows, rows))
            return hidden[1].sum(), (), params

        def gradient(params, rows):
            micro_batches = MicroBatches(2, 1, 1)
            return accumulate_gradients(loss, params, rows, micro_batches)[0]

        lowered = jax.jit(gradient).lower(params, rows)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    saved = temporaries(by_jax) - temporaries(in_place)
    assert saved > params["kernel"].nbytes / 2
