"""Plans a run: compiles its programs for a target, adds up what they need, tries remedies."""

import itertools
import math
import os
from dataclasses import dataclass
from operator import attrgetter

import jax

from jaxgrpo import config as run_config
from jaxgrpo.build import build_programs
from jaxgrpo.config import Config, overrides
from jaxgrpo.config.sizes import num_slots, rows_per_update
from jaxgrpo.errors import UserError
from jaxgrpo.plan import chips
from jaxgrpo.plan.compiled import CompiledProgram, Compiler
from jaxgrpo.plan.inputs import ProgramInputs, program_inputs
from jaxgrpo.plan.memory import PartBytes, peak_phase, phase_memory
from jaxgrpo.plan.networks import Network, find_network

ALL_PROGRAMS = ("update", "score", "decode", "prefill", "insert")
"""The programs that are compiled, those of them that a run has; that which most likely does not fit
comes first."""


@dataclass(frozen=True)
class Target:
    """The devices that a run is planned for.

    name: in words
    chip: what kind of chip each of the devices is; None if it is not known
    memory: bytes of a device that a program can have
    is_here: whether the devices are here, and can run what is compiled
    """

    name: str
    devices: list[jax.Device]
    chip: chips.Chip | None
    memory: int | float
    is_here: bool


@dataclass(frozen=True)
class Plan:
    """A run's needs on each device of a target.

    compiled: the compiled programs by name; empty if the arrays alone are too much
    phases: bytes by phase and part
    """

    config: Config
    network: Network
    target: Target
    inputs: ProgramInputs
    compiled: dict[str, CompiledProgram]
    phases: dict[str, PartBytes]

    @property
    def peak(self) -> int | float:
        """Bytes of a device in the phase that needs the most."""
        return peak_phase(self.phases)[1]

    @property
    def fits(self) -> bool:
        """True if the compiler refused no program and the peak is within a device's memory."""
        if any(program.failed for program in self.compiled.values()):
            return False
        return self.peak <= self.target.memory


@dataclass(frozen=True)
class Attempt:
    """A remedy that was tried.

    flags: in the command line's notation
    outcome: the plan of the changed run, or why there is none
    """

    flags: str
    outcome: Plan | str


def make_target(
    config: Config, topology: str | None, memory_gib: float | None
) -> Target:
    """Returns a topology's devices, or those here that the run would take.

    topology: such as v5e:4x4; None: the devices here
    memory_gib: GiB of a device, in place of what its kind has
    """
    limit = memory_gib * chips.GIB if memory_gib else None
    if topology:
        chip, devices = chips.topology_devices(topology)
        return Target(topology, devices, chip, limit or chip.hbm, is_here=False)
    # The run's own mesh says which of the devices here it takes.
    network = find_network(config.model)
    programs = build_programs(config, network.config, network.eos_ids)
    local = list(programs.row_sharding.mesh.devices.flat)
    if limit is None:
        stats = local[0].memory_stats() or {}
        # Devices of a CPU say nothing, and share the machine's memory.
        limit = stats.get("bytes_limit") or _machine_bytes() / len(local)
    name = f"the {local[0].device_kind} here"
    return Target(name, local, chips.chip_of_device(local[0]), limit, is_here=True)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def make_plan(
    config: Config,
    target: Target,
    compiler: Compiler,
    names: tuple[str, ...] = ALL_PROGRAMS,
) -> Plan:
    """Returns the plan of a run: compiles its programs and adds up what they need.

    Nothing is compiled where the arrays alone are too much.

    names: the programs to compile
    Raises UserError as the run itself would.
    """
    network = find_network(config.model)
    reference = find_network(config.reference).config if config.reference else None
    programs = build_programs(
        config, network.config, network.eos_ids, target.devices, reference
    )
    inputs = program_inputs(config, programs)
    compiled: dict[str, CompiledProgram] = {}
    # First the arrays alone: that takes seconds, compiling takes minutes.
    phases = phase_memory(config, inputs, compiled)
    if peak_phase(phases)[1] <= target.memory:
        compiled = {
            name: compiler(name, inputs.calls[name])
            for name in names
            if name in inputs.calls
        }
        phases = phase_memory(config, inputs, compiled)
    return Plan(config, network, target, inputs, compiled, phases)


def remedies(config: Config, devices: int) -> list[list[str]]:
    """Returns flags that may make a run fit: each remedy's alone, then all together."""
    rows = rows_per_update(config)
    settings: dict[str, object] = {}
    # Fewer rows at once, and less kept of each layer for the backward pass: smaller temporaries.
    min_micro_batch = _min_micro_batch(rows, devices)
    all_at_once = devices if config.batch.pack else rows
    if (config.batch.micro_batch or all_at_once) > min_micro_batch:
        settings["batch.micro_batch"] = min_micro_batch
    if config.compute.remat != "full":
        settings["compute.remat"] = "full"
    # Fewer slots: a smaller KV cache. A quarter must still be shared by all devices.
    slots = num_slots(config)
    if slots % (4 * devices) == 0:
        settings["sampling.slots"] = slots // 4
    # Matrices divided over all devices instead of copied.
    is_divisible = config.mesh.tensor == 1 and rows % devices == 0
    if devices > 1 and config.mesh.data != 1 and is_divisible:
        settings["mesh.data"] = 1
    # Numbers of half the size.
    for name in ("dtype", "optimizer.state_dtype", "optimizer.params_dtype"):
        if attrgetter(name)(config) != "bfloat16":
            settings[name] = "bfloat16"

    singles = []
    for name, value in settings.items():
        flags = [f"--config.{name}={value}"]
        if name == "mesh.data":  # fsdp takes the devices that data leaves
            flags.append("--config.mesh.fsdp=-1")
        singles.append(flags)
    if len(singles) <= 1:
        return singles
    return [*singles, list(itertools.chain.from_iterable(singles))]


def _min_micro_batch(rows: int, devices: int) -> int:
    """Returns the fewest rows that divide the batch and that the devices can share."""
    shared = math.gcd(devices, rows)
    return next(
        number
        for number in range(1, rows + 1)
        if rows % number == 0 and number % shared == 0
    )


def try_remedies(
    plan: Plan, compiler: Compiler, names: tuple[str, ...] = ALL_PROGRAMS
) -> list[Attempt]:
    """Returns what each remedy of a run that does not fit leads to."""
    attempts = []
    for flags in remedies(plan.config, len(plan.target.devices)):
        outcome: Plan | str
        try:
            changed = overrides.override(plan.config, flags)
            run_config.validate(changed)
            outcome = make_plan(changed, plan.target, compiler, names)
        except UserError as error:
            outcome = str(error)
        attempts.append(Attempt(" ".join(flags), outcome))
    return attempts
