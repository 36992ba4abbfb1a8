"""Writes a plan for people and as JSON."""

import dataclasses
import json

from jaxgrpo.config.sizes import sampler_precision
from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.plan import times
from jaxgrpo.plan.chips import GIB, Chip
from jaxgrpo.plan.compiled import CompiledProgram
from jaxgrpo.plan.forecast import Forecast
from jaxgrpo.plan.hlo import Cost
from jaxgrpo.plan.memory import PARTS, PartBytes, peak_phase
from jaxgrpo.plan.networks import count_parameters
from jaxgrpo.plan.planner import Attempt, Plan
from jaxgrpo.plan.times import Assumptions


def plan_text(
    plan: Plan, assumptions: Assumptions, forecast: Forecast | None = None
) -> str:
    """Returns the plan for people: memory, costs, times, and whether the run fits."""
    lines = [*_heading(plan), "", *memory_table(plan.phases), ""]
    if plan.compiled:
        lines += [*_program_table(plan.compiled, plan.target.chip), ""]
        lines += [*_step_lines(plan, assumptions, forecast), ""]
    return "\n".join([*lines, verdict(plan)])


def verdict(plan: Plan) -> str:
    """Returns a line: whether it fits, by how much, and when it needs the most."""
    phase, peak = peak_phase(plan.phases)
    failed = [program for program in plan.compiled.values() if program.failed]
    if plan.compiled:
        fits = "fits" if plan.fits else "DOES NOT FIT"
    elif plan.fits:
        fits = "the arrays alone fit; nothing was compiled"
    else:
        fits = "DOES NOT FIT by its arrays alone"
    # Of a program that is not compiled, temporaries are missing.
    at_least = "at least " if failed or not plan.compiled else ""
    share = f"{peak / plan.target.memory:.0%} of {_gib(plan.target.memory)}"
    refused = "".join(
        f"; the compiler on {program.name}: {program.failed}" for program in failed
    )
    return f"{fits}: peak {at_least}{_gib(peak)} a device, {share}, in {phase}{refused}"


def attempts_text(attempts: list[Attempt]) -> str:
    """Returns a line for each remedy that was tried."""
    lines = ["tried, each alone and then together:"]
    for attempt in attempts:
        outcome = attempt.outcome
        words = outcome if isinstance(outcome, str) else verdict(outcome)
        lines.append(f"  {attempt.flags}: {words}")
    return "\n".join(lines)


def plan_json(
    plan: Plan,
    attempts: list[Attempt],
    assumptions: Assumptions,
    forecast: Forecast | None = None,
) -> str:
    """Returns all numbers of a plan as JSON: bytes, seconds, FLOPs, each a device's."""
    target = plan.target
    programs = {
        name: {
            **dataclasses.asdict(program),
            "roofline": times.roofline(program.cost, target.chip),
        }
        for name, program in plan.compiled.items()
    }
    step = times.step_times(
        plan.config, plan.inputs, plan.compiled, target.chip, assumptions
    )
    # The keys are an interface: scripts read them.
    report = {
        "place": target.name,
        "devices": len(target.devices),
        "mesh": dict(plan.inputs.programs.row_sharding.mesh.shape),
        "memory": target.memory,
        "parameters": count_parameters(plan.network.config),
        "network": plan.network.source,
        "fits": plan.fits,
        "peak": plan.peak,
        "phases": plan.phases,
        "programs": programs,
        "step": step,
        "forecast": dataclasses.asdict(forecast) if forecast else None,
        "assumed": dataclasses.asdict(assumptions),
        "tried": [_attempt_json(attempt) for attempt in attempts],
    }
    return json.dumps(report, indent=2)


def _attempt_json(attempt: Attempt) -> dict[str, object]:
    outcome = attempt.outcome
    if isinstance(outcome, str):
        return {"flags": attempt.flags, "error": outcome}
    return {"flags": attempt.flags, "peak": outcome.peak, "fits": outcome.fits}


def _heading(plan: Plan) -> list[str]:
    """Returns lines about the target and the network."""
    mesh = plan.inputs.programs.row_sharding.mesh.shape
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    parameters = count_parameters(plan.network.config)
    published = _gib(device_bytes(plan.inputs.published))
    return [
        f"{plan.target.name}: {len(plan.target.devices)} devices, mesh {sizes}",
        f"network of {parameters:,} parameters, from {plan.network.source}",
        f"sampled from {sampler_precision(plan.config)} matrices, {published} a device",
    ]


