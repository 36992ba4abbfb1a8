"""Lookups and products whose gradients are summed in float32, whatever activations are in.

JAX's own gradients would be summed over tokens in the dtype of the activations. A bfloat16 sum
stops growing at 256 times the size of its terms, so most of the gradient of a frequent token's
embedding would be lost.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def embed(
    embedding: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: DTypeLike
) -> tuple[Float[Array, "B T D"], Float[Array, "V D"]]:
    """Returns the tokens' rows of the embedding in dtype, and the embedding for its next use.

    The gradient is summed over tokens, into that of the next use: in float32 all uses of an
    embedding share one array for its gradient. In bfloat16 each lookup makes a float32 copy.
    """
    return embedding[tokens].astype(dtype), embedding


def _embed_forward(
    embedding: Array, tokens: Array, dtype: DTypeLike
) -> tuple[tuple[Array, Array], Array]:
    return embed(embedding, tokens, dtype), tokens


def _embed_backward(
    dtype: DTypeLike, tokens: Array, gradients: tuple[Array, Array]
) -> tuple[Array, None]:
    d_rows, d_embedding = gradients
    # Tokens that are the same add up in one row of the gradient: in float32.
    wide = d_embedding.astype(jnp.float32)
    wide = wide.at[tokens].add(d_rows.astype(jnp.float32))
    return wide.astype(d_embedding.dtype), None


embed.defvjp(_embed_forward, _embed_backward)


@jax.custom_vjp
def matmul(
    x: Float[Array, "B T I"], kernel: Float[Array, "I O"] | Int8[Array, "I O"]
) -> Float[Array, "B T O"]:
    """Returns x W in the dtype of x. The gradient of W is summed over tokens and over devices."""
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(
    residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    # d_x sums over outputs, as the forward pass does over inputs; d_kernel over all tokens.
    d_x = jnp.einsum("bto,io->bti", gradient, kernel.astype(x.dtype))
    d_kernel = jnp.einsum(
        "bti,bto->io", x, gradient, preferred_element_type=jnp.float32
    )
    return d_x, d_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat_rows(x: Float[Array, "A *rest"], count: int) -> Float[Array, "B *rest"]:
    """Returns each row `count` times, copies beside each other. The gradient sums over copies."""
    return jnp.repeat(x, count, axis=0)


def _repeat_forward(x: Array, count: int) -> tuple[Array, None]:
    return repeat_rows(x, count), None


def _repeat_backward(count: int, _: None, gradient: Array) -> tuple[Array]:
    # [A, count, ...]: the copies of a row stand beside each other.
    copies = gradient.reshape(-1, count, *gradient.shape[1:])
    return (copies.sum(axis=1, dtype=jnp.float32).astype(gradient.dtype),)


repeat_rows.defvjp(_repeat_forward, _repeat_backward)


@jax.custom_vjp
def take_columns(
    x: Float[Array, "B T D"], columns: Int[Array, "B S"]
) -> Float[Array, "B S D"]:
    """Returns x[b, columns[b, s]]. The gradient of a column that is taken often is a sum."""
    return jnp.take_along_axis(x, columns[..., None], axis=1)


def _take_forward(x: Array, columns: Array) -> tuple[Array, tuple[Array, Array]]:
    return take_columns(x, columns), (x, columns)


def _take_backward(
    residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, None]:
    x, columns = residuals

    def add_row(columns: Array, gradient: Array) -> Array:
        zeros = jnp.zeros(x.shape[1:], jnp.float32)
        return zeros.at[columns].add(gradient.astype(jnp.float32))

    # Row by row, so that no row leaves its device.
    return jax.vmap(add_row)(columns, gradient).astype(x.dtype), None


take_columns.defvjp(_take_forward, _take_backward)
