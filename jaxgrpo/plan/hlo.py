"""What a compiled program does, read from its text: bytes of memory, matrix products, collectives; loops by their trip counts.

The compiler's own cost_analysis counts the body of a loop once, however often it runs; here each instruction counts as often
as it is executed. Layouts S(n) are on-chip memory and cost nothing; padding to tiles is not counted.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from jaxgrpo.plan.hlo_text import Computation, Instruction, parse

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

FREE = {
    *(
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "iota",
    ),
    *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain"),
}
"""Instructions that move no bytes of their own."""

BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass
class Collective:
    """count: how often; bytes: that a device receives."""

    count: float = 0
    bytes: float = 0


@dataclass
class Cost:
    """What a device does.

    flops: of matrix products. bytes: read from and written to HBM. loops: the trip counts that are not known and count as 1
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: dict[str, Collective] = field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: "Cost", times: float) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.unknown_loops += other.unknown_loops
        for kind, collective in other.collectives.items():
            mine = self.collectives.setdefault(kind, Collective())
            mine.count += times * collective.count
            mine.bytes += times * collective.bytes

    @property
    def ici(self) -> float:
        """Bytes that a device receives from others."""
        return sum(collective.bytes for collective in self.collectives.values())


def cost(text: str, loops: bool = True) -> Cost:
    """What a program of this text costs a device. loops=False: every body once, as the compiler's cost_analysis has it."""
    computations, entry = parse(text)
    return _Walk(computations, loops).cost(entry)


