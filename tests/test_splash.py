"""Laws of the splash kernel's use: it reads what `attend` reads. Its steps are interpreted here; they are compiled on TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.models import attention
from jaxgrpo.distributed.mesh import make_mesh
from jaxgrpo.models import splash, transformer

LENGTH = 128


def inputs(length):
    """Queries of 4 heads, keys and values of 2; a row padded on the left, and one of two texts padded on the right."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, heads, length, 16) for heads in (4, 2, 2)]
    columns = np.arange(length)
    segments = jnp.array(
        [columns >= 37, np.where(columns < 50, 1, np.where(columns < 101, 2, 0))], jnp.int32
    )
    return [
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    ], segments


CAPPED = {"window": 20, "scale": 0.4, "softcap": 1.5}


@pytest.mark.parametrize(("prompt", "how"), [(0, {}), (LENGTH, {}), (LENGTH, CAPPED)])
def test_values_and_gradients_are_those_of_dense_attention(prompt, how):
    """Of whole sequences, and of what goes on from a prompt that has been read: then keys and values come in two parts."""
    (queries, *key_values), segments = inputs(prompt + LENGTH)
    arrays = [queries[:, :, prompt:], *key_values]
    cuts = (slice(0, prompt), slice(prompt, None))[not prompt :]
    parts = lambda k, v: [(k[:, :, at].swapaxes(2, 3), v[:, :, at]) for at in cuts]
    attend = splash.attention(
        make_mesh(devices=jax.devices()[:1]), segments, prompt, interpret=True
    )
    whole = lambda q, k, v: attend(q, parts(k, v), **how)
    columns = np.arange(prompt + LENGTH)
    near = columns[:, None] - columns < how.get("window", LENGTH * 2)
    mask = (attention.sequence_mask(segments) & near)[:, prompt:]
    dense = lambda q, k, v: attention.attend(
        q, parts(k, v), mask, how.get("scale"), how.get("softcap")
    )
    weights = (
        jax.random.normal(jax.random.key(1), arrays[0].shape)
        * (segments != 0)[:, None, prompt:, None]
    )
    with_gradients = lambda f: jax.jit(
        jax.value_and_grad(lambda *a: jnp.sum(weights * f(*a)), argnums=(0, 1, 2))
    )(*arrays)
    (value, gradients), (expected, expected_gradients) = (
        with_gradients(whole),
        with_gradients(dense),
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, atol=2e-5)
        assert float(jnp.abs(gradient).max()) > 0.1


@pytest.mark.parametrize(("length", "interpret"), [(LENGTH, False), (LENGTH + 8, True)])
def test_without_a_kernel_there_is_none(length, interpret):
    """No TPU; no multiple of 128."""
    mesh = make_mesh(devices=jax.devices()[:1])
    assert splash.attention(mesh, jnp.ones((1, length), jnp.int32), interpret=interpret) is None
