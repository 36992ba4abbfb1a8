"""A scan over stacked layers, which adds the layers' gradient to a sum in place.

JAX's gradient of lax.scan is a new array for all layers, which is then added to the sum of the
micro-batches before: two gradients of the whole network are held at a time. Here the backward pass
adds each layer's part into the sum. The forward pass stores the input of each layer alone; the
backward pass computes the rest again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, PyTree

from jaxgrpo.types import Params

Hidden = tuple[Float[Array, "..."], ...]
"""The hidden states of each sequence, [B T D]; the inputs of all layers are [L B T D]."""

ApplyLayer = Callable[[Params, Hidden, PyTree, PyTree], Hidden]
"""(a layer's parameters, its input, what all layers read, the layer's constants) -> its output."""


class _Residuals(NamedTuple):
    """What the backward pass needs. Leaves have an axis [L], except in `shared`."""

    trained: Params
    """The parameters that are differentiated; None in the place of the others."""
    frozen: Params
    """The others; None in the place of those that are trained."""
    inputs: Hidden
    shared: PyTree
    constants: PyTree


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_layers(
    apply_layer: ApplyLayer,
    layers: Params,
    hidden: Hidden,
    shared: PyTree,
    constants: PyTree,
) -> tuple[Hidden, Params]:
    """Returns the hidden states after all layers, and `layers` as they are.

    Pass the returned layers on instead of the argument. In the backward pass the gradient of that
    next use comes in here, the parts of the layers are added to it, and the sum goes out as the
    parameters' gradient. `shared` and `constants` get no gradient.

    apply_layer: may close over arrays only where forward and backward pass are of one trace, as
        in a loss whose gradient is taken within the same jit
    layers: parameters, each leaf with an axis [L] in front
    hidden: the first layer's input
    constants: each leaf with an axis [L] in front
    """
    output, _ = _scan_forward(apply_layer, layers, hidden, shared, constants)
    return output, layers


def _scan_forward(
    apply_layer: ApplyLayer,
    layers: Params,
    hidden: Hidden,
    shared: PyTree,
    constants: PyTree,
) -> tuple[Hidden, Hidden]:
    """Returns the last layer's output, and the inputs of all layers, stacked."""

    def step(hidden: Hidden, layer: tuple[Params, PyTree]) -> tuple[Hidden, Hidden]:
        params, constants = layer
        return apply_layer(params, hidden, shared, constants), hidden

    return jax.lax.scan(step, hidden, (layers, constants))


def _forward(
    apply_layer: ApplyLayer, *primals: PyTree
) -> tuple[tuple[Hidden, Params], _Residuals]:
    """Computes `scan_layers` for custom_vjp, which hands over leaves with .value and .perturbed."""
    layers, hidden, shared, constants = jax.tree.map(lambda leaf: leaf.value, primals)
    is_trained = jax.tree.map(lambda leaf: leaf.perturbed, primals[0])
    output, inputs = _scan_forward(apply_layer, layers, hidden, shared, constants)
    residuals = _Residuals(
        trained=_choose(layers, is_trained),
        frozen=_choose(layers, jax.tree.map(lambda trained: not trained, is_trained)),
        inputs=inputs,
        shared=shared,
        constants=constants,
    )
    return (output, layers), residuals


def _backward(
    apply_layer: ApplyLayer, residuals: _Residuals, gradients: tuple[Any, Any]
) -> tuple[Params, Hidden, None, None]:
    """Computes the gradients of the trained parameters and of the first layer's input.

    gradients: those of the last layer's output, and of the parameters' next use
    """
    trained = residuals.trained
    num_layers = len(jax.tree.leaves(residuals.inputs)[0])
    d_output, d_next_use = gradients
    first_carry = (
        jax.tree.map(_instantiate, d_output),
        jax.tree.map(_sum_so_far, trained, d_next_use, is_leaf=_is_none),
    )

    def step(
        carry: tuple[Hidden, Params], layer: tuple[Array, _Residuals]
    ) -> tuple[tuple[Hidden, Params], None]:
        d_output, sums = carry
        index, of_layer = layer

        def apply(trained: Params, hidden: Hidden) -> Hidden:
            params = _join(trained, of_layer.frozen)
            return apply_layer(params, hidden, residuals.shared, of_layer.constants)

        _, pull_back = jax.vjp(apply, of_layer.trained, of_layer.inputs)
        d_params, d_input = pull_back(d_output)
        return (d_input, jax.tree.map(partial(_add_at, index), sums, d_params)), None

    layers = (jnp.arange(num_layers), residuals._replace(shared=None))
    (d_hidden, sums), _ = jax.lax.scan(step, first_carry, layers, reverse=True)
    return sums, d_hidden, None, None


# With symbolic zeros the forward pass knows which parameters are frozen: with LoRA most are. JAX
# counts those that are returned as differentiated, so that this holds for their first use.
scan_layers.defvjp(_forward, _backward, symbolic_zeros=True)


def _choose(params: Params, wanted: PyTree) -> Params:
    """Returns the wanted leaves, and None in the place of the others."""
    return jax.tree.map(
        lambda leaf, is_wanted: leaf if is_wanted else None, params, wanted
    )


def _join(some: Params, others: Params) -> Params:
    """Returns the leaves of two trees, of which one has None where the other has a leaf."""
    return jax.tree.map(
        lambda one, other: other if one is None else one, some, others, is_leaf=_is_none
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _sum_so_far(trained: Array | None, gradient: Array | SymbolicZero) -> Array | None:
    """Returns the gradient of a trained parameter's next use; None for a frozen one."""
    return None if trained is None else _instantiate(gradient)


def _instantiate(gradient: Array | SymbolicZero) -> Array:
    """Returns the gradient, and zeros where nobody differentiated."""
    if isinstance(gradient, SymbolicZero):
        return jnp.zeros(gradient.shape, gradient.dtype)
    return gradient


def _add_at(index: Int[Array, ""], total: Array, new: Array) -> Array:
    """Returns the total with `new` added to its entry at index."""
    old = jax.lax.dynamic_index_in_dim(total, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, old + new, index, 0)
