"""Whether a run fits its chips, and what they allow: its own programs, compiled ahead of time, with no TPU needed.

    python -m tools.plan --config FILE [--config.name=value ...] [--topology v5e:4x4] [--json] [--arrays]

Without --topology: for the devices here. Exit code 0: it fits; 1: it does not, and what was tried to make it fit is shown;
2: bad input. Times are bounds: a chip at its peak, everything overlapped. They say what cannot be beaten, not what will be.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NoReturn

from jaxgrpo import config as settings
from jaxgrpo.build import build_programs
from jaxgrpo.config import Config
from jaxgrpo.config.command_line import run_main, split
from jaxgrpo.errors import UserError
from jaxgrpo.plan import chips, times
from jaxgrpo.plan import memory as plan_memory
from jaxgrpo.plan.compiled import (
    Arguments,
    Compiled,
    Compiler,
    Network,
    arguments,
    network,
    parameters,
)
from jaxgrpo.plan.memory import Parts

ALL = ("update", "decode", "prefill", "insert")
"""What is compiled, that which most likely does not fit first."""


@dataclass(frozen=True)
class Place:
    """Where a run is planned for. memory: bytes of a device that a program can have."""

    name: str
    devices: list[Any]
    chip: chips.Chip | None
    memory: float


@dataclass(frozen=True)
class Plan:
    """What a run needs on each device of a place."""

    config: Config
    network: Network
    place: Place
    given: Arguments
    compiled: dict[str, Compiled]
    phases: dict[str, Parts]

    @property
    def peak(self) -> float:
        return plan_memory.peak(self.phases)[1]

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.memory and not any(
            program.failed for program in self.compiled.values()
        )


def make_place(config: Config, topology: str | None, memory: float | None) -> Place:
    """The devices of a topology, or those here that the run would take. memory: GiB, in place of what a device has."""
    if topology:
        chip, devices = chips.devices(topology)
        return Place(topology, devices, chip, memory * chips.GIB if memory else chip.hbm)
    net = network(config.model)
    devices = list(build_programs(config, net.config, net.ends).rows.mesh.devices.flat)
    here, known = (devices[0].memory_stats() or {}).get("bytes_limit"), chips.of_device(devices[0])
    limit = memory * chips.GIB if memory else here or _machine_memory() / len(devices)
    return Place(f"the {devices[0].device_kind} here", devices, known, limit)


def _machine_memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_plan(
    config: Config, place: Place, compiler: Compiler, programs: tuple[str, ...] = ALL
) -> Plan:
    """Compiles the programs of a run and adds up what they need; nothing is compiled where the arrays alone are too much.
    UserError as a run's own."""
    net = network(config.model)
    given = arguments(config, build_programs(config, net.config, net.ends, place.devices))
    arrays = plan_memory.phases(config, given, {})
    if plan_memory.peak(arrays)[1] > place.memory:
        return Plan(config, net, place, given, {}, arrays)
    compiled = {name: compiler(name, *given.calls[name]) for name in programs}
    return Plan(config, net, place, given, compiled, plan_memory.phases(config, given, compiled))


def remedies(config: Config, devices: int) -> list[list[str]]:
    """Settings that may make a run fit, one after another, and all together; in the command line's notation."""
    rows = config.batch.groups * config.batch.group_size
    slots = config.sampling.slots or 2 * rows
    least = next(
        n for n in range(1, rows + 1) if rows % n == 0 and n % math.gcd(devices, rows) == 0
    )
    wanted: dict[str, Any] = {}
    if (config.batch.micro_batch or rows) > least:
        wanted["batch.micro_batch"] = least
    if config.compute.remat != "full":
        wanted["compute.remat"] = "full"
    if slots % (4 * devices) == 0:
        wanted["sampling.slots"] = slots // 4
    if devices > 1 and config.mesh.tensor == 1 and config.mesh.data != 1 and rows % devices == 0:
        wanted["mesh.data"] = 1
    for name in ("dtype", "optimizer.state_dtype", "optimizer.params_dtype"):
        if attrgetter(name)(config) != "bfloat16":
            wanted[name] = "bfloat16"
    flag = lambda name: (
        [f"--config.{name}={wanted[name]}"]
        + (["--config.mesh.fsdp=-1"] if name == "mesh.data" else [])
    )
    singles = [flag(name) for name in wanted]
    return singles + ([[one for flags in singles for one in flags]] if len(singles) > 1 else [])


def tried(
    plan: Plan, compiler: Compiler, programs: tuple[str, ...] = ALL
) -> list[tuple[str, Plan | str]]:
    """What each remedy leads to: a plan, or why there is none."""
    found: list[tuple[str, Plan | str]] = []
    for flags in remedies(plan.config, len(plan.place.devices)):
        try:
            changed = settings.settings.override(plan.config, flags)
            settings.validate(changed)
            found.append((" ".join(flags), make_plan(changed, plan.place, compiler, programs)))
        except UserError as error:
            found.append((" ".join(flags), str(error)))
    return found


