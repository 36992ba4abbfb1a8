"""FLOPs of a program as it is written: of the matrix products in its jaxpr."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def written_flops(jaxpr: ClosedJaxpr, devices: int, kernels: bool = False) -> float:
    """Returns the FLOPs of a program's matrix products, a device's share.

    Loops of known length count as often as they run. Products that no result is made of do not
    count, such as gradients of what LoRA freezes.

    devices: over how many the program is divided
    kernels: count only products in Pallas kernels, which the compiled text does not show. Blocks
        that a kernel skips count, and so causal attention counts twice.
    """
    # XLA drops dead code; dead products must not count here either.
    live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _product_flops(live, devices, kernels)


def _product_flops(
    jaxpr: Jaxpr, devices: int, kernels: bool, region: str = ""
) -> float:
    """Returns `written_flops` of a part of a program.

    region: the innermost "shard_map" or "pallas_call" that it is in ("": neither)
    """
    total = 0.0
    for equation in jaxpr.eqns:
        primitive = equation.primitive.name
        if primitive == "dot_general" and (region == "pallas_call" or not kernels):
            # Inside a shard_map and a kernel the shapes are one device's already.
            total += _dot_flops(equation) / (1 if region else devices)
        inner_region = (
            primitive if primitive in ("shard_map", "pallas_call") else region
        )
        inner_flops = [
            _product_flops(inner, devices, kernels, inner_region)
            for inner in _inner_jaxprs(equation)
        ]
        # One branch of a conditional runs: the most expensive one is counted.
        flops = (
            max(inner_flops, default=0.0) if primitive == "cond" else sum(inner_flops)
        )
        total += _repeats(equation) * flops
    return total


def _dot_flops(equation: JaxprEqn) -> float:
    """Returns 2 x (numbers of the result) x (numbers that each is a sum of)."""
    (left_axes, _), _ = equation.params["dimension_numbers"]
    left_shape = _shape(equation.invars[0])
    contracted = [left_shape[axis] for axis in left_axes]
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(contracted)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an equation's parameters: bodies, branches, called functions."""
    for parameter in equation.params.values():
        values = parameter if isinstance(parameter, tuple | list) else (parameter,)
        for value in values:
            if isinstance(value, ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, Jaxpr):
                yield value


def _repeats(equation: JaxprEqn) -> int:
    """Returns how often an equation's inner jaxprs run; loops of unknown length count once."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    return 1
