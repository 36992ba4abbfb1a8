"""The least time that a chip allows for what programs do: the longest of arithmetic, memory and links at their peaks."""

import math
from dataclasses import dataclass
from typing import Any

from jaxgrpo.config import Config
from jaxgrpo.errors import UserError
from jaxgrpo.plan.chips import Chip
from jaxgrpo.plan.compiled import Arguments, Compiled
from jaxgrpo.plan.hlo import Cost


@dataclass(frozen=True)
class Assumed:
    """What a plan cannot know. mean_new: tokens of a completion; kept: share of the groups that the filter keeps"""

    mean_new: int
    kept: float


def assume(config: Config, mean_new: int | None, kept: float | None) -> Assumed:
    """What is asked for, or half of the most tokens, and half of the groups where there is a filter. UserError."""
    most = config.sampling.max_new_tokens
    mean_new = max(1, most // 2) if mean_new is None else mean_new
    kept = (1.0 if config.filter.rule == "off" else 0.5) if kept is None else kept
    if not 1 <= mean_new <= most:
        raise UserError(
            f"--mean-new is {mean_new}: it must be from 1 to sampling.max_new_tokens={most}"
        )
    if not 0 < kept <= 1:
        raise UserError(f"--kept is {kept}: it must be above 0 and at most 1")
    return Assumed(mean_new, kept)


def bounds(cost: Cost, chip: Chip | None) -> dict[str, float]:
    """Seconds for the arithmetic, for HBM and for the links, each alone; nothing for a chip that is not known."""
    if chip is None:
        return {}
    return {
        "flops": cost.flops / chip.flops,
        "hbm": cost.bytes / chip.bandwidth,
        "ici": cost.ici / chip.ici,
    }


def calls(config: Config, given: Arguments, assumed: Assumed) -> dict[str, float]:
    """How often each program runs in a step. Decode is counted by tokens of all slots, of which none is idle."""
    steps, size = given.steps, config.batch.group_size
    most = config.batch.groups * (1.0 if config.filter.rule == "off" else config.filter.max_prompts)
    asked = min(most, config.batch.groups / assumed.kept)
    rows = asked * size
    return {
        "prefill": math.ceil(asked / steps.prompts),
        "insert": math.ceil(rows / steps.starts),
        "decode": math.ceil(rows * assumed.mean_new / steps.sizes[0]),
        "update": 1,
    }


def step(
    config: Config,
    given: Arguments,
    compiled: dict[str, Compiled],
    chip: Chip | None,
    assumed: Assumed,
) -> dict[str, dict[str, Any]]:
    """Of a whole GRPO step, by program: calls, seconds of them all, and what binds them. Empty for an unknown chip."""
    found = {}
    for name, times in calls(config, given, assumed).items():
        if name in compiled and (each := bounds(compiled[name].cost, chip)):
            binds = max(each, key=lambda kind: each[kind])
            found[name] = {"calls": times, "seconds": times * each[binds], "binds": binds}
    return found


def step_lines(
    config: Config,
    given: Arguments,
    compiled: dict[str, Compiled],
    chip: Chip | None,
    assumed: Assumed,
) -> list[str]:
    """The same in words, with what is assumed."""
    found = step(config, given, compiled, chip, assumed)
    if not found:
        return ["no times: peak figures of these devices are not known"]
    total = sum(part["seconds"] for part in found.values())
    parts = ", ".join(
        f"{part['calls']:,} x {name} {part['seconds']:.2f} s ({part['binds']})"
        for name, part in found.items()
    )
    return [
        f"a GRPO step at the roofline: {total:.2f} s = {parts}",
        f"assumed: completions of {assumed.mean_new} tokens, {assumed.kept:.0%} of the groups kept, every slot busy, rings of "
        "full length; peaks of the chip, links all busy; rewards, host and checkpoints cost nothing",
    ]


def table(compiled: dict[str, Compiled], chip: Chip | None) -> list[str]:
    """A line a program: what one call of it does on a device."""
    columns = ("FLOPs", "bytes", "ICI bytes", "at once by", "s")
    lines = [
        f"{'a call, a device':24}"
        + "".join(f"{column:>11}" for column in columns)
        + "   the compiler's own FLOPs, bytes"
    ]
    for name, program in compiled.items():
        if program.failed:
            lines.append(f"{name:24} not compiled: {program.failed}")
            continue
        cost, each = program.cost, bounds(program.cost, chip)
        binds = max(each, key=lambda kind: each[kind]) if each else "-"
        least = f"{each[binds]:>11.4f}" if each else f"{'-':>11}"
        numbers = "".join(f"{number:>11.3g}" for number in (cost.flops, cost.bytes, cost.ici))
        own = f"{program.compiler_flops:.3g}, {program.compiler_bytes:.3g}"
        lines.append(f"{_named(name, cost):24}{numbers}{binds:>11}{least}   {own}")
    lines.append(
        "FLOPs are of matrix products; loops count as often as they run, in the compiler's own figures once"
    )
    for name, program in compiled.items():
        for kind, found in sorted(program.cost.collectives.items()):
            lines.append(
                f"{name:12}{kind:20}{found.count:>10,.0f} calls {found.bytes:>11.3g} bytes received"
            )
    return lines


def _named(name: str, cost: Cost) -> str:
    """Decode's loop runs as long as rows are live: its body once is a token of each slot."""
    return f"{name} (a token a slot)" if cost.unknown_loops else name
