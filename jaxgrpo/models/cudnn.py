"""Attention by cuDNN's fused kernel on NVIDIA GPUs, through jax.nn.dot_product_attention.

The kernel never holds the scores of all columns with all columns. It holds the mask as a bias,
[B, T, S], where dense attention holds float32 scores, [B, H, T, S].
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxgrpo.errors import UserError
from jaxgrpo.models.attention import sequence_mask, sequence_positions
from jaxgrpo.models.attention_kernel import AttentionKernel, within_window
from jaxgrpo.models.model_config import ModelConfig

MAX_HEAD_WIDTH = 128
"""The widest head that cuDNN trains on all GPUs; Hopper's may be wider. It must be a multiple of
8."""


@dataclass(frozen=True, eq=False)
class CudnnAttention(AttentionKernel):
    """Attention by a mask.

    mask: which columns each of the last T reads, before a layer's window is applied
    positions: of all columns; windows are measured in positions, not in columns
    implementation: of jax.nn.dot_product_attention; "xla" computes the same anywhere, for tests

    Raises UserError for odd numbers of columns, which the kernel does not train on.
    """

    mask: Bool[Array, "B T S"]
    positions: Int[Array, "B S"]
    implementation: Literal["cudnn", "xla"] = "cudnn"

    def __post_init__(self) -> None:
        columns = self.mask.shape[1:]
        if any(number % 2 for number in columns):
            raise UserError(
                f"compute.attention is 'cudnn', which needs even numbers of columns, and here "
                f"{columns[0]} read {columns[1]}: change sampling.prompt_width, "
                "sampling.max_new_tokens, batch.pack or packing.width"
            )

    def _readable(self, window: int) -> Bool[Array, "B T S"]:
        """Returns the mask, within the window."""
        queries = self.positions[:, -self.mask.shape[1] :]
        return within_window(self.mask, queries, self.positions, window)

    def _attend_shard(
        self,
        window: int,
        scale: float,
        softcap: float | None,
        queries: Float[Array, "b k G T E"],
        keys: Float[Array, "b k S E"],
        values: Float[Array, "b k S E"],
        readable: Bool[Array, "b T S"],
    ) -> Float[Array, "b k G T E"]:
        """Returns what the queries of one device's rows and heads read."""
        rows, _, _, length, width = queries.shape
        by_head = queries.reshape(rows, -1, length, width)  # [b, k*G, T, E]
        # The kernel has no softcap: `check` refuses networks that need one.
        attended = jax.nn.dot_product_attention(
            by_head.swapaxes(1, 2),
            keys.swapaxes(1, 2),
            values.swapaxes(1, 2),
            mask=readable[:, None],
            scale=scale,
            implementation=self.implementation,
        )
        return attended.swapaxes(1, 2).reshape(queries.shape)


def attention(
    mesh: Mesh, segments: Int[Array, "B S"] | Bool[Array, "B S"], offset: int = 0
) -> CudnnAttention:
    """Returns the attention of whole sequences.

    segments: which text of its row a column belongs to; 0 is padding
    offset: the columns before this one have no queries; they are a prompt that was read before
    """
    mask = sequence_mask(segments)[:, offset:]
    return CudnnAttention(mesh, mask, sequence_positions(segments))


def check(network: ModelConfig, dtype: DTypeLike, device_kind: str) -> None:
    """Raises UserError where cuDNN cannot attend for this network on such devices."""
    width = network.head_width
    reason = ""
    if "NVIDIA" not in device_kind:
        reason = f"the devices are {device_kind}"
    elif jnp.dtype(dtype) != jnp.bfloat16:
        reason = f"dtype is {jnp.dtype(dtype)}: it needs bfloat16"
    elif width > MAX_HEAD_WIDTH or width % 8:
        reason = f"heads are {width} wide: it needs a multiple of 8, at most {MAX_HEAD_WIDTH}"
    elif network.attention_softcap is not None:
        reason = f"the network caps its scores at {network.attention_softcap:g}"
    if reason:
        raise UserError(
            f"compute.attention='cudnn' is for NVIDIA GPUs, and {reason}; set it to 'auto'"
        )
