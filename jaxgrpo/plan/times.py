"""Computes the least time that a chip allows for a run's programs.

It is the longest of arithmetic, memory traffic and traffic between chips, each at the chip's peak.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

from jaxgrpo.config import Config
from jaxgrpo.config.sizes import max_prompts
from jaxgrpo.errors import UserError
from jaxgrpo.plan.chips import Chip
from jaxgrpo.plan.compiled import CompiledProgram
from jaxgrpo.plan.hlo import Cost
from jaxgrpo.plan.inputs import ProgramInputs


@dataclass(frozen=True)
class Assumptions:
    """Numbers that a plan cannot know.

    mean_new: mean number of tokens of a completion
    kept: share of the groups that the filter keeps
    """

    mean_new: int
    kept: float


class ProgramTime(TypedDict):
    """A program's part of a GRPO step.

    calls: how often it runs
    seconds: of all calls
    binds: what takes these seconds: "flops", "hbm" or "ici"
    """

    calls: int
    seconds: float
    binds: str


def assume(config: Config, mean_new: int | None, kept: float | None) -> Assumptions:
    """Returns the assumptions that are asked for.

    By default completions have half of the most tokens, and a filter keeps half of the groups.

    Raises UserError for numbers that cannot be.
    """
    max_new = config.sampling.max_new_tokens
    if mean_new is None:
        mean_new = max(1, max_new // 2)
    if kept is None:
        kept = 1.0 if config.filter.rule == "off" else 0.5
    if not 1 <= mean_new <= max_new:
        raise UserError(
            f"--mean-new is {mean_new}: it must be from 1 to sampling.max_new_tokens={max_new}"
        )
    if not 0 < kept <= 1:
        raise UserError(f"--kept is {kept}: it must be above 0 and at most 1")
    return Assumptions(mean_new, kept)


def roofline(cost: Cost, chip: Chip | None) -> dict[str, float]:
    """Returns the seconds for arithmetic, HBM and links, each alone; {} for an unknown chip."""
    if chip is None:
        return {}
    return {
        "flops": cost.flops / chip.flops,
        "hbm": cost.bytes / chip.bandwidth,
        "ici": cost.ici / chip.ici,
    }


def binding(seconds: dict[str, float]) -> str:
    """Returns what takes the longest of a roofline."""
    return max(seconds, key=seconds.__getitem__)


def rows_per_step(config: Config, assumptions: Assumptions) -> float:
    """Returns the completions that a GRPO step samples."""
    most = float(max_prompts(config))
    if config.filter.select == "variance":
        return most * config.batch.group_size
    # The filter drops groups, and others are sampled in their place, up to a limit.
    prompts = min(most, config.batch.groups / assumptions.kept)
    return prompts * config.batch.group_size


def calls_per_step(
    config: Config, inputs: ProgramInputs, assumptions: Assumptions
) -> dict[str, int]:
    """Returns how often each program runs in a GRPO step.

    Decode is counted by tokens of all slots, of which none is idle where there are rows enough.
    """
    programs = inputs.programs
    groups = config.batch.groups
    rows = rows_per_step(config, assumptions)
    sampled = rows / config.batch.group_size
    # A packed program is counted by micro-batches of bins, of which none is empty.
    updates = config.batch.updates
    score_calls = 1
    update_calls = 1
    if config.batch.pack:
        bin_columns = config.batch.pack * programs.bins_at_once
        length = config.batch.group_size * assumptions.mean_new
        columns = groups * (config.sampling.prompt_width + length)
        score_calls = math.ceil(columns / bin_columns)
        update_calls = math.ceil(columns / updates / bin_columns)
    # A row gets a token in each step, so that there are no fewer steps than tokens of a row.
    full_steps = math.ceil(rows * assumptions.mean_new / programs.slot_counts[0])
    # Each program takes a fixed number of prompts or rows a call; the last call may be part full.
    return {
        "prefill": math.ceil(sampled / programs.prompts_per_prefill),
        "insert": math.ceil(rows / programs.rows_per_insert),
        "decode": max(full_steps, assumptions.mean_new),
        "score": score_calls,
        "update": updates * config.batch.epochs * update_calls,
    }


def step_times(
    config: Config,
    inputs: ProgramInputs,
    compiled: dict[str, CompiledProgram],
    chip: Chip | None,
    assumptions: Assumptions,
) -> dict[str, ProgramTime]:
    """Returns each compiled program's part of a GRPO step; {} for an unknown chip."""
    times: dict[str, ProgramTime] = {}
    # What overlaps perfectly takes as long as the slowest of it.
    for name, calls in calls_per_step(config, inputs, assumptions).items():
        seconds = roofline(compiled[name].cost, chip) if name in compiled else {}
        if seconds:
            binds = binding(seconds)
            times[name] = {
                "calls": calls,
                "seconds": calls * seconds[binds],
                "binds": binds,
            }
    return times
