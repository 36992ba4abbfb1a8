"""A scan over stacked layers whose gradient is added up in one array.

JAX's own gradient of a scan is a new array for all layers, which is then added to the sum of the
micro-batches before: two gradients of the whole network are held. Here the backward pass adds each
layer's part to the sum in place. It keeps the input of each layer and computes the rest again.
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
    """What the backward pass needs. Leaves have an axis [L], but for `shared`."""

    trained: Params
    """The parameters that somebody differentiates; None in the place of the others."""
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
    """Returns the hidden states after all layers, and the layers' parameters for their next use.

    In the backward pass the gradient of the next use comes in, those of the layers are added, and
    the sum goes out as the parameters' gradient. There is none for `shared` and `constants`.

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
    """Computes `scan_layers` of arguments as custom_vjp hands them over with symbolic zeros."""
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
    d_hidden, d_next_use = jax.tree.map(_instantiate, gradients)
    sums = jax.tree.map(
        lambda parameter, gradient: None if parameter is None else gradient,
        trained,
        d_next_use,
        is_leaf=_is_none,
    )

    def step(
        carry: tuple[Hidden, Params], layer: tuple[Array, _Residuals]
    ) -> tuple[tuple[Hidden, Params], None]:
        d_output, sums = carry
        index, own = layer

        def apply(trained: Params, hidden: Hidden) -> Hidden:
            params = _join(trained, own.frozen)
            return apply_layer(params, hidden, residuals.shared, own.constants)

        _, pull_back = jax.vjp(apply, own.trained, own.inputs)
        d_params, d_input = pull_back(d_output)
        return (d_input, jax.tree.map(partial(_add_at, index), sums, d_params)), None

    layers = (jnp.arange(num_layers), residuals._replace(shared=None))
    (d_hidden, sums), _ = jax.lax.scan(step, (d_hidden, sums), layers, reverse=True)
    return sums, d_hidden, None, None


# With symbolic zeros the forward pass knows which parameters are frozen: with LoRA most are.
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


def _instantiate(gradient: Array | SymbolicZero) -> Array:
    """Returns the gradient, and zeros where nobody differentiated."""
    if isinstance(gradient, SymbolicZero):
        return jnp.zeros(gradient.shape, gradient.dtype)
    return gradient


def _add_at(index: Int[Array, ""], total: Array, new: Array) -> Array:
    """Returns the total with `new` added to its entry at index."""
    old = jax.lax.dynamic_index_in_dim(total, index, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(total, old + new, index, 0)
