"""Times calls in turns, and the machine's own speed in the same minutes.

From that speed comes the least time that the work can take on this machine.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxgrpo.performance import Work

Result = dict[str, object]
"""A subcommand's settings, then the numbers that it measured, named with their units."""

Calls = Mapping[str, Callable[[], object]]
"""Functions to time, by name; their results are waited for."""


def time_turn(calls: Calls, label: str) -> dict[str, float]:
    """Returns each call's seconds, and prints them to stderr.

    label: which turn it is, in words
    """
    seconds = {}
    for name, call in calls.items():
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds[name] = time.perf_counter() - started
        # Names are prefixes of a result's keys, and ours has none.
        shown_name = name.rstrip("_") or "ours"
        print(
            f"{label}: {shown_name} {seconds[name]:.3f} s", file=sys.stderr, flush=True
        )
    return seconds


def seconds_in_turns(calls: Calls, repeats: int) -> dict[str, list[float]]:
    """Returns each call's seconds in every turn.

    In turns, so that what else the machine does falls on all calls alike.
    """
    turns = [
        time_turn(calls, f"turn {turn} of {repeats}") for turn in range(1, repeats + 1)
    ]
    return {name: [seconds[name] for seconds in turns] for name in calls}


def median_seconds(calls: Calls, repeats: int) -> dict[str, float]:
    """Returns each call's median seconds over turns; a first turn, which compiles, is left out."""
    time_turn(calls, "warming up")
    return medians(seconds_in_turns(calls, repeats))


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns the median of each list."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def _product(matrix: Array) -> Array:
    return matrix @ matrix


def _increment(array: Array) -> Array:
    return array + 1


class Machine:
    """Two calls that show what the machine does a second, as the programs here meet it.

    flops: of a call of `multiply`
    bytes: read and written by a call of `copy`
    """

    def __init__(self, dtype: str):
        """Allocates the arrays. dtype: of the matrix product"""
        is_cpu = jax.default_backend() == "cpu"
        # Large enough for full speed, and short enough to be measured often.
        width = 2048 if is_cpu else 8192
        self._repeats = 2 if is_cpu else 32
        self._matrix = jnp.ones((width, width), dtype)
        self._array = jnp.ones(2**26 if is_cpu else 2**30, jnp.float32)
        self.flops = 2.0 * width**3 * self._repeats
        self.bytes = 2.0 * self._array.nbytes  # read once, written once
        self._product = jax.jit(_product)
        # In place: otherwise getting new pages from the system would be timed, too.
        self._increment = jax.jit(_increment, donate_argnums=0)

    def multiply(self) -> Array:
        """Computes bare matrix products, `flops` of them."""
        # Calls wait for one another on the device: the last one's end is that of all.
        products = [self._product(self._matrix) for _ in range(self._repeats)]
        return products[-1]

    def copy(self) -> Array:
        """Reads and writes `bytes`."""
        self._array = self._increment(self._array)
        return self._array


class CompileCounter:
    """Counts what JAX compiles in this process, and the seconds it takes."""

    def __init__(self) -> None:
        """Starts counting."""
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._record)

    def _record(self, event: str, duration_secs: float, **_: str | int) -> None:
        # XLA's own work: tracing and lowering come with every new shape, too, and take little.
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += duration_secs


@functools.cache
def compile_counter() -> CompileCounter:
    """Returns this process's only counter: JAX offers no way to take a listener back."""
    return CompileCounter()


def measure(
    calls: Calls, work: Work, tokens: int, arguments: argparse.Namespace
) -> Result:
    """Returns times, the machine's rates, and the floor that these set for the work.

    calls: the first is what is measured; of the others only the median is returned
    work: of the first call
    tokens: that the first call makes

    Compiles are those of a first turn, which is not timed; `recompiles` are those that came later,
    of which there should be none.
    """
    machine = Machine(arguments.dtype)
    counter = compile_counter()

    # 1. Compile everything, and count it.
    count_before = counter.count
    seconds_before = counter.seconds
    time_turn(calls, "warming up")
    compiles = counter.count - count_before
    compile_seconds = counter.seconds - seconds_before
    machine_calls = {"multiply": machine.multiply, "copy": machine.copy}
    time_turn(machine_calls, "warming up")

    # 2. Time the machine and the calls in turns.
    count_warm = counter.count
    seconds = seconds_in_turns({**machine_calls, **calls}, arguments.repeats)
    median = medians(seconds)

    matmul_flops_per_s = machine.flops / median["multiply"]
    copy_bytes_per_s = machine.bytes / median["copy"]
    first, *others = calls
    return {
        "what": first,
        "seconds": seconds[first],
        "median_s": median[first],
        "tokens_per_s": tokens / median[first],
        "matmul_flops_per_s": matmul_flops_per_s,
        "copy_bytes_per_s": copy_bytes_per_s,
        "flops": work.flops,
        "floor_s": work.floor_s(matmul_flops_per_s, copy_bytes_per_s),
        "compiles": compiles,
        "compile_s": compile_seconds,
        "recompiles": counter.count - count_warm,
        **{f"{name}_s": median[name] for name in others},
    }
