"""Attention over whole sequences by JAX's splash kernel on TPUs.

The kernel never holds the scores of all columns with all columns. Elsewhere, and for lengths that
are no multiple of 128, `attention.attend` computes the same and does hold them. Shapes: B rows,
S columns of keys and values, T columns of queries (the last of the S), H query heads, K key-value
heads, G = H / K, E head width.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.models.attention_kernel import AttentionKernel, within_window

LANES = 128
"""The kernel's blocks are multiples of this many columns."""

BLOCK_LENGTHS = (512, 256, 128)
"""Columns of a block; the first that divides the sequence length is used."""


@dataclass(frozen=True, eq=False)
class SplashAttention(AttentionKernel):
    """Attention of the columns of a batch to those before them in their own segments.

    segments: which text of its row a column belongs to, [B, S]; 0 is padding
    offset: the columns before this one have no queries; they are a prompt that was read before
    interpret: runs the kernel's steps on any device, for tests
    """

    segments: Int[Array, "B S"] | Bool[Array, "B S"]
    offset: int = 0
    interpret: bool = False

    def _readable(self, window: int) -> Int[Array, "B S"]:
        """Returns the segments: the window is in the kernel's own mask."""
        return self.segments.astype("int32")

    def _make_mask(self, heads: int, window: int) -> masks.MultiHeadMask:
        """Returns the causal mask, [T, S] for each query head of a key-value head."""
        columns = self.segments.shape[1]
        shape = (columns - self.offset, columns)
        # The kernel skips blocks that this mask excludes; it masks other segments by itself.
        mask: masks.Mask
        if window:
            mask = masks.LocalMask(shape, (window - 1, 0), self.offset)
        else:
            mask = masks.CausalMask(shape, self.offset)
        return masks.MultiHeadMask([mask] * heads)

    def _attend_shard(
        self,
        window: int,
        scale: float,
        softcap: float | None,
        queries: Float[Array, "b k G T E"],
        keys: Float[Array, "b k S E"],
        values: Float[Array, "b k S E"],
        readable: Int[Array, "b S"],
    ) -> Float[Array, "b k G T E"]:
        """Returns what the queries of one device's rows and heads read."""
        heads, length = queries.shape[2:4]
        # Made here: outside the shard_map its arrays, of mask blocks, would need shardings, too.
        kernel = kernels.make_splash_mqa_single_device(
            self._make_mask(heads, window),
            block_sizes=_block_sizes(length, keys.shape[2]),
            attn_logits_soft_cap=softcap,
            interpret=self.interpret,
        )

        def attend_row(
            queries: Float[Array, "k G T E"],
            keys: Float[Array, "k S E"],
            values: Float[Array, "k S E"],
            segments: Int[Array, "S"],
        ) -> Float[Array, "k G T E"]:
            # Queries are those of the last columns.
            segment_ids = kernels.SegmentIds(segments[-length:], segments)
            # The kernel takes the G query heads of one key-value head.
            return jax.vmap(kernel, in_axes=(0, 0, 0, None))(
                queries, keys, values, segment_ids
            )

        # Over the device's rows. The kernel does not scale.
        return jax.vmap(attend_row)(queries * scale, keys, values, readable)


@dataclass(frozen=True, eq=False)
class MaskedSplashAttention(AttentionKernel):
    """Attention by a mask that is known only when the program runs.

    The kernel skips blocks that the mask excludes. It holds the mask, a byte for each query head of
    a key-value head and pair of columns, where dense attention holds float32 scores of all heads.

    mask: which columns each column may read, but for the window
    positions: of each column; a window counts them, and not columns
    interpret: runs the kernel's steps on any device, for tests
    """

    mask: Bool[Array, "B S S"]
    positions: Int[Array, "B S"]
    interpret: bool = False

    def _readable(self, window: int) -> Bool[Array, "B S S"]:
        """Returns the mask, within the window."""
        return within_window(self.mask, self.positions, self.positions, window)

    def _attend_shard(
        self,
        window: int,
        scale: float,
        softcap: float | None,
        queries: Float[Array, "b k G T E"],
        keys: Float[Array, "b k S E"],
        values: Float[Array, "b k S E"],
        readable: Bool[Array, "b S S"],
    ) -> Float[Array, "b k G T E"]:
        """Returns what the queries of one device's rows and heads read."""
        heads = queries.shape[2]

        def attend_row(
            queries: Float[Array, "k G S E"],
            keys: Float[Array, "k S E"],
            values: Float[Array, "k S E"],
            mask: Bool[Array, "S S"],
        ) -> Float[Array, "k G S E"]:
            made = kernels.make_splash_mqa_single_device(
                jnp.broadcast_to(mask, (heads, *mask.shape)),
                block_sizes=_block_sizes(*mask.shape),
                attn_logits_soft_cap=softcap,
                interpret=self.interpret,
            )
            # JAX makes the flag an array, and then asks for its truth, which fails in a jit.
            info = made.fwd_mask_info._replace(is_dynamic_mask=True)
            # Any: to its types a kernel may return residuals, too.
            kernel: Any = kernels.SplashAttentionKernel(
                info, made.dq_mask_info, made.dkv_mask_info, **made.kwargs
            )
            return jax.vmap(kernel)(queries, keys, values)

        return jax.vmap(attend_row)(queries * scale, keys, values, readable)


def attention(
    mesh: Mesh,
    segments: Int[Array, "B S"] | Bool[Array, "B S"],
    offset: int = 0,
    interpret: bool = False,
) -> SplashAttention | None:
    """Returns the attention of whole sequences on this mesh, or None where the kernel cannot run.

    The parameters are those of SplashAttention.
    """
    columns = segments.shape[1]
    if not _can_run(mesh, (columns, columns - offset), interpret):
        return None
    return SplashAttention(mesh, segments, offset, interpret)


def masked_attention(
    mesh: Mesh,
    mask: Bool[Array, "B S S"],
    positions: Int[Array, "B S"],
    interpret: bool = False,
) -> MaskedSplashAttention | None:
    """Returns the attention by a mask on this mesh, or None where the kernel cannot run.

    The parameters are those of MaskedSplashAttention.
    """
    if not _can_run(mesh, mask.shape[1:], interpret):
        return None
    return MaskedSplashAttention(mesh, mask, positions, interpret)


def _can_run(mesh: Mesh, lengths: tuple[int, ...], interpret: bool) -> bool:
    """Returns whether the kernel has blocks that divide these lengths, and runs on the mesh."""
    if any(length % LANES for length in lengths):
        return False
    return interpret or mesh.devices.flat[0].platform == "tpu"


def _block_sizes(length: int, columns: int) -> kernels.BlockSizes:
    """Returns the kernel's blocks for so many columns of queries, and of keys and values."""
    query_block = next(block for block in BLOCK_LENGTHS if length % block == 0)
    kv_block = next(block for block in BLOCK_LENGTHS if columns % block == 0)
    return kernels.BlockSizes(
        block_q=query_block,
        block_kv=kv_block,
        block_q_dkv=query_block,
        block_kv_dkv=kv_block,
        block_q_dq=query_block,
        block_kv_dq=kv_block,
    )