def memory_table(phases: dict[str, PartBytes]) -> list[str]:
    """Returns a line a part, a column a phase, in GiB; the last line is the sum."""
    lines = [
        f"{'memory a device, GiB':24}" + "".join(f"{phase:>11}" for phase in phases)
    ]
    for part in PARTS:
        # A part that no phase has is left out.
        numbers = [parts.get(part, 0) for parts in phases.values()]
        if any(numbers):
            lines.append(_memory_line(part, numbers))
    totals = [sum(parts.values()) for parts in phases.values()]
    return [*lines, _memory_line("together", totals)]


def _memory_line(label: str, numbers: list[int | float]) -> str:
    # Nothing is shown for 0, so that what is there stands out.
    cells = [f"{number / GIB:>11.3f}" if number else f"{'':>11}" for number in numbers]
    return f"{label:24}" + "".join(cells)


def _program_table(
    compiled: dict[str, CompiledProgram], chip: Chip | None
) -> list[str]:
    """Returns a line a program, about one call of it on a device; then its collectives."""
    columns = ("FLOPs", "bytes", "ICI bytes", "at once by", "s")
    cells = "".join(f"{column:>11}" for column in columns)
    lines = [f"{'a call, a device':24}{cells}   the compiler's own FLOPs, bytes"]
    for name, program in compiled.items():
        if program.failed:
            lines.append(f"{name:24} not compiled: {program.failed}")
        else:
            lines.append(_program_line(name, program, chip))
    lines.append(
        "FLOPs are of matrix products; loops count as often as they run, in the compiler's own "
        "figures once"
    )
    # A kind of collective a line, below the table: there may be none or several a program.
    for name, program in compiled.items():
        for kind, collective in sorted(program.cost.collectives.items()):
            lines.append(
                f"{name:12}{kind:20}{collective.count:>10,.0f} calls "
                f"{collective.bytes:>11.3g} bytes received"
            )
    return lines


def _program_line(name: str, program: CompiledProgram, chip: Chip | None) -> str:
    cost = program.cost
    seconds = times.roofline(cost, chip)
    binds = times.binding(seconds) if seconds else "-"
    least = f"{seconds[binds]:>11.4f}" if seconds else f"{'-':>11}"
    numbers = "".join(
        f"{number:>11.3g}" for number in (cost.flops, cost.bytes, cost.ici)
    )
    own = f"{program.compiler_flops:.3g}, {program.compiler_bytes:.3g}"
    return f"{_label(name, cost):24}{numbers}{binds:>11}{least}   {own}"


def _label(name: str, cost: Cost) -> str:
    """Returns a program's name, and what a call is of it.

    Decode's loop runs as long as rows are live; its body once is a token of each slot. An update on
    bins runs as long as there are bins.
    """
    if not cost.unknown_loops:
        return name
    return f"{name} (a token a slot)" if name == "decode" else f"{name} (a micro-batch)"


def _step_lines(
    plan: Plan, assumptions: Assumptions, forecast: Forecast | None
) -> list[str]:
    """Returns the times of a GRPO step in words: the bound, the forecast, what is assumed."""
    lines = []
    step = times.step_times(
        plan.config, plan.inputs, plan.compiled, plan.target.chip, assumptions
    )
    if step:
        total = sum(program["seconds"] for program in step.values())
        programs = ", ".join(
            f"{program['calls']:,} x {name} {program['seconds']:.2f} s ({program['binds']})"
            for name, program in step.items()
        )
        lines.append(
            f"a GRPO step, bound: {total:.2f} s = {programs}, at the chip's peaks, links all busy"
        )
    else:
        lines.append("no bound: peak figures of these devices are not known")
    if forecast:
        programs = ", ".join(
            f"{name} {_seconds(seconds)}" for name, seconds in forecast.seconds.items()
        )
        lines += [
            f"a GRPO step, forecast: {_seconds(forecast.total)} = {programs}",
            f"the forecast: {forecast.basis}; the most is for slots that wait for rows of "
            f"{plan.config.sampling.max_new_tokens} tokens",
        ]
    return [
        *lines,
        f"assumed: completions of {assumptions.mean_new} tokens on average, "
        f"{assumptions.kept:.0%} of the groups kept, rings of full length; rewards, host and "
        "checkpoints cost nothing",
    ]


def _seconds(fewest_and_most: tuple[float, float]) -> str:
    fewest, most = (f"{seconds:.2f}" for seconds in fewest_and_most)
    return f"{fewest} s" if fewest == most else f"{fewest} to {most} s"


def _gib(number: int | float) -> str:
    return f"{number / GIB:.2f} GiB"
