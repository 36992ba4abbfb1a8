"""Numbers as text: a line per step with a progress bar, tables, durations and sizes."""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

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
"""The metrics that a step's line shows: metric name -> label and format of the value."""

AVERAGED_STEPS = 20
"""The remaining time is estimated from the mean duration of this many last steps."""


class Progress:
    """A line per step on the console, and in a terminal a progress bar below the lines.

    start_step: the first step that will be shown
    steps: the run's last step (they count from 1); None if it is not known
    """

    def __init__(self, start_step: int, steps: int | None) -> None:
        self._steps = steps
        # One time more than steps: the time when the first of them started.
        self._times = deque([time.monotonic()], maxlen=AVERAGED_STEPS + 1)
        self._bar = None
        if sys.stderr.isatty():
            steps_done = max(start_step - 1, 0)
            self._bar = tqdm(total=steps, initial=steps_done, unit="step", leave=False)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the line of a step that has just ended, and advances the bar."""
        self._times.append(time.monotonic())
        seconds_per_step = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        self.print_line(progress_line(step, metrics, self._steps, seconds_per_step))
        if self._bar is not None:
            self._bar.update()

    def print_line(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


def progress_line(
    step: int,
    metrics: Mapping[str, float],
    steps: int | None = None,
    seconds_per_step: float = 0.0,
) -> str:
    """Returns `step 12/60  accuracy 0.41  kept 0.53  1,234 tok/s  2.1 s  eta 1m36s`.

    metrics: those that COLUMNS names are shown, in its order
    steps: the last step; None leaves out the total and the remaining time
    """
    parts = [f"step {step}/{steps}" if steps else f"step {step}"]
    for name, (label, value_format) in COLUMNS.items():
        if name in metrics:
            value = value_format.format(metrics[name])
            parts.append(f"{label} {value}".strip())
    steps_left = steps - step if steps else 0
    if steps_left > 0:
        parts.append(f"eta {format_duration(steps_left * seconds_per_step)}")
    return "  ".join(parts)


def format_duration(seconds: float) -> str:
    """Returns `45s`, `1m20s` or `2h05m`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02}s"
    return f"{rounded // 3600}h{rounded % 3600 // 60:02}m"


def format_bytes(count: float) -> str:
    """Returns `3.1 GB` or `12.0 MB`, in powers of 1,000."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB"


def format_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Returns rows as aligned plain text under a header.

    Columns with numbers are aligned to the right. Floats have three decimals. A value that is
    missing or NaN is `-`.
    """
    lines = [list(columns)]
    for row in rows:
        lines.append([_cell(row.get(column)) for column in columns])
    # Widths and alignment belong to a column, so the texts are padded column by column.
    aligned: list[list[str]] = []
    for index, column in enumerate(columns):
        texts = [line[index] for line in lines]
        width = max(len(text) for text in texts)
        is_numeric = any(isinstance(row.get(column), int | float) for row in rows)
        aligned.append(
            [text.rjust(width) if is_numeric else text.ljust(width) for text in texts]
        )
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*aligned, strict=True))


def _cell(value: object) -> str:
    """Returns the text of a table's value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
