"""FLOPs of the matrix products in a compiled program's text."""

import math
import re

import numpy as np

from jaxgrpo.plan.hlo_text import Instruction

WINDOW_DEFAULTS = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def product_flops(
    instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Returns the FLOPs of a dot, or of a convolution, which a TPU's compiler makes of one.

    left, right: the operands' dimensions
    """
    out = instruction.arrays[0].sizes
    if instruction.opcode == "dot":
        return 2.0 * math.prod(out) * math.prod(_contracted_sizes(instruction, left))
    return _convolution_flops(instruction, left, right, out)


def _contracted_sizes(dot: Instruction, left: tuple[int, ...]) -> list[int]:
    """Returns the dimensions of the left operand that a dot sums over."""
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    if match is None:
        return []
    return [left[int(axis)] for axis in match[1].split(",") if axis]


def _convolution_flops(
    convolution: Instruction,
    left: tuple[int, ...],
    right: tuple[int, ...],
    out: tuple[int, ...],
) -> float:
    # Each axis has a letter: b batch, f features, i and o of the kernel, digits for space.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        return 0.0
    left_axes, right_axes, out_axes = labels.groups()
    # Each batch entry and output feature is a sum over the input features ...
    results = math.prod(out[out_axes.index(letter)] for letter in "bf")
    flops = 2.0 * results * right[right_axes.index("i")]
    # ... and over those kernel positions on each spatial axis that meet an input.
    for axis in range(len(left_axes) - 2):
        label = str(axis)
        flops *= _count_hits(
            inputs=left[left_axes.index(label)],
            kernel=right[right_axes.index(label)],
            outputs=out[out_axes.index(label)],
            window=_window(convolution.attributes, axis),
        )
    return flops


def _window(attributes: str, axis: int) -> dict[str, int]:
    """Returns a convolution's stride, padding and dilations on a spatial axis.

    attributes: they hold, for two axes, `window={size=4x1 stride=3x1 pad=0_0x0_0}`
    """
    window = dict(WINDOW_DEFAULTS)
    match = re.search(r"window=\{([^}]*)\}", attributes)
    for setting in match[1].split() if match else []:
        name, values = setting.split("=")
        if name in window:
            # Padding is low_high; what is added at the end moves no position.
            window[name] = int(values.split("x")[axis].split("_")[0])
    return window


def _count_hits(inputs: int, kernel: int, outputs: int, window: dict[str, int]) -> int:
    """Returns how many pairs of an output and a kernel position meet an input.

    The others meet padding, or the holes of a dilation, and need no product.
    """
    # Where each kernel position lies on the dilated input, for each output.
    starts = np.arange(outputs)[:, None] * window["stride"] - window["pad"]
    positions = starts + np.arange(kernel) * window["rhs_dilate"]  # [outputs, kernel]
    dilated = (inputs - 1) * window["lhs_dilate"] + 1
    is_inside = (positions >= 0) & (positions < dilated)
    is_input = positions % window["lhs_dilate"] == 0
    return int(np.sum(is_inside & is_input))
