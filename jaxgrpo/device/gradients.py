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

    loss: (parameters, rows) -> (value, auxiliary results, parameters for their next use)
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
        # The gradient so far stands for that of the parameters' next use. What is added to it there
        # needs no array of its own: an embedding's gradient is written into it, chunk by chunk.
        so_far = jax.tree.map(_in_dtype_or_zero, gradient, params)
        (new,) = pull_back((jnp.ones_like(value), so_far))
        return jax.tree.map(_add_unless_there, gradient, new), auxiliary

    return scan(add, zeros, micro_batches.split(rows))


def _in_dtype_or_zero(gradient: Array, parameter: Array) -> Array:
    """Returns a gradient in the dtype that its parameter's has; 0 where that would round it."""
    if parameter.dtype == gradient.dtype:
        return gradient
    return jnp.zeros_like(parameter)


def _add_unless_there(gradient: Array, new: Array) -> Array:
    """Returns the sum of both; `new` alone where it has been added to the gradient."""
    return new if new.dtype == gradient.dtype else gradient + new


def global_norm(gradient: Params) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    squares = jax.tree.map(
        lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares)))
