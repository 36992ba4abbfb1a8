"""A batch, cut into micro-batches that each device can hold: of its rows, or of its bins."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


class MicroBatches(NamedTuple):
    """A way to cut a batch of B rows into M micro-batches.

    Call `rows_per_prompt` neighbouring rows a part. Micro-batch m takes the parts m, m + M,
    m + 2M, ... of the batch. The batch lies on the devices in contiguous blocks, so each
    micro-batch takes an equal share of every device, and no row moves.
    """

    size: int
    """Rows of a micro-batch; 0: all rows of the batch."""
    rows_per_prompt: int
    """Neighbouring rows with the same prompt that stay together, so that it is read once for them:
    the group size, or what `for_rows` makes of it."""
    devices: int
    """Devices that the rows of a batch are divided over."""

    def for_rows(self, rows: int) -> "MicroBatches":
        """Returns the micro-batches of a batch of so many rows.

        Its rows_per_prompt is the greatest common divisor of the group size and a device's rows of
        a micro-batch: the longest run of one prompt's rows that lies on one device. A longer group
        is several runs, whose prompt is read once for each.
        """
        size = self.size or rows
        rows_per_device = max(1, size // self.devices)
        return MicroBatches(
            size, math.gcd(self.rows_per_prompt, rows_per_device), self.devices
        )

    def split(self, batch: PyTree) -> PyTree:
        """Returns arrays [B, ...] as [M, size, ...]."""

        def split_array(x: Array) -> Array:
            parts_per_micro_batch = self.size // self.rows_per_prompt
            # [parts of a micro-batch, M, rows of a part, ...]
            parts = x.reshape(
                parts_per_micro_batch, -1, self.rows_per_prompt, *x.shape[1:]
            )
            return parts.swapaxes(0, 1).reshape(-1, self.size, *x.shape[1:])

        return jax.tree.map(split_array, batch)

    def merge(self, scores: Float[Array, "M R T"]) -> Float[Array, "B T"]:
        """Returns the rows of `split` in their places again."""
        count, _, columns = scores.shape
        # [M, parts of a micro-batch, rows of a part, T]
        parts = scores.reshape(count, -1, self.rows_per_prompt, columns)
        return parts.swapaxes(0, 1).reshape(-1, columns)


def take_entries(array: Array, bins: Int[Array, "R S"]) -> Array:
    """Returns the entries [R, S] of an array [B, T] that stand in bins; any where none stands."""
    return array.reshape(-1)[jnp.maximum(bins, 0)]


def has_entry(bins: Int[Array, "R S"], shape: tuple[int, ...]) -> Bool[Array, "B T"]:
    """Returns which entries of an array of this shape stand in bins."""
    num_entries = shape[0] * shape[1]
    entries = jnp.where(bins >= 0, bins, num_entries)
    return (
        jnp.zeros(num_entries, bool).at[entries].set(True, mode="drop").reshape(shape)
    )


def num_filled(bins: Int[Array, "M R S"]) -> Int[Array, ""]:
    """Returns how many micro-batches hold something; those that are empty are the last."""
    return jnp.any(bins >= 0, axis=(1, 2)).sum(dtype=jnp.int32)


def scan_filled(
    function: Callable[[Any, Array], tuple[Any, PyTree]],
    carry: Any,
    bins: Int[Array, "M R S"],
) -> tuple[Any, PyTree]:
    """Does what jax.lax.scan does, but leaves out the micro-batches that are empty.

    Their results are 0. How many they are is not known when this is compiled, so that there is no
    gradient through it.
    """

    def empty(leaf: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros((len(bins), *leaf.shape), leaf.dtype)

    _, result_shapes = jax.eval_shape(function, carry, bins[0])
    results = jax.tree.map(empty, result_shapes)

    def step(m: Int[Array, ""], state: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        carry, results = state
        carry, result = function(carry, bins[m])

        def store(stacked: Array, leaf: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(stacked, leaf, m, 0)

        return carry, jax.tree.map(store, results, result)

    return jax.lax.fori_loop(0, num_filled(bins), step, (carry, results))
