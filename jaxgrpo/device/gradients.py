"""Gradients of a batch: added up a micro-batch at a time, and their norm."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.types import Params


def accumulate_gradients(
    loss: Callable[[Params, PyTree], tuple[Array, PyTree, Params]],
    params: Params,
    rows: PyTree,
    micro_batches: MicroBatches,
    scan: Callable = jax.lax.scan,
) -> tuple[Params, PyTree]:
    """Returns the gradient of a loss that is a sum over rows, and its auxiliary results, stacked.

    The gradient is added up in float32, a micro-batch at a time.

    loss: (parameters, rows) -> (value, auxiliary results, parameters for their next use). The last
        are the same values: each leaf is the argument's, or the one that `embed` or `scan_layers`
        returned
    rows: what the loss is a sum over: rows, or bins
    scan: goes over the micro-batches, as jax.lax.scan does
    """
    # float32, though parameters may be bfloat16: a sum of many small terms.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def add(gradient: Params, rows: PyTree) -> tuple[Params, PyTree]:
        def value_and_params(params: Params) -> tuple[tuple[Array, Params], PyTree]:
            value, auxiliary, next_params = loss(params, rows)
            return (value, next_params), auxiliary

        (value, _), pull_back, auxiliary = jax.vjp(
            value_and_params, params, has_aux=True
        )
        # JAX adds up a parameter's gradients from its last use back to its first. The sum of the
        # micro-batches before is given as the gradient of one more use, so that JAX adds to it. A
        # tied embedding's and stacked layers' are added in place (embed, scan_layers); the others
        # are new arrays, which are then added.
        start = jax.tree.map(_start_of_sum, gradient, params)
        (new,) = pull_back((jnp.ones_like(value), start))
        return jax.tree.map(_end_of_sum, gradient, new), auxiliary

    return scan(add, zeros, micro_batches.split(rows))


def _start_of_sum(gradient: Array, parameter: Array) -> Array:
    """Returns the gradient so far for a float32 parameter; 0 for others, whose dtype rounds it."""
    if parameter.dtype == gradient.dtype:
        return gradient
    return jnp.zeros_like(parameter)


def _end_of_sum(gradient: Array, new: Array) -> Array:
    """Returns `new` where it began from the gradient so far (`_start_of_sum`); else their sum."""
    return new if new.dtype == gradient.dtype else gradient + new


def global_norm(gradient: Params) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    squares = jax.tree.map(
        lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares)))
