"""Counts what a compiled program does, from its text: HBM traffic, matrix products, collectives.

The compiler's own cost_analysis counts the body of a loop once, however often it runs; here each
instruction counts as often as it is executed. On-chip memory costs nothing; padding to tiles is not
counted.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxgrpo.plan.hlo_collectives import COLLECTIVES, received_bytes
from jaxgrpo.plan.hlo_products import product_flops
from jaxgrpo.plan.hlo_text import Computation, Instruction, parse, root_of

FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
"""Instructions that move no bytes of their own."""

RESHAPES = ("bitcast", "copy", "reshape")
SLICES = ("dynamic-slice", "slice", "gather")

BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass
class Collective:
    """count: how often a device takes part; bytes: that it receives in all of these."""

    count: int | float = 0
    bytes: int | float = 0


@dataclass
class Cost:
    """The work of a device.

    flops: of matrix products
    bytes: read from and written to HBM
    collectives: by their kind
    unknown_loops: loops whose trip counts are not known; they count as 1
    """

    flops: float = 0.0
    bytes: int | float = 0.0
    collectives: dict[str, Collective] = field(default_factory=dict)
    unknown_loops: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        """Adds what another part of the program does each of so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.unknown_loops += other.unknown_loops
        for kind, collective in other.collectives.items():
            total = self.collectives.setdefault(kind, Collective())
            total.count += times * collective.count
            total.bytes += times * collective.bytes

    @property
    def ici(self) -> int | float:
        """Bytes that a device receives from others."""
        return sum(collective.bytes for collective in self.collectives.values())


def program_cost(text: str, count_loops: bool = True) -> Cost:
    """Returns what a program costs a device.

    text: what jax.stages.Compiled.as_text() returns
    count_loops: count loops as often as they run; False counts each body once, as the compiler's
        cost_analysis does
    """
    computations, entry = parse(text)
    return _CostCounter(computations, count_loops).cost(entry)


