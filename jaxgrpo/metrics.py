"""Writes and reads the metrics of a run: OUT/metrics.jsonl, OUT/rollouts.jsonl, trackers.

Names of metrics are `stage/name`. A step has one line. A run that resumes at step s first drops
what was written for s and later, because those steps are done again. Call `flush` before a
checkpoint is saved, so that a checkpoint is never ahead of the metrics.
"""

import json
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax

from jaxgrpo import console
from jaxgrpo.console import Column, Progress
from jaxgrpo.files import fetched_file, run_folder, upload, write_atomically
from jaxgrpo.trackers import Settings, Trackers


@runtime_checkable
class Number(Protocol):
    """A Python, NumPy or JAX scalar."""

    def __float__(self) -> float: ...


class Writer:
    """Writes OUT/metrics.jsonl, OUT/rollouts.jsonl, trackers and the console.

    start_step: the first step that will be written; lines of it and of later steps are dropped
    steps: the run's last step (they count from 1), for the progress line
    active: False on all processes but one; then nothing is read or written
    trackers: names of trackers, as the setting has them
    settings: the run's, for trackers that show them
    quiet: whether nothing is printed
    columns: what a step's line on the console shows
    """

    def __init__(
        self,
        out: str | os.PathLike,
        start_step: int = 0,
        steps: int | None = None,
        active: bool = True,
        trackers: Sequence[str] = ("tensorboard",),
        settings: Settings | None = None,
        quiet: bool = False,
        columns: Sequence[Column] = console.COLUMNS,
    ) -> None:
        self._active = active
        if not active:
            return
        folder = self._folder = run_folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        self._progress = Progress(start_step, steps, quiet, columns)
        self._trackers = Trackers(
            trackers, folder, start_step, settings or {}, self._progress.print_line
        )
        self._files = {}
        for name in ("metrics", "rollouts"):
            path = folder / f"{name}.jsonl"
            truncate(path, start_step)
            self._files[name] = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Writes the metrics of one step, everywhere.

        The file has null for NaN and infinities, trackers nothing; the console shows them.
        """
        if not self._active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        # JSON has no word for NaN; every name stays in the line.
        nullable = {name: finite.get(name) for name in values}
        self._append("metrics", [{"step": step, **nullable}])
        self._trackers.log(step, finite)
        self._progress.show(step, values)

    def print_line(self, line: str) -> None:
        """Prints a line on the console, between the lines of the steps."""
        if self._active:
            self._progress.print_line(line)

    def write_rollouts(
        self, step: int, records: Iterable[Mapping[str, object]]
    ) -> None:
        """Appends sampled completions, each a mapping of JSON values, to OUT/rollouts.jsonl."""
        if self._active:
            self._append("rollouts", ({"step": step, **record} for record in records))

    def _append(self, name: str, records: Iterable[Mapping[str, object]]) -> None:
        """Appends a JSON line for each record to OUT/NAME.jsonl."""
        file = self._files[name]
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()

    def flush(self) -> None:
        """Returns when everything that was written is on the disk, or in the bucket."""
        if not self._active:
            return
        # The files' own buffers are empty: `_append` flushes them.
        for file in self._files.values():
            os.fsync(file.fileno())
        upload(self._folder)

    def close(self) -> None:
        """Flushes and closes all files and the progress bar."""
        if not self._active:
            return
        self.flush()
        for file in self._files.values():
            file.close()
        self._trackers.close()
        upload(self._folder)
        self._progress.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def truncate(path: Path, start_step: int) -> None:
    """Drops the lines of start_step and later, and a last line that was cut off, atomically."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    # A line that was cut off was never flushed: no checkpoint has its step, which is done again.
    kept_lines = [line for line in lines if _step_of(line) < start_step]
    write_atomically(path, b"".join(kept_lines))


def read(out: str | os.PathLike) -> list[dict[str, int | float | None]]:
    """Returns the records of OUT/metrics.jsonl, one a step; none if there is no such file.

    A last line that was cut off is left out.
    """
    path = fetched_file(out, "metrics.jsonl")
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if math.isfinite(_step_of(line))]


def _step_of(line: bytes) -> int | float:
    """Returns the step of a line of JSON; infinity for a line that was cut off or is damaged."""
    if not line.endswith(b"\n"):
        return math.inf
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def peak_memory() -> dict[str, float]:
    """Returns the most bytes that a device of this process has held, as "memory/peak".

    It returns nothing where nobody knows, as of a CPU.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [
        device_stats["peak_bytes_in_use"] for device_stats in stats if device_stats
    ]
    return {"memory/peak": float(max(peaks))} if peaks else {}


def memory_line(update_metrics: Mapping[str, float]) -> str:
    """Returns `memory a device: parameters 1.2 GB, optimizer 2.4 GB, reference 0.6 GB, ...`.

    In lines of 80 columns.
    """
    parts = [
        f"{name.removeprefix('memory/')} {console.format_bytes(value)}"
        for name, value in update_metrics.items()
        if name.startswith("memory/")
    ]
    line = f"memory a device: {', '.join(parts)}"
    return textwrap.fill(line, console.WIDTH, subsequent_indent="    ")