@dataclass
class _Walk:
    computations: dict[str, Computation]
    loops: bool

    def cost(self, name: str) -> Cost:
        total, seen = Cost(), set()
        for instruction in self._executed(name):
            if instruction.opcode == "while":
                times = self._trips(instruction, name)
                total.add(self.cost(str(instruction.called("body"))), 1 if times is None else times)
                total.unknown_loops += times is None
            elif instruction.opcode == "conditional":
                total.add(
                    min(
                        (self.cost(branch) for branch in _branches(instruction)),
                        key=lambda cost: cost.bytes,
                    ),
                    1,
                )
        for kind, collective, channel in self._collectives(name):
            # An asynchronous collective is in the text twice or more: where it starts, where it goes on, where it is done.
            if channel is None or channel not in seen:
                total.add(Cost(collectives={kind: collective}), 1)
            seen.add(channel)
        total.bytes += sum(self._bytes(instruction, name) for instruction in self._executed(name))
        total.flops += sum(
            self._flops(instruction, where) for where, instruction in self._all(name)
        )
        return total

    def _executed(self, name: str) -> Iterator[Instruction]:
        """A computation's instructions, with those of what it calls; what is fused is one."""
        for instruction in self.computations[name].values():
            yield instruction
            if instruction.opcode == "call":
                yield from self._executed(str(instruction.called("to_apply")))

    def _all(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """The same, and those inside of fusions, with the computation that each is in."""
        for instruction in self.computations[name].values():
            yield name, instruction
            inner = {"call": "to_apply", "fusion": "calls", "async-start": "calls"}.get(
                instruction.opcode
            )
            if inner and (called := instruction.called(inner)):
                yield from self._all(called)

    def _trips(self, loop: Instruction, name: str) -> int | None:
        """How often a loop's body runs; None if the text does not say."""
        if not self.loops:
            return 1
        if known := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.rest):
            return int(known[1])
        condition = self.computations[str(loop.called("condition"))]
        root = next(instruction for instruction in condition.values() if instruction.root)
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return None
        counter, bound = (condition[operand] for operand in root.operands)
        begin, end = self._number(counter, loop, name), self._number(bound, loop, name)
        return (
            None
            if begin is None or end is None
            else math.ceil((end - begin) / self._step(counter, loop))
        )

    def _step(self, counter: Instruction, loop: Instruction) -> int:
        """By how much a loop counts: collective products are unrolled, and count by 2."""
        body, index = (
            self.computations[str(loop.called("body"))],
            re.search(r"index=(\d+)", counter.rest),
        )
        root = next(instruction for instruction in body.values() if instruction.root)
        if not index or root.opcode != "tuple":
            return 1
        added = body[root.operands[int(index[1])]]
        steps = [_constant(body[operand]) for operand in added.operands if operand in body]
        return next((step for step in steps if step), 1) if added.opcode == "add" else 1

    def _number(self, instruction: Instruction, loop: Instruction, name: str) -> int | None:
        """A whole number of a loop's condition: a constant there, or what the loop begins with."""
        if instruction.opcode == "get-tuple-element" and (
            index := re.search(r"index=(\d+)", instruction.rest)
        ):
            first = self.computations[name].get(loop.operands[0])
            if first is None or first.opcode != "tuple":
                return None
            instruction = self.computations[name][first.operands[int(index[1])]]
        while instruction.opcode in ("copy", "bitcast") and instruction.operands:
            instruction = self.computations[name].get(instruction.operands[0], instruction)
            if instruction.opcode not in ("copy", "bitcast", "constant"):
                return None
        return _constant(instruction)

    def _collectives(self, name: str) -> Iterator[tuple[str, Collective, str | None]]:
        for _, instruction in self._all(name):
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                yield kind, Collective(1, _received(kind, instruction)), channel and channel[1]

    def _bytes(self, instruction: Instruction, name: str) -> float:
        """Bytes that an instruction reads from and writes to HBM."""
        opcode, here = instruction.opcode, self.computations[name]
        if (
            opcode in FREE
            or opcode.endswith(("-done", "-update"))
            or "AllocateBuffer" in instruction.rest
        ):
            return 0
        operands = [here[operand] for operand in instruction.operands if operand in here]
        if opcode.endswith("-start"):
            arrays = [piece for piece in instruction.pieces if piece.sizes]
            return min((piece.bytes for piece in arrays), default=0) * sum(
                piece.in_hbm for piece in arrays
            )
        if opcode == "fusion":
            return self._fusion_bytes(instruction, operands)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * instruction.hbm
        if opcode in ("dynamic-update-slice", "scatter"):
            return 2 * sum(operand.hbm for operand in operands[1 if opcode[0] == "d" else 2 :][:1])
        return instruction.hbm + sum(operand.hbm for operand in operands)

    def _fusion_bytes(self, fusion: Instruction, operands: list[Instruction]) -> float:
        """Of an operand that is only sliced the slices count; of a result that is updated in place the update."""
        inside = self.computations[str(fusion.called("calls"))]
        total = 0.0
        for instruction in inside.values():
            if instruction.opcode == "parameter" and (
                size := operands[int(instruction.inside)].hbm
            ):
                total += min(size, _read(inside, instruction))
        root = next(instruction for instruction in inside.values() if instruction.root)
        parts = [inside[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
        for part, piece in zip(parts, fusion.pieces, strict=False):
            source = _unwrapped(inside, part)
            updated = source.opcode == "dynamic-update-slice"
            total += piece.in_hbm * min(
                piece.bytes, inside[source.operands[1]].pieces[0].bytes if updated else piece.bytes
            )
        return total

    def _flops(self, instruction: Instruction, name: str) -> float:
        if instruction.opcode not in ("dot", "convolution"):
            return 0
        here = self.computations[name]
        left, right = (here[operand].pieces[0].sizes for operand in instruction.operands[:2])
        return product_flops(instruction, left, right)


def product_flops(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """FLOPs of a dot, or of a convolution, which is what TPUs make of one."""
    out = instruction.pieces[0].sizes
    if instruction.opcode == "dot":
        dimensions = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [left[int(d)] for d in dimensions[1].split(",") if d] if dimensions else []
        return 2.0 * math.prod(out) * math.prod(contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    if not labels:
        return 0
    flops = (
        2.0
        * math.prod(out[labels[3].index(letter)] for letter in "bf")
        * right[labels[2].index("i")]
    )
    for axis in range(len(labels[1]) - 2):
        sizes = (
            dims[names.index(str(axis))]
            for dims, names in zip((left, right, out), labels.groups(), strict=True)
        )
        flops *= _hits(*sizes, _window(instruction.rest, axis))
    return flops


def _window(rest: str, axis: int) -> dict[str, int]:
    """A convolution's stride, padding and dilations on a spatial axis."""
    text = re.search(r"window=\{([^}]*)\}", rest)
    named = dict(part.split("=") for part in text[1].split()) if text else {}
    of = lambda name, default: (
        named[name].split("x")[axis].split("_")[0] if name in named else default
    )
    return {
        name: int(of(name, default))
        for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
    }


def _hits(inputs: int, kernel: int, outputs: int, window: dict[str, int]) -> int:
    """How many pairs of an output's and the kernel's place meet an input: not padding, not the holes of a dilation."""
    at = (
        np.arange(outputs)[:, None] * window["stride"]
        + np.arange(kernel) * window["rhs_dilate"]
        - window["pad"]
    )
    dilated = (inputs - 1) * window["lhs_dilate"] + 1
    return int(np.sum((at >= 0) & (at < dilated) & (at % window["lhs_dilate"] == 0)))


def _branches(instruction: Instruction) -> list[str]:
    listed = BRANCHES.search(instruction.rest)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    return [str(instruction.called(kind)) for kind in ("true_computation", "false_computation")]


def _constant(instruction: Instruction) -> int | None:
    number = re.fullmatch(r"-?\d+", instruction.inside)
    return int(number[0]) if instruction.opcode == "constant" and number else None


def _received(kind: str, instruction: Instruction) -> float:
    """Bytes that each device receives at the least: its share is there already."""
    pieces = [piece for piece in instruction.pieces if piece.sizes] or instruction.pieces
    if instruction.opcode.endswith("-start"):
        # (operands, results, ...): as many of the one as of the other.
        count = len(instruction.operands)
        pieces = pieces[count : 2 * count] if len(pieces) >= 2 * count else pieces[-count:]
    size, group = sum(piece.bytes for piece in pieces), _group(instruction.rest)
    if kind == "collective-permute":
        return size
    if group == 1:
        return 0
    share = {"reduce-scatter": group - 1, "all-reduce": 2 * (group - 1) / group}
    return size * share.get(kind, (group - 1) / group)


def _group(rest: str) -> int:
    """How many devices take part in a collective, in any of the notations; 2 where it is left out."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", named[2]))
    return 2


def _read(inside: Computation, parameter: Instruction) -> float:
    """Bytes of a fusion's parameter that are read: all of it, unless it is only sliced, or is what is updated in place."""
    total, todo = 0.0, [parameter.name]
    while todo:
        name = todo.pop()
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.opcode in ("bitcast", "copy", "reshape"):
                todo.append(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += user.pieces[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                total += 0
            else:
                return math.inf
    return total


def _unwrapped(inside: Computation, instruction: Instruction) -> Instruction:
    """What a chain of bitcasts is of."""
    while instruction.opcode in ("bitcast", "copy", "reshape") and instruction.operands:
        instruction = inside[instruction.operands[0]]
    return instruction
