"""Times of calls in turns, what the machine can do in the same minutes, and the time that this alone would take."""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Result = dict[str, Any]
"""What a subcommand measured: what it was given, then numbers named with their units."""


def seconds_of(calls: dict[str, Callable[[], Any]], label: str) -> dict[str, float]:
    """One turn: each call's time."""
    times = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times[name] = time.perf_counter() - begin
        print(
            f"{label}: {name.rstrip('_') or 'ours'} {times[name]:.3f} s",
            file=sys.stderr,
            flush=True,
        )
    return times


def seconds_in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The times of each, in turns, so that what else the machine does falls on all."""
    turns = [seconds_of(calls, f"turn {turn} of {repeats}") for turn in range(1, repeats + 1)]
    return {name: [times[name] for times in turns] for name in calls}


def median_seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of each, in turns; a first turn is not counted."""
    seconds_of(calls, "warming up")
    return {
        name: statistics.median(seconds)
        for name, seconds in seconds_in_turns(calls, repeats).items()
    }


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be computed, whoever computes it.

    flops: 2 for each parameter and token that is read, 6 where there is a gradient, too; prompts count in every row
    bytes: what decoding has to fetch: at each token the parameters once and the keys and values of every row so far
    """

    flops: float
    bytes: float

    def floor_s(self, matmul_flops_per_s: float, copy_bytes_per_s: float) -> float:
        """The least time it can take if either runs as fast as it was measured to."""
        return max(self.flops / matmul_flops_per_s, self.bytes / copy_bytes_per_s)


class Machine:
    """What the machine does per second, as the programs here meet it."""

    def __init__(self, dtype: str):
        small = jax.default_backend() == "cpu"
        width, self.repeats = (2048, 2) if small else (8192, 32)
        self.flops = 2.0 * width**3 * self.repeats
        self._matrix = jnp.ones((width, width), dtype)
        self._array = jnp.ones(2**26 if small else 2**30, jnp.float32)
        self.bytes = 2.0 * self._array.nbytes  # read once, written once
        self._product = jax.jit(lambda x: x @ x)
        self._copy = jax.jit(
            lambda x: x + 1, donate_argnums=0
        )  # in place: new pages would be timed, too

    def multiply(self) -> Array:
        """`flops` of a bare matrix product."""
        return [self._product(self._matrix) for _ in range(self.repeats)][-1]

    def copy(self) -> Array:
        """`bytes` read and written."""
        self._array = self._copy(self._array)
        return self._array


class Compiles:
    """Counts what JAX compiles in this process, and the seconds it takes."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count, self.seconds = self.count + 1, self.seconds + seconds


@functools.cache
def compiles() -> Compiles:
    """This process's only one: JAX offers no way to take a listener back."""
    return Compiles()


def measure(
    calls: dict[str, Callable[[], Any]], work: Work, tokens: int, arguments: argparse.Namespace
) -> Result:
    """Times of the first call, the medians of the others, the machine's rates, and the floor that they set for the work.

    Compiles are those of a first turn, which is not timed; `recompiles` those that came later, of which there should be none.
    """
    machine, counter = Machine(arguments.dtype), compiles()
    before = counter.count, counter.seconds
    seconds_of(calls, "warming up")
    warm = counter.count, counter.seconds
    machine_calls = {"multiply": machine.multiply, "copy": machine.copy}
    seconds_of(machine_calls, "warming up")
    cold = counter.count
    times = seconds_in_turns(machine_calls | calls, arguments.repeats)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rates = machine.flops / medians["multiply"], machine.bytes / medians["copy"]
    first, *others = calls
    return {
        "what": first,
        "seconds": times[first],
        "median_s": medians[first],
        "tokens_per_s": tokens / medians[first],
        "matmul_flops_per_s": rates[0],
        "copy_bytes_per_s": rates[1],
        "flops": work.flops,
        "floor_s": work.floor_s(*rates),
        "compiles": warm[0] - before[0],
        "compile_s": warm[1] - before[1],
        "recompiles": counter.count - cold,
        **{f"{name}_s": medians[name] for name in others},
    }
