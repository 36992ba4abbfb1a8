"""A run's own programs, compiled ahead of time for devices that need not be here."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
from jax.extend.core import ClosedJaxpr

from jaxgrpo.distributed.mesh import device_bytes
from jaxgrpo.plan import hlo
from jaxgrpo.plan.inputs import ProgramCall, count_devices, leaves_on_device
from jaxgrpo.plan.jaxpr_flops import written_flops


@dataclass(frozen=True)
class CompiledProgram:
    """A program's needs and costs on one device; sizes are in bytes.

    If the compiler refuses it, `failed` says so, `temporaries` is what it would need, and nothing
    else is known but what its arguments' shapes and its jaxpr tell.
    """

    name: str
    shapes: int
    """Arguments that live on the device, by their shapes."""
    arguments: int
    """All arguments, as the compiler lays them out: in tiles, on a TPU."""
    temporaries: int | float
    unaliased: int
    """Results that are not written over arguments."""
    code: int
    cost: hlo.Cost
    """Loops count as often as they run, and attention kernels count."""
    once: hlo.Cost
    """Each loop's body counts once, and kernels do not count."""
    written: float
    """FLOPs of matrix products as written, a device's share; more are computed where devices repeat
    work."""
    compiler_flops: float
    """FLOPs by cost_analysis: each loop's body once."""
    compiler_bytes: float
    """Bytes read and written by cost_analysis: each loop's body once."""
    seconds: float
    """Time of the compile."""
    failed: str = ""
    """How the compiler said that the program does not fit; "" if it compiled."""


def _discard(_text: str) -> None:
    """Shows nothing."""


@dataclass
class Compiler:
    """Compiles programs, and remembers what it has compiled.

    log: called with a line about each compile
    cache: what is compiled, by the hash of the program's text
    """

    log: Callable[[str], None] = _discard
    cache: dict[str, CompiledProgram] = field(default_factory=dict)

    def __call__(self, name: str, call: ProgramCall) -> CompiledProgram:
        """Returns what a program needs and does. `name` is for people, and stands in the result."""
        traced = call.program.trace(*call.arguments)
        lowered = traced.lower()
        # Remedies that change nothing of a program are answered from the cache.
        key = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if key not in self.cache:
            self.log(f"compiling {name} ...")
            self.cache[key] = _compile(name, lowered, call.arguments, traced.jaxpr)
            self.log(f"compiled {name} in {self.cache[key].seconds:.0f} s")
        return self.cache[key]


def _compile(
    name: str,
    lowered: jax.stages.Lowered,
    arguments: tuple[object, ...],
    jaxpr: ClosedJaxpr,
) -> CompiledProgram:
    started = time.perf_counter()
    devices = count_devices(arguments)
    shape_bytes = device_bytes(leaves_on_device(arguments))
    written = written_flops(jaxpr, devices)

    # 1. Compile. Running out of memory is an answer; any other error is raised.
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        demand = refused_bytes(str(error))
        if demand is None:
            raise
        return CompiledProgram(
            name=name,
            shapes=shape_bytes,
            arguments=shape_bytes,
            temporaries=demand,
            unaliased=0,
            code=0,
            cost=hlo.Cost(),
            once=hlo.Cost(),
            written=written,
            compiler_flops=0.0,
            compiler_bytes=0.0,
            seconds=time.perf_counter() - started,
            failed=str(error).splitlines()[0],
        )
    seconds = time.perf_counter() - started

    # 2. Read what the compiler says of memory and cost, and count what its text does.
    memory = compiled.memory_analysis()
    analysis = compiled.cost_analysis() or {}
    text = compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError(f"the compiler does not say what {name} needs and does")
    cost = hlo.program_cost(text)
    # A kernel is a custom call in the text: its products are only in the jaxpr.
    cost.add(hlo.Cost(flops=written_flops(jaxpr, devices, kernels=True)))
    return CompiledProgram(
        name=name,
        shapes=shape_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        unaliased=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        cost=cost,
        once=hlo.program_cost(text, count_loops=False),
        written=written,
        compiler_flops=analysis.get("flops", 0.0),
        compiler_bytes=analysis.get("bytes accessed", 0.0),
        seconds=seconds,
    )


def refused_bytes(message: str) -> float | None:
    """Returns the bytes of temporaries that a program would need, from the compiler's refusal.

    None if the message is about something else.
    """
    # Both wordings are of the TPU compiler's.
    patterns = (
        r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM",
        r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm",
    )
    for pattern in patterns:
        match = re.search(pattern, message)
        if match:
            return float(match[1]) * 1024 ** (1 + "KMGT".index(match[2]))
    return None
