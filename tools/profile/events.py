"""Reads a trace of JAX's profiler: what ran on the devices, and what the host did meanwhile.

The events are those of XLA's profiler, read by jax.profiler.ProfileData:

    CPU  host threads have an event for each instruction, with its program in the event's statistics
    GPU  so have the streams of a plane /device:GPU:0; copies have no program
    TPU  a plane /device:TPU:0 has the lines "XLA Ops" and "XLA Modules", instructions and programs
"""

import inspect
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.profiler import ProfileData

STEP = "grpo_step"
"""The annotation around the step."""

NO_PROGRAM = ""
"""The program of a copy between host and device."""


class DeviceEvent(NamedTuple):
    """An instruction that ran.

    version: tells compiled programs of one name apart
    """

    start: float
    end: float
    module: str
    version: str
    name: str


class HostEvent(NamedTuple):
    """A call of a Python function. name: see `event_name`"""

    start: float
    end: float
    name: str


class Trace(NamedTuple):
    """What a trace says of a step.

    start, end: of the step, in nanoseconds
    devices: of each device, the events of each of its threads or streams
    host: calls of the thread that made the step
    """

    start: float
    end: float
    devices: dict[str, list[list[DeviceEvent]]]
    host: list[HostEvent]


def event_name(function: Callable[..., Any]) -> str:
    """Returns the name that the profiler gives to calls of a Python function."""
    code = inspect.unwrap(function).__code__
    return f"${Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}"


def read_trace(path: Path) -> Trace:
    """Reads an xplane.pb file."""
    devices: dict[str, list[list[DeviceEvent]]] = defaultdict(list)
    start, end = 0.0, 0.0
    host: list[HostEvent] = []
    for plane in ProfileData.from_file(str(path)).planes:
        if plane.name.startswith("/device:TPU"):
            devices[plane.name].append(_tpu_events(plane.lines))
            continue
        for line in plane.lines:
            if plane.name.startswith("/device:GPU") and line.name.startswith("Stream"):
                devices[plane.name].append([_stream_event(e) for e in line.events])
            elif plane.name == "/host:CPU":
                for device, events in _thread_events(line.events).items():
                    devices[device].append(events)
                calls = _host_events(line.events)
                step = next((call for call in calls if call.name == STEP), None)
                if step is not None:
                    start, end = step.start, step.end
                    host = calls
    return Trace(start, end, dict(devices), host)


def _thread_events(events: Iterable[Any]) -> dict[str, list[DeviceEvent]]:
    """Returns what a thread of the host ran as a part of each CPU device."""
    by_device: dict[str, list[DeviceEvent]] = defaultdict(list)
    for event in events:
        # Most events are calls of Python functions, and reading statistics takes long.
        if event.name.startswith(("$", "end: ")) or not event.duration_ns:
            continue
        stats = dict(event.stats)
        if "hlo_op" in stats:
            by_device[f"cpu:{stats.get('device_ordinal', 0)}"].append(
                _instruction(event, stats)
            )
    return by_device


def _stream_event(event: Any) -> DeviceEvent:
    """Returns a kernel or a copy on a stream of a GPU."""
    return _instruction(event, dict(event.stats))


def _instruction(event: Any, stats: Mapping[str, Any]) -> DeviceEvent:
    return DeviceEvent(
        event.start_ns,
        event.end_ns,
        str(stats.get("hlo_module", NO_PROGRAM)),
        str(stats.get("program_id", "")),
        str(stats.get("hlo_op", event.name)),
    )


def _tpu_events(lines: Iterable[Any]) -> list[DeviceEvent]:
    """Returns the instructions of a TPU, each with the program that ran at the time."""
    by_name = {line.name: list(line.events) for line in lines}
    modules = sorted(by_name.get("XLA Modules", []), key=lambda event: event.start_ns)
    starts = [module.start_ns for module in modules]
    events = []
    for event in by_name.get("XLA Ops", []):
        place = bisect_right(starts, event.start_ns) - 1
        # jit_decode(1234567): the program and its fingerprint
        title = modules[place].name if place >= 0 else NO_PROGRAM
        module, _, version = title.partition("(")
        # %fusion.3 = bf16[8,128]{1,0} fusion(...), or the name alone
        match = re.match(r"%?([\w.\-]+)", event.name)
        name = match[1] if match else event.name
        events.append(DeviceEvent(event.start_ns, event.end_ns, module, version, name))
    return events


def _host_events(events: Iterable[Any]) -> list[HostEvent]:
    """Returns the calls of Python functions in a thread, and the annotation of the step."""
    return [
        HostEvent(event.start_ns, event.end_ns, event.name)
        for event in events
        if event.name == STEP or event.name.startswith("$")
    ]
