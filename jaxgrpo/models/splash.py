"""Attention over whole sequences by JAX's splash kernel on TPUs: the scores of all columns with all columns are never held.

Elsewhere, and for lengths that are no multiple of 128, `transformer.attend` does the same with them.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.mesh import ROWS

LANES = 128
"""What a kernel's blocks are multiples of."""

BLOCKS = 512, 256, 128
"""Columns of a block; the first that divides the length is taken."""

Attention = Callable[[Array, Array, Array], Array]
"""(queries [B H T E], keys [B K T E], values [B K T E]) -> [B H T E]"""


def attention(mesh: Mesh, segments: Int[Array, "B T"] | Bool[Array, "B T"], interpret: bool = False) -> Attention | None:
    """What reads whole sequences on this mesh: each column those before it and itself within its own segment. None where
    there is no kernel for it. What a column of segment 0, which is padding, reads is finite and never looked at.

    interpret: run the kernel's steps on any device, for tests
    """
    length = segments.shape[1]
    if length % LANES or not (interpret or mesh.devices.flat[0].platform == "tpu"):
        return None
    block = next(block for block in BLOCKS if length % block == 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def attend(
        queries: Float[Array, "B H T E"], keys: Float[Array, "B K T E"], values: Float[Array, "B K T E"]
    ) -> Float[Array, "B H T E"]:
        batch, heads, _, width = queries.shape
        kv_heads = keys.shape[1]
        mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * (heads // kv_heads))
        read = partial(_read, partial(kernels.make_splash_mqa_single_device, mask, block_sizes=sizes, interpret=interpret))
        divided = PartitionSpec(*ROWS, "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None)
        shards = jax.shard_map(
            read, mesh=mesh, in_specs=(divided, divided, divided, PartitionSpec(*ROWS)), out_specs=divided, check_vma=False
        )
        grouped = (queries * width**-0.5).reshape(batch, kv_heads, -1, length, width)
        return shards(grouped, keys, values, segments.astype("int32")).reshape(queries.shape)

    return attend


def _read(
    make: Callable[[], Callable],
    queries: Float[Array, "b k G T E"],
    keys: Float[Array, "b k T E"],
    values: Float[Array, "b k T E"],
    segments: Int[Array, "b T"],
) -> Float[Array, "b k G T E"]:
    """One device's rows and heads; G query heads read each key-value head."""
    kernel = make()
    row = lambda q, k, v, s: jax.vmap(lambda q, k, v: kernel(q, k, v, kernels.SegmentIds(s, s)))(q, k, v)
    return jax.vmap(row)(queries, keys, values, segments)
