"""Where activations lie on a mesh, in an update and in decoding.

Left to itself, XLA would move the matrices, or have every device compute all rows.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxgrpo.distributed.mesh import AXES, ROWS, row_sharding
from jaxgrpo.models.layers import UNCONSTRAINED, ActivationShardings

Constraint = Callable[[Array], Array]


def by_rows(mesh: Mesh) -> ActivationShardings:
    """Returns the shardings of prefill, on which those of an update build: layers lie by rows."""
    return ActivationShardings(layer=_constraint(row_sharding(mesh)))


def for_update(mesh: Mesh, vocabulary: int) -> ActivationShardings:
    """Returns the shardings of an update: by rows, but what is looked up lies over fsdp by feature.

    There the embedding is, and its gradient, a sum over the tokens of all devices, is made there.
    Otherwise every device would hold the gradient of the whole embedding.

    Over data the tokens are gathered as well, where they are fewer than the rows of the embedding;
    otherwise each part of data makes a gradient of its own tokens, and these are summed.
    """

    def place(x: Array) -> Array:
        """Constrains tokens [B T], or their rows of the embedding [B T D]."""
        tokens = x.shape[0] * x.shape[1]
        batch_axis = None if tokens < vocabulary else "data"
        axes = (batch_axis, None) if x.ndim == 2 else (batch_axis, None, "fsdp")
        return _constraint(NamedSharding(mesh, PartitionSpec(*axes)))(x)

    return by_rows(mesh)._replace(tokens=place, embedded=place)


def for_decode(mesh: Mesh) -> ActivationShardings:
    """Returns the shardings of a decode step, in which activations move and matrices stay.

    A token of each row is little and matrices are much (arXiv 2211.05102). Activations are
    replicated over fsdp next to each matrix, and sharded by row next to the cache. Each change of
    place names both places, or XLA would move the matrix to the rows instead.
    """

    def at(*axes: Any) -> Constraint:
        return _constraint(NamedSharding(mesh, PartitionSpec(*axes)))

    # Of x [B, T, n*E]; ROWS is one entry, of two mesh axes.
    free = PartitionSpec.UNCONSTRAINED
    next_to_matrix = at("data", None, free)
    next_to_cache = at(*ROWS, None, "tensor")
    # Of the products with the vocabulary, [V, B].
    by_vocabulary = at(free, "data")
    over_all_devices = at(None, AXES)
    over_rows = at(None, *ROWS)

    def to_cache(x: Array) -> Array:
        return next_to_cache(next_to_matrix(x))

    def to_matrix(x: Array) -> Array:
        return next_to_matrix(next_to_cache(x))

    def to_rows(products: Array) -> Array:
        # Tokens are drawn row by row: on all devices, where the rows divide so.
        divides = products.shape[1] % mesh.size == 0
        place = over_all_devices if divides else over_rows
        return place(by_vocabulary(products))

    if mesh.shape["fsdp"] == 1:
        # XLA places the rest. The draw slices the vocabulary, which is therefore whole for a row.
        return UNCONSTRAINED._replace(products=to_rows)
    return ActivationShardings(
        layer=at("data"), projected=to_cache, attended=to_matrix, products=to_rows
    )


def _constraint(sharding: NamedSharding) -> Constraint:
    """Returns a function that constrains its array to a sharding."""

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, sharding)

    return constrain