@dataclass
class _CostCounter:
    """Adds up costs over the computations of one program."""

    computations: dict[str, Computation]
    count_loops: bool

    def cost(self, name: str) -> Cost:
        """Returns the cost of one execution of a computation."""
        total = Cost()
        # 1. Loops and conditionals: the costs of the computations that they run.
        for instruction in self._executed(name):
            if instruction.opcode == "while":
                trips = self._trip_count(instruction, name)
                body = self.cost(str(instruction.called("body")))
                total.add(body, 1 if trips is None else trips)
                total.unknown_loops += int(trips is None)
            elif instruction.opcode == "conditional":
                # The branch of False: programs ask for what is rare, as a greedy draw.
                total.add(self.cost(_branches(instruction)[0]))
        # 2. Collectives. An asynchronous one is in the text several times: where it starts, goes
        # on and is done. All of these have its channel, which counts once.
        seen_channels = set()
        for kind, collective, channel in self._collectives(name):
            if channel is None or channel not in seen_channels:
                total.add(Cost(collectives={kind: collective}))
            seen_channels.add(channel)
        # 3. HBM traffic, where a fusion is one instruction, and products, also inside fusions.
        total.bytes += sum(
            self._bytes(instruction, name) for instruction in self._executed(name)
        )
        total.flops += sum(
            self._flops(instruction, inside) for inside, instruction in self._all(name)
        )
        return total

    def _executed(self, name: str) -> Iterator[Instruction]:
        """Yields a computation's instructions and those of what it calls; a fusion is one."""
        for instruction in self.computations[name].values():
            yield instruction
            if instruction.opcode == "call":
                yield from self._executed(str(instruction.called("to_apply")))

    def _all(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """Yields the same and those inside of fusions, each with its computation's name."""
        attributes = {"call": "to_apply", "fusion": "calls", "async-start": "calls"}
        for instruction in self.computations[name].values():
            yield name, instruction
            attribute = attributes.get(instruction.opcode)
            called = instruction.called(attribute) if attribute else None
            if called:
                yield from self._all(called)

    def _trip_count(self, loop: Instruction, name: str) -> int | None:
        """Returns how often a loop's body runs; None if the text does not say.

        name: the computation that the loop is in
        """
        if not self.count_loops:
            return 1
        known = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        # Otherwise only `counter < bound` can be read, where both ends are constants.
        condition = self.computations[str(loop.called("condition"))]
        root = root_of(condition)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, bound = (condition[operand] for operand in root.operands)
        first = self._loop_number(counter, loop, name)
        end = self._loop_number(bound, loop, name)
        if first is None or end is None:
            return None
        return math.ceil((end - first) / self._loop_step(counter, loop))

    def _loop_step(self, counter: Instruction, loop: Instruction) -> int:
        """Returns by how much a loop counts: collective matmuls are unrolled, and count by 2."""
        body = self.computations[str(loop.called("body"))]
        index = re.search(r"index=(\d+)", counter.attributes)
        root = root_of(body)
        if not index or root.opcode != "tuple":
            return 1
        # The body returns the loop's state as a tuple, the next counter at the counter's index.
        next_counter = body[root.operands[int(index[1])]]
        if next_counter.opcode != "add":
            return 1
        steps = [
            _constant(body[operand])
            for operand in next_counter.operands
            if operand in body
        ]
        return next((step for step in steps if step), 1)

    def _loop_number(
        self, instruction: Instruction, loop: Instruction, name: str
    ) -> int | None:
        """Returns a number of a loop's condition: a constant, or what the loop begins with."""
        outside = self.computations[name]
        index = re.search(r"index=(\d+)", instruction.attributes)
        if instruction.opcode == "get-tuple-element" and index:
            # The counter is a part of the loop's state: look at what it is before the loop.
            initial = outside.get(loop.operands[0])
            if initial is None or initial.opcode != "tuple":
                return None
            instruction = outside[initial.operands[int(index[1])]]
        while instruction.opcode in ("copy", "bitcast") and instruction.operands:
            instruction = outside.get(instruction.operands[0], instruction)
            if instruction.opcode not in ("copy", "bitcast", "constant"):
                return None
        return _constant(instruction)

    def _collectives(self, name: str) -> Iterator[tuple[str, Collective, str | None]]:
        """Yields (kind, one execution of it, its channel) of each collective's instructions."""
        for _, instruction in self._all(name):
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                collective = Collective(1, received_bytes(kind, instruction))
                yield kind, collective, channel[1] if channel else None

    def _bytes(self, instruction: Instruction, name: str) -> int | float:
        """Returns the bytes that an instruction reads from and writes to HBM."""
        opcode = instruction.opcode
        is_later_part = opcode.endswith(("-done", "-update"))  # counted where it starts
        if (
            opcode in FREE
            or is_later_part
            or "AllocateBuffer" in instruction.attributes
        ):
            return 0
        computation = self.computations[name]
        operands = [
            computation[operand]
            for operand in instruction.operands
            if operand in computation
        ]
        if opcode.endswith("-start"):
            # Source and destination are both in the result; each counts if it is in HBM.
            arrays = [array for array in instruction.arrays if array.sizes]
            smallest = min((array.nbytes for array in arrays), default=0)
            return smallest * sum(array.in_hbm for array in arrays)
        if opcode == "fusion":
            return self._fusion_bytes(instruction, operands)
        if opcode in SLICES:
            return 2 * instruction.hbm_bytes
        # In-place updates read and write the updated part: operand 1, or a scatter's operand 2.
        if opcode == "dynamic-update-slice":
            return 2 * sum(operand.hbm_bytes for operand in operands[1:2])
        if opcode == "scatter":
            return 2 * sum(operand.hbm_bytes for operand in operands[2:3])
        return instruction.hbm_bytes + sum(operand.hbm_bytes for operand in operands)

    def _fusion_bytes(
        self, fusion: Instruction, operands: list[Instruction]
    ) -> int | float:
        """Returns a fusion's HBM traffic.

        Of an operand that is only sliced the slices count, and of a result that is updated in
        place the update.
        """
        computation = self.computations[str(fusion.called("calls"))]
        # 1. Reads: a parameter's number says which operand it is.
        total: int | float = 0.0
        for instruction in computation.values():
            if instruction.opcode == "parameter":
                size = operands[int(instruction.inputs)].hbm_bytes
                total += min(size, _read_bytes(computation, instruction)) if size else 0
        # 2. Writes: of each array of the result.
        root = root_of(computation)
        results = [root]
        if root.opcode == "tuple":
            results = [computation[operand] for operand in root.operands]
        for result, array in zip(results, fusion.arrays, strict=False):
            written = array.nbytes
            source = _without_reshapes(computation, result)
            if source.opcode == "dynamic-update-slice":
                update = computation[source.operands[1]]
                written = min(written, update.arrays[0].nbytes)
            total += array.in_hbm * written
        return total

    def _flops(self, instruction: Instruction, name: str) -> int | float:
        """Returns the FLOPs of an instruction; 0 if it is no matrix product."""
        if instruction.opcode not in ("dot", "convolution"):
            return 0
        computation = self.computations[name]
        left, right = (
            computation[operand].arrays[0].sizes for operand in instruction.operands[:2]
        )
        return product_flops(instruction, left, right)


def _branches(conditional: Instruction) -> list[str]:
    """Returns the names of a conditional's computations, that of False or 0 first."""
    listed = BRANCHES.search(conditional.attributes)
    if listed:
        return re.findall(r"%([\w.\-]+)", listed[1])
    kinds = ("false_computation", "true_computation")
    return [str(conditional.called(kind)) for kind in kinds]


def _constant(instruction: Instruction) -> int | None:
    """Returns the value of a whole number in the text; None if it is something else."""
    number = re.fullmatch(r"-?\d+", instruction.inputs)
    if instruction.opcode != "constant" or number is None:
        return None
    return int(number[0])


def _read_bytes(computation: Computation, parameter: Instruction) -> int | float:
    """Returns the bytes of a fusion's parameter that are read; infinity for all of it.

    Less than all are read if it is only sliced, and none if it is updated in place.
    """
    total: int | float = 0.0
    # Follow the parameter through reshapes to those that use its numbers.
    unvisited = [parameter.name]
    while unvisited:
        name = unvisited.pop()
        for user in computation.values():
            if name not in user.operands:
                continue
            is_first = user.operands[0] == name
            if user.opcode in RESHAPES:
                unvisited.append(user.name)
            elif user.opcode in SLICES and is_first:
                total += user.arrays[0].nbytes
            elif user.opcode != "dynamic-update-slice" or not is_first:
                return math.inf
    return total


def _without_reshapes(
    computation: Computation, instruction: Instruction
) -> Instruction:
    """Returns the instruction that a chain of bitcasts, copies and reshapes begins with."""
    while instruction.opcode in RESHAPES and instruction.operands:
        instruction = computation[instruction.operands[0]]
    return instruction
