"""A batch, cut into micro-batches that each device can hold."""

import math
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PyTree


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
