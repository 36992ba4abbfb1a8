"""The shares of a step's time: by program and kind of work, and by what the host did.

A device's time is all of the step. Where it runs something, that has the time; where it is idle,
what the host does has it. What the host does while the device is busy costs nothing here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxgrpo.rollout.engine import SamplingSession
from jaxgrpo.rollout.judge import Judge, JudgingQueue
from jaxgrpo.text.tokenizer import Tokenizer, pad_left
from tools.profile.events import NO_PROGRAM, DeviceEvent, Trace, event_name
from tools.profile.kinds import OTHER, LoadedPrograms, Use, Uses
from tools.profile.timeline import Interval, Times, innermost, share_out, within

PROGRAMS = (
    "publish",
    "prefill",
    "insert",
    "decode",
    "compact",
    "grow",
    "score",
    "update",
)
"""Programs that a step is made of; the others are small, and are counted together."""

REST = "other programs"
HOST = "host"

Shares = dict[str, dict[str, float]]
"""Shares of the step's time, by program and kind of work; those of HOST by what it did."""

HOST_WORK: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "verifier": (Judge.judge, Judge.submit_early, JudgingQueue.add_event),
    "tokenizing": (
        Tokenizer.prompt,
        Tokenizer.completion,
        Tokenizer.decode_all,
        pad_left,
    ),
    "waiting": (SamplingSession.wait_for_call, jax.device_get),
}
"""Functions by what the host does in them: submitting texts and waiting for verdicts; tokenizing;
waiting for the device, which is about to begin or has just ended."""


def step_shares(trace: Trace, programs: LoadedPrograms) -> Shares:
    """Returns the shares of a step's time, which sum to 1: the mean over the devices.

    programs: those that may have run
    """
    uses = _uses_by_version(trace, programs)
    host = _host_pieces(trace)
    times: Times = defaultdict(float)
    for lines in trace.devices.values():
        pieces = [
            innermost(
                _interval(event, uses[event.module, event.version]) for event in line
            )
            for line in lines
        ]
        busy, gaps = share_out(pieces, trace.start, trace.end)
        idle = within(host, gaps, rest=(HOST, OTHER))
        for label, time in (*busy.items(), *idle.items()):
            times[label] += time
    total = sum(times.values())
    shares: Shares = {}
    for (program, kind), time in sorted(times.items()):
        shares.setdefault(program, {})[kind] = time / total
    return shares


def _uses_by_version(
    trace: Trace, programs: LoadedPrograms
) -> dict[tuple[str, str], Uses]:
    """Returns what the instructions of each compiled program are for."""
    names: dict[tuple[str, str], set[str]] = {}
    for lines in trace.devices.values():
        for event in _all_of(lines):
            names.setdefault((event.module, event.version), set()).add(event.name)
    return {
        (module, version): programs.uses(module, seen)
        for (module, version), seen in names.items()
    }


def _all_of(lines: Iterable[Iterable[DeviceEvent]]) -> Iterable[DeviceEvent]:
    return (event for line in lines for event in line)


def _interval(event: DeviceEvent, uses: Uses) -> Interval:
    """Returns an event's time, with its program and kind of work."""
    use = uses.get(event.name, Use(OTHER))
    program = event.module.removeprefix("jit_")
    if event.module == NO_PROGRAM or program not in PROGRAMS:
        program = REST
    return Interval(event.start, event.end, (program, use.kind), use.is_container)


def _host_pieces(trace: Trace) -> list[Interval]:
    """Returns what the host did, as far as it is in HOST_WORK."""
    work_of = {
        event_name(function): work
        for work, functions in HOST_WORK.items()
        for function in functions
    }
    return innermost(
        Interval(call.start, call.end, (HOST, work_of[call.name]))
        for call in trace.host
        if call.name in work_of
    )
