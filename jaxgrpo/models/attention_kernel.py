"""Attention by a fused kernel, each device on its own rows and heads.

Shapes: B rows, S columns of keys and values, T columns of queries (the last of the S), H query
heads, K key-value heads, G = H / K, E head width; b rows and k heads of one device.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.distributed.mesh import ROWS


# eq=False: they are hashed by identity, since traced arrays have no hash.
@dataclass(frozen=True, eq=False)
class AttentionKernel:
    """A kernel on a mesh. A subclass has the kernel, and says which columns may be read.

    mesh: divides rows over data and fsdp, and key-value heads over tensor where they divide
    """

    mesh: Mesh

    def __call__(
        self,
        queries: Float[Array, "B H T E"],
        parts: list[tuple[Float[Array, "B K E _"], Float[Array, "B K _ E"]]],
        *,
        window: int = 0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Float[Array, "B H T E"]:
        """Returns what each query reads, as attention.attend does with the same mask.

        A query in padding reads something finite that nobody looks at.

        parts: (keys, values) of consecutive columns, together S
        window: how many columns back a column reads, itself included; 0: all
        scale: factor of the products of queries and keys; None: E ** -0.5
        softcap: bound c of these products, as c * tanh(products / c); None: none
        """
        # 1. One array each of keys [B, K, E, S] and values [B, K, S, E].
        width = queries.shape[-1]
        keys = jnp.concatenate([part_keys for part_keys, _ in parts], axis=3)
        values = jnp.concatenate([part_values for _, part_values in parts], axis=2)

        # 2. Queries by the key-value head that they read, [B, K, G, T, E].
        batch, kv_heads = keys.shape[:2]
        grouped = queries.reshape(batch, kv_heads, -1, *queries.shape[2:])
        scale = width**-0.5 if scale is None else scale

        # 3. The kernel on each device's own rows and heads; nothing is communicated.
        heads_axis = "tensor" if kv_heads % self.mesh.shape["tensor"] == 0 else None
        by_row = PartitionSpec(*ROWS)
        by_row_and_head = PartitionSpec(*ROWS, heads_axis)
        attend = jax.shard_map(
            partial(self._attend_shard, window, scale, softcap),
            mesh=self.mesh,
            in_specs=(by_row_and_head, by_row_and_head, by_row_and_head, by_row),
            out_specs=by_row_and_head,
            # The kernel does not say over which mesh axes its results vary.
            check_vma=False,
        )
        attended = attend(grouped, keys.swapaxes(2, 3), values, self._readable(window))
        return attended.reshape(queries.shape)

    def _readable(self, window: int) -> Array:
        """Returns what says of each row which columns may be read, [B, ...]."""
        raise NotImplementedError

    def _attend_shard(
        self,
        window: int,
        scale: float,
        softcap: float | None,
        queries: Float[Array, "b k G T E"],
        keys: Float[Array, "b k S E"],
        values: Float[Array, "b k S E"],
        readable: Array,
    ) -> Float[Array, "b k G T E"]:
        """Returns what the queries of one device's rows and heads read."""
        raise NotImplementedError


def within_window(
    mask: Bool[Array, "B T S"],
    positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    window: int,
) -> Bool[Array, "B T S"]:
    """Returns the mask, without keys that stand `window` positions or more before their query.

    window: 0 leaves the mask as it is
    """
    if not window:
        return mask
    distances = positions[:, :, None] - key_positions[:, None, :]
    return mask & (distances < window)
