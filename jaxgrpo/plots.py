"""Curves of a run's metrics over its steps: OUT/metrics.png."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxgrpo.files import fetched_file, run_folder, write_atomically
from jaxgrpo.metrics import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "reward/accuracy": "accuracy",
    "language/target_word_ratio": "words in the target language",
    "filter/kept": "groups kept by the filter",
    "policy/kl": "KL to the reference, nats a token",
    "policy/entropy": "entropy, nats a token",
    "rollout/tokens_per_s": "tokens sampled a second",
}
"""The metrics that are plotted if any step has them: metric name -> title of its panel."""

SFT_PANELS = {
    "update/loss": "loss, nats a token",
    "update/grad_norm": "norm of the gradient",
    "policy/entropy": "entropy, nats a token",
    "perf/tokens_per_s": "tokens learned from a second",
}
"""The metrics that are plotted of supervised training."""

MAX_COLUMNS = 3
"""Panels side by side."""

LIGHT_BLUE = "#9db8d9"
DARK_BLUE = "#1f4e8c"
RED = "#c8442f"


def plot(out: str | os.PathLike, titles: Mapping[str, str] = PANELS) -> Path | None:
    """Draws OUT/metrics.png from OUT/metrics.jsonl: each step, and a running mean.

    If OUT/summary.json has {"before": {name: value}, "after": {name: value}}, these results of the
    evaluations are marked at both ends of the curves.

    titles: of the panels, by the metric that they show

    Returns the path of the picture; None if there are no steps or Matplotlib is not installed.
    """
    try:
        # Without pyplot there is no global state, and no display is needed.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    records = read(out)
    names = [
        name
        for name in titles
        if any(record.get(name) is not None for record in records)
    ]
    if not names:
        return None
    evaluations = _evaluations(fetched_file(out, "summary.json"))
    columns = min(MAX_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        _draw_metric(panel, name, titles[name], records, evaluations)
    for unused_panel in panels[len(names) :]:
        unused_panel.remove()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    path = run_folder(out) / "metrics.png"
    write_atomically(path, picture.getvalue())
    return path


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Returns, for each position, the mean of the last `width` values up to it.

    NaN values are left out; the mean is NaN where the window has nothing else.
    """
    # The first windows reach back before the first value.
    padded = np.concatenate([np.full(width - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, width
    )  # [positions, width]
    present = np.isfinite(windows)
    counts = present.sum(axis=1)
    sums = np.where(present, windows, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _evaluations(path: Path) -> list[Mapping[str, object]]:
    """Returns the evaluations before and after training from a summary; [] if there are none."""
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "before" in summary and "after" in summary:
        return [summary["before"], summary["after"]]
    return []


def _draw_metric(
    panel: "Axes",
    name: str,
    title: str,
    records: Sequence[Mapping[str, int | float | None]],
    evaluations: Sequence[Mapping[str, object]],
) -> None:
    """Draws one metric over the steps, with a gap for steps that lack it."""
    steps = np.array([record["step"] for record in records])
    values = np.array(
        [record.get(name) for record in records], float
    )  # None becomes NaN
    marker = (
        "." if len(steps) < 3 else None
    )  # a line through so few points is hard to see
    panel.plot(steps, values, color=LIGHT_BLUE, linewidth=1, marker=marker)
    # The window is a tenth of the run: wide enough to show a trend through the noise of the steps.
    mean = running_mean(values, max(3, len(values) // 10))
    panel.plot(steps, mean, color=DARK_BLUE, linewidth=2)
    results = []
    for evaluation in evaluations:
        result = evaluation.get(name)
        if isinstance(result, int | float):
            results.append(result)
    if len(results) == 2:
        _draw_evaluation(panel, int(steps[0]), results[0], "before", "white")
        _draw_evaluation(panel, int(steps[-1]), results[1], "after", RED)
        panel.legend(frameon=False, fontsize=8)
    panel.set_title(title, fontsize=10, loc="left")
    panel.set_xlabel("step", fontsize=8)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    # The axis starts at 0, so that a small change looks small.
    panel.set_ylim(bottom=min(0.0, np.nanmin(values) * 1.05))
    panel.margins(x=0.02)


def _draw_evaluation(
    panel: "Axes", step: int, value: int | float, label: str, fill: str
) -> None:
    """Marks the result of an evaluation on held-out problems."""
    panel.plot(
        step,
        value,
        "o",
        color=RED,
        markerfacecolor=fill,
        label=f"held out, {label}: {value:.2f}",
        clip_on=False,  # a mark at the end of the axis would lose its outer half
        zorder=3,
    )
