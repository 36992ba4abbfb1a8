"""Splash attention computes what `transformer.attend` computes.

The kernel's steps are interpreted here; on TPUs they are compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import attention, splash

LENGTH = 128


def inputs(length):
    """Returns (queries of 4 heads, keys and values of 2) and segments.

    One row is padded on the left, the other holds two texts and is padded on the right.
    """
    rng_keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, heads, length, 16) for heads in (4, 2, 2)]
    columns = np.arange(length)
    left_padded = columns >= 37
    packed = np.where(columns < 50, 1, np.where(columns < 101, 2, 0))
    segments = jnp.array([left_padded, packed], jnp.int32)
    arrays = [
        jax.random.normal(key, shape)
        for key, shape in zip(rng_keys, shapes, strict=True)
    ]
    return arrays, segments


CAPPED = {"window": 20, "scale": 0.4, "softcap": 1.5}


@pytest.mark.parametrize(
    ("offset", "settings"), [(0, {}), (LENGTH, {}), (LENGTH, CAPPED)]
)
def test_values_and_gradients_are_those_of_dense_attention(offset, settings):
    """Over whole sequences, and after a prompt: then keys and values come in two parts."""
    (queries, keys, values), segments = inputs(offset + LENGTH)
    arrays = (queries[:, :, offset:], keys, values)
    cuts = [slice(0, offset), slice(offset, None)] if offset else [slice(0, None)]

    def parts(keys, values):
        return [(keys[:, :, cut].swapaxes(2, 3), values[:, :, cut]) for cut in cuts]

    attend = splash.attention(
        make_mesh(devices=jax.devices()[:1]), segments, offset, interpret=True
    )

    def sparse(queries, keys, values):
        return attend(queries, parts(keys, values), **settings)

    columns = np.arange(offset + LENGTH)
    in_window = columns[:, None] - columns < settings.get("window", LENGTH * 2)
    mask = (attention.sequence_mask(segments) & in_window)[:, offset:]
    scale = settings.get("scale")
    softcap = settings.get("softcap")

    def dense(queries, keys, values):
        return attention.attend(queries, parts(keys, values), mask, scale, softcap)

    is_token = (segments != 0)[:, None, offset:, None]
    assert_same_attention(sparse, dense, arrays, is_token)


@pytest.mark.parametrize("settings", [{}, CAPPED])
def test_completions_after_a_shared_prompt_read_what_they_read_in_dense_attention(
    settings,
):
    """A mask that is known only when the program runs; the window counts positions."""
    arrays, _ = inputs(2 * LENGTH)
    # A prompt of 30 columns with two completions, and one of 90 with three; the other bin has one.
    groups = np.zeros((2, 2 * LENGTH), np.int32)
    completions = np.zeros_like(groups)
    positions = np.zeros_like(groups)
    begin = 0
    for group, prompt, lengths in ((1, 30, (20, 31)), (2, 90, (5, 40, 9))):
        groups[0, begin : begin + prompt] = group
        positions[0, begin : begin + prompt] = np.arange(prompt)
        begin += prompt
        for row, length in enumerate(lengths):
            groups[0, begin : begin + length] = group
            completions[0, begin : begin + length] = 10 * group + row
            positions[0, begin : begin + length] = prompt + np.arange(length)
            begin += length
    groups[1, :140] = 3
    completions[1, 60:140] = 1
    positions[1, :140] = np.arange(140)
    mask = attention.shared_prompt_mask(jnp.asarray(groups), jnp.asarray(completions))
    attend = splash.masked_attention(
        make_mesh(devices=jax.devices()[:1]),
        mask,
        jnp.asarray(positions),
        interpret=True,
    )

    def sparse(queries, keys, values):
        return attend(queries, [(keys.swapaxes(2, 3), values)], **settings)

    distances = positions[:, :, None] - positions[:, None]
    in_window = distances < settings.get("window", 4 * LENGTH)
    rest = (settings.get("scale"), settings.get("softcap"))

    def dense(queries, keys, values):
        parts = [(keys.swapaxes(2, 3), values)]
        return attention.attend(queries, parts, mask & in_window, *rest)

    assert_same_attention(sparse, dense, arrays, (groups != 0)[:, None, :, None])


def assert_same_attention(sparse, dense, arrays, is_token):
    """Checks values and gradients; what padding reads does not count."""
    weights = jax.random.normal(jax.random.key(1), arrays[0].shape) * is_token

    def with_gradients(attention):
        def loss(*arrays):
            return jnp.sum(weights * attention(*arrays))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

    value, gradients = with_gradients(sparse)
    expected, expected_gradients = with_gradients(dense)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)
        assert float(jnp.abs(gradient).max()) > 0.1


@pytest.mark.parametrize(("length", "interpret"), [(LENGTH, False), (LENGTH + 8, True)])
def test_without_a_kernel_there_is_none(length, interpret):
    """Neither off TPUs nor for a length that is no multiple of 128."""
    mesh = make_mesh(devices=jax.devices()[:1])
    assert (
        splash.attention(mesh, jnp.ones((1, length), jnp.int32), interpret=interpret)
        is None
    )
    mask = jnp.ones((1, length, length), bool)
    positions = jnp.zeros((1, length), jnp.int32)
    assert splash.masked_attention(mesh, mask, positions, interpret=interpret) is None
