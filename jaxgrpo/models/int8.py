"""Matrices of int8 numbers, which sampling reads in half the bytes of bfloat16.

Every output of a matrix has a float32 scale: W[i, o] is about values[i, o] * scale[o]. A scale is a
factor of a whole sum, so that it multiplies the product and not the matrix:

    x W = (x values) * scale

The product is made in the dtype of x, which holds -127 ... 127 exactly. Values are cast where they
are read, and no copy of the matrix is written. Nothing here has a gradient.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from jaxgrpo.models.products import matmul
from jaxgrpo.types import Params

LARGEST = 127
"""The largest value; -128 is left out, so that the range is symmetric."""

INPUT_AXES = {"kernel": 0, "output_embedding": 1}
"""The matrices that are quantized, by name: the axis that a product sums over."""


class Int8Matrix(NamedTuple):
    """A matrix as int8 numbers, with a scale for each output."""

    values: Int8[Array, "_ _"]
    scale: Float[Array, "_"]


def quantize(matrix: Float[Array, "_ _"], input_axis: int) -> Int8Matrix:
    """Returns a matrix rounded to the nearest values: off by half a scale, at most.

    input_axis: the axis that a product sums over; the other one is that of outputs
    """
    wide = matrix.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=input_axis, keepdims=True) / LARGEST
    # The weights of an output may all be zero: its values are then, too.
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
    return Int8Matrix(values.astype(jnp.int8), scale.squeeze(input_axis))


def int8_matmul(x: Float[Array, "B T I"], kernel: Int8Matrix) -> Float[Array, "B T O"]:
    """Returns x W in the dtype of x.

    kernel: [I, O], with the scales of its O outputs
    """
    # In the dtype of x before it is scaled: where devices sum their parts of a product, they
    # would send twice the bytes in float32.
    products = matmul(x, kernel.values)
    return (products.astype(jnp.float32) * kernel.scale).astype(x.dtype)


def quantize_params(params: Params) -> Params:
    """Returns parameters with int8 matrices, and the scale of each beside it, as `kernel_scale`.

    The embedding that tokens are looked up in stays as it is, as do norms, biases and adapters. A
    tied one gets an int8 copy for the logits, `output_embedding`.

    params: with a leaf for each layer
    """
    return _quantize_part({"output_embedding": params["embedding"]} | params)


def _quantize_part(part: Params) -> Params:
    quantized: Params = {}
    for name, leaf in part.items():
        if isinstance(leaf, dict):
            quantized[name] = _quantize_part(leaf)
        elif name in INPUT_AXES:
            matrix = quantize(leaf, INPUT_AXES[name])
            quantized[name] = matrix.values
            quantized[f"{name}_scale"] = matrix.scale
        else:
            quantized[name] = leaf
    return quantized
