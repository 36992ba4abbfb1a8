"""Gradients of a batch: added up a micro-batch at a time, and their norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.types import Params


def accumulate_gradients(
    loss: Callable[[Params, PyTree], tuple[Array, PyTree]],
    params: Params,
    rows: PyTree,
    micro_batches: MicroBatches,
    scan: Callable = jax.lax.scan,
) -> tuple[Params, PyTree]:
    """Returns the gradient of a loss that is a sum over rows, and its auxiliary results, stacked.

    The gradient is added up in float32, a micro-batch at a time.

    rows: what the loss is a sum over: rows, or bins
    scan: goes over the micro-batches, as jax.lax.scan does
    """
    gradient_of = jax.grad(loss, has_aux=True)
    # float32, though parameters may be bfloat16: a sum of many small terms.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def add(gradient: Params, rows: PyTree) -> tuple[Params, PyTree]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    return scan(add, zeros, micro_batches.split(rows))


def global_norm(gradient: Params) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    squares = jax.tree.map(
        lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares)))
