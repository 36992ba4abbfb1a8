"""Numbers as text: a line per step with a progress bar, tables, durations and sizes."""

import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tqdm import tqdm


class Column(NamedTuple):
    """A column of the steps' lines.

    metric: whose value it shows
    label: above it
    width: in characters
    value_format: of the value
    """

    metric: str
    label: str
    width: int
    value_format: str


COLUMNS = (
    Column("reward/mean", "reward", 6, "{:.2f}"),
    Column("reward/accuracy", "acc", 4, "{:.2f}"),
    Column("language/target_word_ratio", "words", 5, "{:.2f}"),
    Column("completion/tokens", "len", 5, "{:.0f}"),
    Column("completion/truncated", "cut", 4, "{:.2f}"),
    Column("filter/kept", "kept", 4, "{:.2f}"),
    Column("policy/kl", "kl", 6, "{:.4f}"),
    Column("policy/entropy", "ent", 4, "{:.2f}"),
    Column("rollout/tokens_per_s", "tok/s", 7, "{:,.0f}"),
    Column("time/step", "sec", 5, "{:.1f}"),
)
"""The metrics that a step's line shows. With the step and the remaining time it fits into WIDTH."""

SFT_COLUMNS = (
    Column("update/loss", "loss", 7, "{:.4f}"),
    Column("evaluation/loss", "heldout", 7, "{:.4f}"),
    Column("update/grad_norm", "grad", 6, "{:.2f}"),
    Column("policy/entropy", "ent", 4, "{:.2f}"),
    Column("optimizer/learning_rate", "lr", 7, "{:.1e}"),
    Column("data/epoch", "epoch", 6, "{:.2f}"),
    Column("perf/tokens_per_s", "tok/s", 9, "{:,.0f}"),
    Column("time/step", "sec", 5, "{:.1f}"),
)
"""The metrics that a line of supervised training shows."""

WIDTH = 80
"""Columns of what is printed, at most."""

ETA_WIDTH = 6
"""Columns of the remaining time: "59m59s"."""

STEPS_UNDER_A_HEADER = 20
"""Lines of steps after which the labels are shown again."""

AVERAGED_STEPS = 20
"""The remaining time is estimated from the mean duration of this many last steps."""


class Progress:
    """A line per step on the console, and in a terminal a progress bar below the lines.

    start_step: the first step that will be shown
    steps: the run's last step (they count from 1); None if it is not known
    quiet: whether nothing is printed
    columns: what a line shows
    """

    def __init__(
        self,
        start_step: int,
        steps: int | None,
        quiet: bool = False,
        columns: Sequence[Column] = COLUMNS,
    ) -> None:
        self._steps = steps
        self._columns = columns
        self._quiet = quiet
        # When steps ended, from the first one on: that one had to compile.
        self._ends: deque[float] = deque(maxlen=AVERAGED_STEPS + 1)
        self._lines = 0
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            steps_done = max(start_step - 1, 0)
            self._bar = tqdm(total=steps, initial=steps_done, unit="step", leave=False)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints the line of a step that has just ended, and advances the bar."""
        self._ends.append(time.monotonic())
        seconds_per_step = math.nan
        if len(self._ends) > 1:
            elapsed = self._ends[-1] - self._ends[0]
            seconds_per_step = elapsed / (len(self._ends) - 1)
        if self._lines % STEPS_UNDER_A_HEADER == 0:
            self.print_line(progress_header(self._steps, self._columns))
        self._lines += 1
        self.print_line(
            progress_line(step, metrics, self._steps, seconds_per_step, self._columns)
        )
        if self._bar is not None:
            self._bar.update()

    def print_line(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._quiet:
            return
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


def progress_header(
    steps: int | None = None, columns: Sequence[Column] = COLUMNS
) -> str:
    """Returns the labels above the steps' lines."""
    labels = [column.label.rjust(column.width) for column in columns]
    return " ".join(["step".rjust(_step_width(steps)), *labels, "eta".rjust(ETA_WIDTH)])


def progress_line(
    step: int,
    metrics: Mapping[str, float],
    steps: int | None = None,
    seconds_per_step: float = math.nan,
    columns: Sequence[Column] = COLUMNS,
) -> str:
    """Returns the line of a step, aligned with `progress_header`.

    metrics: those of the columns are shown; "-" stands for one that there is not
    steps: the last step; None leaves out the total and the remaining time
    seconds_per_step: NaN leaves out the remaining time
    """
    name = f"{step}/{steps}" if steps else f"{step}"
    values = []
    for column in columns:
        value = metrics.get(column.metric, math.nan)
        text = "-" if math.isnan(value) else column.value_format.format(value)
        values.append(text.rjust(column.width))
    steps_left = steps - step if steps else 0
    eta = ""
    if steps_left > 0 and not math.isnan(seconds_per_step):
        eta = format_duration(steps_left * seconds_per_step)
    cells = [name.rjust(_step_width(steps)), *values, eta.rjust(ETA_WIDTH)]
    return " ".join(cells).rstrip()


def _step_width(steps: int | None) -> int:
    """Returns the columns of "12/60", at most."""
    return max(len("step"), len(f"{steps}/{steps}") if steps else 0)


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


def format_count(count: int) -> str:
    """Returns `7.6 B`, `0.9 M` or `12,345`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    if count >= 1e5:
        return f"{count / 1e6:.1f} M"
    return f"{count:,}"


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
