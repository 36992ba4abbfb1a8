"""Bytes that a device receives in the collectives of a compiled program's text."""

import math
import re

from jaxgrpo.plan.hlo_text import Instruction

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


def received_bytes(kind: str, instruction: Instruction) -> int | float:
    """Returns the least that each device receives: its own share is there already.

    kind: one of COLLECTIVES, of which the instruction is, or which it starts
    """
    arrays = [
        array for array in instruction.arrays if array.sizes
    ] or instruction.arrays
    if instruction.opcode.endswith("-start"):
        # The result is (operands, results, ...), with as many results as operands.
        count = len(instruction.operands)
        arrays = (
            arrays[count : 2 * count] if len(arrays) >= 2 * count else arrays[-count:]
        )
    size = sum(array.nbytes for array in arrays)
    group = _group_size(instruction.attributes)
    if kind == "collective-permute":
        return size
    if group == 1:  # a device alone: nothing moves
        return 0
    # The whole is in the result; a device's own part of it, 1 / group, does not move.
    if kind == "reduce-scatter":  # the result is one share; each other device sends one
        return size * (group - 1)
    if kind == "all-reduce":  # a reduce-scatter, then an all-gather
        return size * (2 * (group - 1) / group)
    return size * ((group - 1) / group)


def _group_size(attributes: str) -> int:
    """Returns how many devices take part in a collective; 2 where the text does not say.

    There are three notations of the groups: lists of devices, [groups, devices of each], and the
    names of a mesh's axes.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        mesh, axes = named.groups()
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        return math.prod(
            int(sizes.get(axis, 1)) for axis in re.findall(r"'(\w+)'", axes)
        )
    return 2
