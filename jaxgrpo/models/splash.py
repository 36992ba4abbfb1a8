"""Attention over whole sequences by JAX's splash kernel on TPUs: the scores of all columns with all columns are never held.

Elsewhere, and for lengths that are no multiple of 128, `transformer.attend` does the same with them.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.distributed.mesh import ROWS

LANES = 128
"""What a kernel's blocks are multiples of."""

BLOCKS = 512, 256, 128
"""Columns of a block; the first that divides the length is taken."""

Attention = Callable[..., Float[Array, "B H T E"]]
"""(queries, parts, window=, scale=, softcap=): as transformer.attend, but that it knows the mask. window: how many columns back
a column reads, itself included; 0: all."""


def attention(
    mesh: Mesh,
    segments: Int[Array, "B S"] | Bool[Array, "B S"],
    prompt: int = 0,
    interpret: bool = False,
) -> Attention | None:
    """What reads whole sequences on this mesh: each column those before it and itself within its own segment. None where
    there is no kernel for it. What a column of segment 0, which is padding, reads is finite and never looked at.

    prompt: the first so many columns have been read before, and only those after them, T = S - prompt, have queries
    interpret: run the kernel's steps on any device, for tests
    """
    columns = segments.shape[1]
    length = columns - prompt
    if (
        columns % LANES
        or length % LANES
        or not (interpret or mesh.devices.flat[0].platform == "tpu")
    ):
        return None
    block_q, block_kv = (
        next(block for block in BLOCKS if size % block == 0) for size in (length, columns)
    )
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )

    def attend(
        queries: Float[Array, "B H T E"],
        parts: list[tuple[Array, Array]],
        window: int = 0,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> Float[Array, "B H T E"]:
        batch, heads, _, width = queries.shape
        kv_heads = parts[0][0].shape[1]
        keys, values = (
            jnp.concatenate(part, axis)
            for part, axis in zip(zip(*parts, strict=True), (3, 2), strict=True)
        )
        shape = (length, columns)
        one = (
            masks.LocalMask(shape, (window - 1, 0), prompt)
            if window
            else masks.CausalMask(shape, prompt)
        )
        mask = masks.MultiHeadMask([one] * (heads // kv_heads))
        how = {"block_sizes": sizes, "attn_logits_soft_cap": softcap, "interpret": interpret}
        read = partial(_read, partial(kernels.make_splash_mqa_single_device, mask, **how))
        divided = PartitionSpec(*ROWS, "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None)
        places = divided, divided, divided, PartitionSpec(*ROWS)
        shards = jax.shard_map(read, mesh=mesh, in_specs=places, out_specs=divided, check_vma=False)
        grouped = (queries * (width**-0.5 if scale is None else scale)).reshape(
            batch, kv_heads, -1, length, width
        )
        return shards(grouped, keys.swapaxes(2, 3), values, segments.astype("int32")).reshape(
            queries.shape
        )

    return attend


def _read(
    make: Callable[[], Callable],
    queries: Float[Array, "b k G T E"],
    keys: Float[Array, "b k S E"],
    values: Float[Array, "b k S E"],
    segments: Int[Array, "b S"],
) -> Float[Array, "b k G T E"]:
    """One device's rows and heads; G query heads read each key-value head. Queries are those of the last T columns."""
    kernel, length = make(), queries.shape[3]
    row = lambda q, k, v, s: jax.vmap(
        lambda q, k, v: kernel(q, k, v, kernels.SegmentIds(s[-length:], s))
    )(q, k, v)
    return jax.vmap(row)(queries, keys, values, segments)
