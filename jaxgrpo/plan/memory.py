"""Computes what is in a device's memory at the same time in each phase of a run, by part."""

from jaxgrpo.config import Config
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.plan.compiled import CompiledProgram
from jaxgrpo.plan.inputs import ProgramInputs, result_shapes

PartBytes = dict[str, int | float]
"""Bytes by part; a phase's parts sum to what it needs."""

PARTS = (
    "as loaded",
    "parameters",
    "optimizer",
    "reference",
    "published copy",
    "slots (KV cache)",
    "slots, made anew",
    "prompts read",
    "batch",
    "padding to tiles",
    "results",
    "temporaries",
    "programs",
)
"""Every part, in the order of the table."""


def phase_memory(
    config: Config, inputs: ProgramInputs, compiled: dict[str, CompiledProgram]
) -> dict[str, PartBytes]:
    """Returns each phase's parts, with temporaries and results of the programs in `compiled`.

    A run holds its policy's state and the reference all the time. From a step's first prompt to its
    last completion it also holds the copy that is sampled from, the slots and the prompts read
    last. Where slots are made anew (a longer ring cache, fewer rows), the old ones are there until
    the new ones are. With sampling.keep_in_flight all of these stay through the update. At the
    start, the parameters as they are loaded are there beside the state and the reference that are
    made of them.
    """
    state = inputs.programs.state_like
    # 1. What is there in all phases.
    always = {
        "parameters": device_bytes(state.params),
        "optimizer": device_bytes((state.step, state.opt_state)),
        "reference": device_bytes(inputs.reference),
        "programs": sum(program.code for program in compiled.values()),
    }
    # 2. Padding, by how much programs' arguments are larger than their shapes.
    update_padding = _padding_bytes(compiled.get("update"))
    slot_padding = max(
        _padding_bytes(compiled.get("decode")), _padding_bytes(compiled.get("insert"))
    )
    # 3. What is there in some phases.
    sampling: PartBytes = {
        "published copy": device_bytes(inputs.published),
        "slots (KV cache)": device_bytes(inputs.slots),
        "prompts read": device_bytes(inputs.prefilled),
        "padding to tiles": update_padding + slot_padding,
    }
    loaded = device_bytes(inputs.programs.params_like)
    start: PartBytes = {"as loaded": loaded, "padding to tiles": update_padding}
    # Old and new slots are both padded.
    new_slots = sampling | _slot_change_bytes(inputs)
    new_slots["padding to tiles"] = update_padding + 2 * slot_padding
    update: PartBytes = {"padding to tiles": update_padding}
    if config.sampling.keep_in_flight:
        update |= sampling
    update["batch"] = device_bytes(inputs.batch)
    # 4. Together, with what each phase's program needs while it runs.
    phases = {
        "start": start,
        "prefill": sampling,
        "insert": sampling,
        "decode": sampling,
        "new slots": new_slots,
    }
    if (
        "score" in inputs.calls
    ):  # several updates with a batch, which is scored once before them
        phases["score"] = update
    phases["update"] = update
    return {
        phase: always | arrays | _working_bytes(compiled.get(phase))
        for phase, arrays in phases.items()
    }


def _padding_bytes(program: CompiledProgram | None) -> int | float:
    """Returns what a program's arguments take beyond their shapes: a TPU lays them out in tiles."""
    if program is None:
        return 0.0
    return max(0.0, program.arguments - program.shapes)


def _working_bytes(program: CompiledProgram | None) -> PartBytes:
    """Returns what a program needs beside its arguments while it runs."""
    if program is None:
        return {}
    return {"results": program.unaliased, "temporaries": program.temporaries}


def _slot_change_bytes(inputs: ProgramInputs) -> PartBytes:
    """Returns the slots before and after that change of theirs which needs the most memory."""
    programs = inputs.programs
    slots = device_bytes(inputs.slots)
    changes = [(slots, 0)]
    if len(programs.ring_lengths) > 1:  # the ring cache grows to its full length
        shorter = result_shapes(
            programs.empty_state, programs.slot_counts[0], programs.ring_lengths[-2]
        )
        changes.append((device_bytes(shorter), slots))
    if len(programs.slot_counts) > 1:  # the rows are compacted to fewer slots
        fewer = result_shapes(
            programs.empty_state, programs.slot_counts[1], programs.ring_lengths[-1]
        )
        changes.append((slots, device_bytes(fewer)))
    before, after = max(changes, key=sum)
    return {"slots (KV cache)": before, "slots, made anew": after}


def peak_phase(phases: dict[str, PartBytes]) -> tuple[str, int | float]:
    """Returns the phase that needs the most memory, and its bytes."""
    totals = {phase: sum(parts.values()) for phase, parts in phases.items()}
    phase = max(totals, key=totals.__getitem__)
    return phase, totals[phase]
