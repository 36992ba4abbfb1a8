"""Where a run's numbers go: metrics.jsonl, TensorBoard, the console, a table, a plot. Names are `stage/name`.

A step has one line: on resume at step s, what was written for s and later is dropped, since those steps are done again.
Call `flush` before a checkpoint, so that a checkpoint is never ahead of the numbers.
"""

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

COLUMNS = {
    "reward/accuracy": ("accuracy", "{:.2f}"),
    "language/target_word_ratio": ("words", "{:.2f}"),
    "filter/kept": ("kept", "{:.2f}"),
    "policy/kl": ("kl", "{:.4f}"),
    "update/loss": ("loss", "{:.4f}"),
    "rollout/tokens_per_s": ("", "{:,.0f} tok/s"),
    "time/step": ("", "{:.1f} s"),
}
"""What the console shows of a step: metric name -> label and format."""


@runtime_checkable
class Number(Protocol):
    """A Python, NumPy or JAX scalar."""

    def __float__(self) -> float: ...


class Writer:
    """Writes OUT/metrics.jsonl, OUT/rollouts.jsonl, OUT/tensorboard and the console.

    start_step: the first step that will be written; lines of it and of later steps are dropped.
    steps: the run's last step (they count from 1), for the progress line.
    active: False on all processes but one: nothing is read or written.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        start_step: int = 0,
        steps: int | None = None,
        active: bool = True,
    ) -> None:
        self._active = active
        if not active:
            return
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {}
        for name in ("metrics", "rollouts"):
            path = folder / f"{name}.jsonl"
            truncate(path, start_step)
            self._files[name] = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)
        self._progress = Progress(start_step, steps)

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Writes one step's numbers. NaN and infinities are null in the file and plain to see on the console."""
        if not self._active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        self._append(
            "metrics",
            [{"step": step} | {n: v if math.isfinite(v) else None for n, v in values.items()}],
        )
        for name, value in values.items():
            if math.isfinite(value):
                self._tensorboard.add_scalar(name, value, step)
        self._progress.show(step, values)

    def say(self, line: str) -> None:
        """Puts a line on the console, between the steps'."""
        if self._active:
            self._progress.say(line)

    def rollouts(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends samples, JSON values by name, to OUT/rollouts.jsonl."""
        if self._active:
            self._append("rollouts", ({"step": step, **record} for record in records))

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        file = self._files[name]
        file.writelines(
            json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records
        )
        file.flush()

    def flush(self) -> None:
        """Returns when everything written is on the disk."""
        if not self._active:
            return
        for file in self._files.values():
            os.fsync(file.fileno())
        self._tensorboard.flush()

    def close(self) -> None:
        if not self._active:
            return
        self.flush()
        for file in self._files.values():
            file.close()
        self._tensorboard.close()
        self._progress.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def truncate(path: Path, start_step: int) -> None:
    """Drops a file's lines of start_step and later, and a last line that was cut off; all at once or not at all."""
    if not path.exists():
        return
    kept = [
        line for line in path.read_bytes().splitlines(keepends=True) if _step(line) < start_step
    ]
    partial = path.with_suffix(".jsonl.partial")
    with partial.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".json.partial")
    partial.write_text(
        json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(partial, path)


def _step(line: bytes) -> int | float:
    """A line's step; infinity for one that is not whole."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def read(out: str | os.PathLike) -> list[dict[str, Any]]:
    """The steps in OUT/metrics.jsonl, without a last line that was cut off; [] where there is no file."""
    path = Path(out) / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_step(line))]


class Progress:
    """A line a step on the console, and in a terminal a bar under the lines."""

    def __init__(self, start_step: int, steps: int | None) -> None:
        self._steps = steps
        self._times = deque(
            [time.monotonic()], maxlen=21
        )  # the last 20 steps tell how long the rest takes
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=steps, initial=max(start_step - 1, 0), unit="step", leave=False)
            if terminal
            else None
        )

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        self._times.append(time.monotonic())
        seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self.say(progress_line(step, metrics, self._steps, seconds))
        if self._bar is not None:
            self._bar.update()

    def say(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def progress_line(
    step: int, metrics: Mapping[str, float], steps: int | None = None, seconds: float = 0.0
) -> str:
    """`step 12/60  accuracy 0.41  kept 0.53  1,234 tok/s  2.1 s  eta 1m36s`: the columns there are, and what is left of
    `steps` at so many seconds each."""
    parts = [f"step {step}/{steps}" if steps else f"step {step}"]
    for name, (label, form) in COLUMNS.items():
        if name in metrics:
            parts.append(f"{label} {form.format(metrics[name])}".strip())
    left = steps - step if steps else 0
    return "  ".join([*parts, f"eta {duration(left * seconds)}"] if left > 0 else parts)


def duration(seconds: float) -> str:
    """`45s`, `1m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def size(count: float) -> str:
    """Of bytes: `3.1 GB`, `12.0 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned plain text under a header: numbers to the right, floats with three decimals, `-` for what is
    missing or NaN."""
    texts = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    right = [any(isinstance(row.get(column), int | float) for row in rows) for column in columns]
    lines = (
        "  ".join(
            text.rjust(w) if r else text.ljust(w)
            for text, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    )
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


PANELS = {
    "reward/accuracy": "accuracy",
    "language/target_word_ratio": "words in the target language",
    "filter/kept": "groups kept by the filter",
    "policy/kl": "KL to the reference, nats a token",
    "policy/entropy": "entropy, nats a token",
    "rollout/tokens_per_s": "tokens sampled a second",
}
"""What the plot shows, where there is any: metric name -> title."""


def plot(out: str | os.PathLike) -> Path | None:
    """Draws OUT/metrics.png from OUT/metrics.jsonl: the steps, and a running mean over a tenth of them.

    Where OUT/summary.json has {"before": {name: value}, "after": {name: value}}, the ends are marked with those.
    None, and no file, where there are no steps or Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: nothing global, no display
    except ImportError:
        return None
    records = read(out)
    names = [name for name in PANELS if any(record.get(name) is not None for record in records)]
    if not names:
        return None
    ends = _evaluations(Path(out) / "summary.json")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        _draw(panel, name, records, ends)
    for panel in panels[len(names) :]:
        panel.remove()
    path = Path(out) / "metrics.png"
    figure.savefig(path, dpi=130)
    return path


def _evaluations(path: Path) -> list[dict[str, Any]]:
    """The figures before and after training; [] where there are none."""
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (
        [summary[when] for when in ("before", "after")]
        if summary.keys() >= {"before", "after"}
        else []
    )


def _draw(panel: Any, name: str, records: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    """One metric over the steps; steps that lack it leave a gap."""
    steps = np.array([record["step"] for record in records])
    values = np.array([record.get(name) for record in records], float)  # None becomes NaN
    panel.plot(steps, values, color="#9db8d9", linewidth=1, marker="." if len(steps) < 3 else None)
    panel.plot(steps, running_mean(values, max(3, len(values) // 10)), color="#1f4e8c", linewidth=2)
    marks = [end[name] for end in ends if isinstance(end.get(name), int | float)]
    if len(marks) == 2:
        for x, y, label, fill in zip(
            (steps[0], steps[-1]), marks, ("before", "after"), ("white", "#c8442f"), strict=True
        ):
            panel.plot(
                x,
                y,
                "o",
                color="#c8442f",
                markerfacecolor=fill,
                label=f"held out, {label}: {y:.2f}",
                clip_on=False,
                zorder=3,
            )
        panel.legend(frameon=False, fontsize=8)
    panel.set_title(PANELS[name], fontsize=10, loc="left")
    panel.set_xlabel("step", fontsize=8)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    panel.set_ylim(bottom=min(0.0, np.nanmin(values) * 1.05))
    panel.margins(x=0.02)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values at each place, of those there are; NaN where there is none."""
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    present = np.isfinite(windows)
    count = present.sum(axis=1)
    return np.where(
        count > 0, np.where(present, windows, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan
    )
