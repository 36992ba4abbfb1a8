"""FLOPs of a program as it is written: of the matrix products in its jaxpr."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

Constants = dict[Var, Any]
"""The values of a jaxpr's variables that are known when it is traced."""


def written_flops(jaxpr: ClosedJaxpr, devices: int, kernels: bool = False) -> float:
    """Returns the FLOPs of a program's matrix products, a device's share.

    Loops of known length count as often as they run. Products that no result is made of do not
    count, such as gradients of what LoRA freezes.

    devices: over how many the program is divided
    kernels: count only products in Pallas kernels, which the compiled text does not show
    """
    # XLA drops dead code; dead products must not count here either.
    live, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    constants = dict(zip(live.constvars, jaxpr.consts, strict=True))
    return _product_flops(live, constants, devices, kernels)


def _product_flops(
    jaxpr: Jaxpr, constants: Constants, devices: int, kernels: bool, region: str = ""
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
            _product_flops(
                inner,
                known | _inner_constants(equation, inner, constants),
                devices,
                kernels,
                inner_region,
            )
            for inner, known in _inner_jaxprs(equation)
        ]
        # One branch of a conditional runs: the most expensive one is counted.
        flops = (
            max(inner_flops, default=0.0) if primitive == "cond" else sum(inner_flops)
        )
        total += _repeats(equation, constants) * flops
    return total


def _dot_flops(equation: JaxprEqn) -> float:
    """Returns 2 x (numbers of the result) x (numbers that each is a sum of)."""
    (left_axes, _), _ = equation.params["dimension_numbers"]
    left_shape = _shape(equation.invars[0])
    contracted = [left_shape[axis] for axis in left_axes]
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(contracted)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[tuple[Jaxpr, Constants]]:
    """Yields the jaxprs among an equation's parameters, each with its own constants.

    They are bodies, branches, called functions.
    """
    for parameter in equation.params.values():
        values = parameter if isinstance(parameter, tuple | list) else (parameter,)
        for value in values:
            if isinstance(value, ClosedJaxpr):
                constants = zip(value.jaxpr.constvars, value.consts, strict=True)
                yield value.jaxpr, dict(constants)
            elif isinstance(value, Jaxpr):
                yield value, {}


def _inner_constants(
    equation: JaxprEqn, inner: Jaxpr, constants: Constants
) -> Constants:
    """Returns the values of an inner jaxpr's arguments that are known outside of it."""
    if len(inner.invars) != len(equation.invars):
        return {}
    # What a scan carries or goes over is another value in each pass.
    is_scan = equation.primitive.name == "scan"
    count = equation.params["num_consts"] if is_scan else len(inner.invars)
    outside = equation.invars[:count]
    values = [_value(variable, constants) for variable in outside]
    pairs = zip(inner.invars, values, strict=False)
    return {variable: value for variable, value in pairs if value is not None}


def _value(variable: Var | Literal, constants: Constants) -> Any:
    """Returns a variable's value; None if it is known only when the program runs."""
    if isinstance(variable, Literal):
        return variable.val
    return constants.get(variable)


def _repeats(equation: JaxprEqn, constants: Constants) -> int | float:
    """Returns how often an equation's inner jaxprs run; loops of unknown length count once."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        steps = math.prod(equation.params["grid_mapping"].grid)
        return steps * _share_of_steps(equation, constants)
    return 1


def _share_of_steps(kernel: JaxprEqn, constants: Constants) -> float:
    """Returns the share of a kernel's steps that do something.

    The splash kernel gets the kinds of its blocks as its second argument, 0 for those that it
    skips. It skips none where the mask is known only when the program runs.
    """
    if not str(kernel.params.get("name")).startswith("splash"):
        return 1.0
    block_kinds = _value(kernel.invars[1], constants)
    return 1.0 if block_kinds is None else float(np.mean(np.asarray(block_kinds) > 0))
