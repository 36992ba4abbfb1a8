"""Kinds of work: what the instructions of a compiled program are for.

A compiled program's text names the Python scope of each instruction: `attend` (models/layers.py)
and `logits` (device/token_sampling.py, device/logprobs.py).
"""

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax

from jaxgrpo.plan.hlo_collectives import COLLECTIVES
from jaxgrpo.plan.hlo_text import Computation, Instruction, parse

PRODUCTS = "products"
ATTENTION = "attention"
LOGITS = "logits"
COLLECTIVE = "collectives"
OTHER = "other"

KINDS = (PRODUCTS, ATTENTION, LOGITS, COLLECTIVE, OTHER)
"""Matrix products with parameters; attention; logits, the draw and log-probabilities; transfers
between devices, with the wait for the slowest; all other work of a device."""

SCOPES = {"attend": ATTENTION, "logits": LOGITS}
"""The kind of work in a jax.named_scope."""

CONTAINERS = ("while", "conditional", "call")
"""Opcodes that stand for what runs within them."""

PRODUCT_CALL = re.compile(r'custom_call_target="[^"]*(gemm|matmul|dot|conv)', re.I)


@dataclass(frozen=True)
class Use:
    """What an instruction is for.

    is_container: it stands for what runs within it
    """

    kind: str
    is_container: bool = False


Uses = dict[str, Use]
"""By the name of an instruction."""


@functools.cache
def uses_of(text: str) -> Uses:
    """Returns what each instruction of a compiled program is for.

    text: what jax.stages.Compiled.as_text() returns
    """
    computations, _ = parse(text)
    return {
        name: _use_of(instruction, computation, computations)
        for computation in computations.values()
        for name, instruction in computation.items()
    }


def _use_of(
    instruction: Instruction,
    computation: Computation,
    computations: dict[str, Computation],
) -> Use:
    """Returns what an instruction of a computation is for."""
    opcode = re.sub(r"-(start|done)$", "", instruction.opcode)
    if opcode in CONTAINERS:
        return Use(OTHER, is_container=True)
    parts = [instruction, *_fused(instruction, computations)]
    if any(part.opcode.startswith(COLLECTIVES) for part in parts):
        return Use(COLLECTIVE)
    named = [part for part in parts if "op_name=" in part.attributes]
    # XLA forgets the scope of some that it rewrites: they are for what their operands are for.
    operands = [
        computation[name] for name in instruction.operands if name in computation
    ]
    for part in named or operands:
        for scope, kind in SCOPES.items():
            if re.search(rf'op_name="[^"]*\b{scope}\b', part.attributes):
                return Use(kind)
    return Use(PRODUCTS if any(map(_is_product, parts)) else OTHER)


def _fused(
    instruction: Instruction, computations: dict[str, Computation]
) -> Iterator[Instruction]:
    """Yields the instructions that are fused into one, those of inner fusions too."""
    for part in computations.get(instruction.called("calls") or "", {}).values():
        yield part
        yield from _fused(part, computations)


def _is_product(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return bool(PRODUCT_CALL.search(instruction.attributes))
    return instruction.opcode in ("dot", "convolution")


class LoadedPrograms:
    """The compiled programs of this process, by the names that a trace has for them."""

    def __init__(self) -> None:
        """Finds them all; their texts are read when they are asked for."""
        self._texts: dict[str, list[str]] = {}
        for executable in jax.devices()[0].client.live_executables():
            for module in executable.hlo_modules():
                self._texts.setdefault(module.name, []).append(module.to_string())

    def uses(self, module: str, names: Iterable[str]) -> Uses:
        """Returns what the instructions of a program are for; {} where it is not known.

        names: instructions that ran; programs of one name, for other shapes, may lack some
        """
        for text in self._texts.get(module, []):
            uses = uses_of(text)
            if uses.keys() >= set(names):
                return uses
        return {}
