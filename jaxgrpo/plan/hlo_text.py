"""Parses the text of a compiled program into instructions."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

# Types narrower than a byte take a byte each.
ITEM_SIZES = {"pred": 1, "token": 0} | {
    f"{kind}{bits}": max(1, bits // 8)
    for kind in "suf"
    for bits in (2, 4, 8, 16, 32, 64)
}
ITEM_SIZES |= {"bf16": 2, "c64": 8, "c128": 16}

# bf16[8,128]{1,0:T(8,128)S(1)}: type, sizes, layout.
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
# ENTRY %main (x: f32[4]) -> f32[4] {
COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
#   ROOT %sum = f32[4]{0} add(%x, %y), metadata={...}
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
CALLED = re.compile(
    r"(calls|to_apply|condition|body|true_computation|false_computation)=%([\w.\-]+)"
)


@dataclass(frozen=True)
class ArrayShape:
    """One array of an instruction's result.

    sizes: its dimensions
    nbytes: its size, without padding to tiles
    in_hbm: whether it is in HBM; a layout S(n) is on-chip memory
    """

    sizes: tuple[int, ...]
    nbytes: int
    in_hbm: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction: `name = shape opcode(inputs), attributes`.

    shape: of the result, a tuple of arrays where it begins with "("
    inputs: the text between the parentheses: operands, a constant's value, a parameter's number
    is_root: whether its result is its computation's
    """

    name: str
    shape: str
    opcode: str
    inputs: str
    attributes: str
    is_root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of the instructions that this one reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.inputs))

    @cached_property
    def arrays(self) -> list[ArrayShape]:
        """The arrays of the result."""
        arrays = []
        for dtype, sizes_text, layout in ARRAY.findall(self.shape):
            sizes = (
                tuple(int(size) for size in sizes_text.split(",")) if sizes_text else ()
            )
            # No sizes: a scalar, whose product is 1.
            nbytes = math.prod(sizes) * ITEM_SIZES.get(dtype, 1)
            in_hbm = not re.search(r"S\(\d", layout)
            arrays.append(ArrayShape(sizes, nbytes, in_hbm))
        return arrays

    @property
    def hbm_bytes(self) -> int:
        """Bytes of the result in HBM."""
        return sum(array.nbytes for array in self.arrays if array.in_hbm)

    def called(self, attribute: str) -> str | None:
        """Returns the computation that it calls as its `body`, `condition`, ...; None if none."""
        for name, computation in CALLED.findall(self.attributes):
            if name == attribute:
                return computation
        return None


Computation = dict[str, Instruction]
"""Instructions by name, in the order of the text."""


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns a program's computations by name, and the name of the entry computation.

    text: what jax.stages.Compiled.as_text() returns
    """
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            is_entry, name = head.groups()
            current = computations.setdefault(name, {})
            if is_entry:
                entry = name
        elif match := INSTRUCTION.match(line):
            is_root, name, definition = match.groups()
            current[name] = _parse_instruction(name, definition, is_root is not None)
    return computations, entry


def root_of(computation: Computation) -> Instruction:
    """Returns the instruction whose result is the computation's."""
    return next(
        instruction for instruction in computation.values() if instruction.is_root
    )


def _parse_instruction(name: str, definition: str, is_root: bool) -> Instruction:
    """Returns an instruction. definition: what follows its name and `=`"""
    # A tuple's shape has spaces inside its parentheses, an array's has none.
    if definition.startswith("("):
        shape, call = _split_after_parentheses(definition)
    else:
        shape, call = definition.split(" ", 1)
    opcode, _, rest = call.strip().partition("(")
    inputs, attributes = _split_after_parentheses("(" + rest)
    return Instruction(name, shape, opcode, inputs[1:-1], attributes, is_root)


def _split_after_parentheses(text: str) -> tuple[str, str]:
    """Splits a text after the parenthesis that closes its first one."""
    depth = 0
    for position, letter in enumerate(text):
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
        if depth == 0:
            return text[: position + 1], text[position + 1 :]
    return text, ""
