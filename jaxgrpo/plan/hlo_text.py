"""The text of a compiled program as instructions."""

import math
import re
from dataclasses import dataclass
from functools import cached_property

SIZES = {"pred": 1, "token": 0} | {
    f"{kind}{bits}": max(1, bits // 8) for kind in "suf" for bits in (2, 4, 8, 16, 32, 64)
}
SIZES |= {"bf16": 2, "c64": 8, "c128": 16}

ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
LINE = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
CALLED = re.compile(
    r"(calls|to_apply|condition|body|true_computation|false_computation)=%([\w.\-]+)"
)


@dataclass(frozen=True)
class Piece:
    """One array of a shape: its sizes, bytes, and whether it is in HBM."""

    sizes: tuple[int, ...]
    bytes: int
    in_hbm: bool


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    inside: str
    """What is between its parentheses."""
    rest: str
    root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))

    @cached_property
    def pieces(self) -> list[Piece]:
        """The arrays of its result."""
        found = []
        for kind, sizes, layout in ARRAY.findall(self.shape):
            numbers = tuple(int(size) for size in sizes.split(",")) if sizes else ()
            size = math.prod(numbers) * SIZES.get(kind, 1)
            found.append(Piece(numbers, size, not re.search(r"S\(\d", layout)))
        return found

    @property
    def hbm(self) -> int:
        """Bytes of its result in HBM."""
        return sum(piece.bytes for piece in self.pieces if piece.in_hbm)

    def called(self, kind: str) -> str | None:
        """The computation that it calls as its body, condition, ..."""
        return next((name for key, name in CALLED.findall(self.rest) if key == kind), None)


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Compiled.as_text() -> computations by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := LINE.match(line):
            instruction = _instruction(found[2], found[3], bool(found[1]))
            current[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
    shape, rest = _cut(text) if text[0] == "(" else text.split(" ", 1)
    opcode, _, rest = rest.strip().partition("(")
    inside, rest = _cut("(" + rest)
    return Instruction(name, shape, opcode, inside[1:-1], rest, root)


def _cut(text: str) -> tuple[str, str]:
    """The text up to the parenthesis that closes the first one, and what follows."""
    depth = 0
    for end, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: end + 1], text[end + 1 :]
    return text, ""
