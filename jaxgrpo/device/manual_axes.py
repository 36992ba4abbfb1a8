"""Arrays inside jax.shard_map: over which axes of the mesh their values differ.

Outside a shard_map, and in one with check_vma=False, there are no such axes, and nothing changes.
"""

import jax
from jaxtyping import Array, ArrayLike


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Returns the arrays, each made to vary over every axis that any of them varies over.

    The gradient of one that was replicated over an axis is then summed over it by JAX.
    """
    axes = frozenset[str]().union(*map(_varying_axes, arrays))
    return tuple(_vary(array, axes) for array in arrays)


def vary_like(array: Array, other: ArrayLike) -> Array:
    """Returns an array made to vary over the axes that another varies over.

    A loop's state needs it from the first: the loop may not add an axis to it.
    """
    return _vary(array, _varying_axes(other))


def _vary(array: Array, axes: frozenset[str]) -> Array:
    """Returns an array made to vary over these axes, too."""
    new_axes = axes - _varying_axes(array)
    if not new_axes:
        return array
    return jax.lax.pcast(array, tuple(sorted(new_axes)), to="varying")


def _varying_axes(array: ArrayLike) -> frozenset[str]:
    """Returns the axes of the mesh over which an array's values differ."""
    return jax.typeof(array).manual_axis_type.varying