def gib(number: float) -> str:
    return f"{number / chips.GIB:.2f} GiB"


def verdict(plan: Plan) -> str:
    """A line: whether it fits, by how much, and when it needs the most."""
    phase, peak = plan_memory.peak(plan.phases)
    failed = [program for program in plan.compiled.values() if program.failed]
    at_least = "at least " if failed or not plan.compiled else ""
    fits = "fits" if plan.fits else "DOES NOT FIT"
    if not plan.compiled:
        fits = (
            "the arrays alone fit; nothing was compiled"
            if plan.fits
            else "DOES NOT FIT by its arrays alone"
        )
    share = f"{peak / plan.place.memory:.0%} of {gib(plan.place.memory)}"
    refused = "".join(f"; the compiler on {program.name}: {program.failed}" for program in failed)
    return f"{fits}: peak {at_least}{gib(peak)} a device, {share}, in {phase}{refused}"


def heading(plan: Plan) -> list[str]:
    mesh = plan.given.steps.rows.mesh.shape
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    return [
        f"{plan.place.name}: {len(plan.place.devices)} devices, mesh {sizes}",
        f"network of {parameters(plan.network.config):,} parameters, from {plan.network.source}",
    ]


def to_json(plan: Plan, attempts: list[tuple[str, Plan | str]], assumed: times.Assumed) -> str:
    """All figures: bytes, seconds, FLOPs; a device's."""
    programs = {
        name: {
            **dataclasses.asdict(program),
            "roofline": times.bounds(program.cost, plan.place.chip),
        }
        for name, program in plan.compiled.items()
    }
    outcome = lambda found: (
        {"error": found} if isinstance(found, str) else {"peak": found.peak, "fits": found.fits}
    )
    return json.dumps(
        {
            "place": plan.place.name,
            "devices": len(plan.place.devices),
            "mesh": dict(plan.given.steps.rows.mesh.shape),
            "memory": plan.place.memory,
            "parameters": parameters(plan.network.config),
            "network": plan.network.source,
            "fits": plan.fits,
            "peak": plan.peak,
            "phases": plan.phases,
            "programs": programs,
            "step": times.step(plan.config, plan.given, plan.compiled, plan.place.chip, assumed),
            "assumed": dataclasses.asdict(assumed),
            "tried": [{"flags": flags, **outcome(found)} for flags, found in attempts],
        },
        indent=2,
    )


def show(plan: Plan, assumed: times.Assumed) -> str:
    """The whole plan for people."""
    lines = [*heading(plan), "", *plan_memory.table(plan.phases), ""]
    if plan.compiled:
        lines += [*times.table(plan.compiled, plan.place.chip), ""]
        lines += [
            *times.step_lines(plan.config, plan.given, plan.compiled, plan.place.chip, assumed),
            "",
        ]
    return "\n".join([*lines, verdict(plan)])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(argv: list[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """The tool's own flags, the config's file, and its overrides. UserError."""
    parser = _Parser(
        prog="python -m tools.plan", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--topology",
        help="chips that need not be here: v5e:4x4, v5p:2x2x1, ...; by default those here",
    )
    parser.add_argument(
        "--memory", type=float, help="GiB of a device, in place of what its kind has"
    )
    parser.add_argument(
        "--mean-new",
        type=int,
        help="tokens of a completion that are expected; by default half of the most",
    )
    parser.add_argument(
        "--kept",
        type=float,
        help="share of the groups that the filter keeps; by default 0.5, with rule off 1",
    )
    parser.add_argument(
        "--arrays", action="store_true", help="compile nothing: the arrays alone, in seconds"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    own, rest = parser.parse_known_args(argv)
    path, overrides, _ = split(rest)
    if path is None:
        raise UserError(
            "no config file given; run python -m tools.plan --config FILE, for example configs/quickstart.py"
        )
    if own.memory is not None and own.memory <= 0:
        raise UserError(f"--memory is {own.memory}: it must be above 0")
    return own, path, overrides


def main(argv: list[str]) -> None:
    """Plans as the command line says; exits with 1 if the run does not fit."""
    own, path, overrides = parse(argv)
    config = settings.load(path, overrides)
    assumed = times.assume(config, own.mean_new, own.kept)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
    compiler = Compiler(say)
    programs = () if own.arrays else ALL
    plan = make_plan(config, make_place(config, own.topology, own.memory), compiler, programs)
    if not own.json:
        print(show(plan, assumed), flush=True)
    attempts = [] if plan.fits else tried(plan, compiler, programs)
    if own.json:
        print(to_json(plan, attempts, assumed))
    elif attempts:
        print("\ntried, each alone and then together:")
        for flags, found in attempts:
            print(f"  {flags}: {found if isinstance(found, str) else verdict(found)}")
    if not plan.fits:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
