"""Curves of metrics over steps, as charts of Vega-Lite: one line a group of runs, seeds as a band.

A chart is {"title", "spec", "columns"}: a specification without data, and the data as columns,
which take less room than rows. `rows` makes rows of them, and so does page.js.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxgrpo.plots import running_mean
from tools.report.runs import RunGroup

Chart = dict
"""A chart as JSON values."""

SECTIONS = {
    "Rewards": r"reward/.+",
    "Language": r"language/[^/]+",
    "Difficulty filter": r"filter/(kept|too_hard|too_easy|asked)",
    "Policy": (
        r"policy/(kl|entropy|clipped_low|clipped_high|effective_sample_size)"
        r"|update/(loss|grad_norm)"
    ),
    "Length": r"completion/.+",
    "Verdicts": r"verdict/.+",
    "Speed": r"rollout/(tokens_per_s|utilisation|idle)|time/(step|rollout|update)|perf/.+",
    "Accuracy, language by language": r"accuracy/.+",
    "Words in the target language, language by language": r"language/.+/target_word_ratio",
}
"""The sections of curves: title -> pattern of the metrics in it."""

TITLES = {
    "reward/accuracy": "accuracy",
    "reward/mean": "mean reward",
    "language/target_word_ratio": "words in the target language",
    "language/english_word_ratio": "words in English",
    "filter/kept": "groups kept by the filter",
    "filter/too_hard": "groups too hard",
    "filter/too_easy": "groups too easy",
    "filter/asked": "groups asked",
    "policy/kl": "KL to the reference, nats a token",
    "policy/entropy": "entropy, nats a token",
    "completion/tokens": "tokens of a completion",
    "completion/truncated": "completions cut off",
    "rollout/tokens_per_s": "tokens sampled a second",
    "time/step": "seconds of a step",
}
"""Titles of metrics, where the metric's name says less."""

COLOURS = (
    "#1f4e8c",
    "#c8442f",
    "#3a8a55",
    "#8a5aa8",
    "#c98a1b",
    "#2a9aa8",
    "#a33d6b",
    "#6b6b6b",
)
"""Colours of groups of runs, in their order; then the first again."""

MAX_NUMBERS = 150_000
"""Numbers in all curves of a page, about: with more, neighbouring steps are averaged."""


def sections(groups: Sequence[RunGroup]) -> Iterator[tuple[str, list[Chart]]]:
    """Yields the sections that any run has metrics of: a title and its charts."""
    recorded = dict.fromkeys(
        name
        for group in groups
        for run in group.runs
        for record in run.records
        for name, value in record.items()
        if value is not None
    )
    # Those with a title of their own first.
    names = [name for name in TITLES if name in recorded]
    names += [name for name in recorded if name not in TITLES]
    found = {
        title: [name for name in names if re.fullmatch(pattern, name)]
        for title, pattern in SECTIONS.items()
    }
    num_lines = max(1, sum(map(len, found.values())) * len(groups))
    max_points = max(20, min(400, MAX_NUMBERS // (5 * num_lines)))
    for title, names in found.items():
        if names:
            yield title, [curve(name, groups, max_points) for name in names]


def curve(metric: str, groups: Sequence[RunGroup], max_points: int = 400) -> Chart:
    """Returns the chart of a metric: of each group of runs the mean over runs of running means.

    max_points: of a line, at most; beyond that neighbouring steps are averaged
    """
    columns: dict[str, list] = {
        name: [] for name in ("run", "step", "value", "mean", "low", "high")
    }
    for group in groups:
        steps, values = _values(metric, group)  # [S], [runs, S]
        if not len(steps):
            continue
        # Each run by itself, so that their mean lies between the least and the greatest.
        window = max(3, len(steps) // 10)
        smooth = np.array([running_mean(row, window) for row in values])
        series = {
            "step": steps.astype(float),
            "value": np.nanmean(values, axis=0),
            "mean": np.nanmean(smooth, axis=0),
            "low": np.nanmin(smooth, axis=0),
            "high": np.nanmax(smooth, axis=0),
        }
        points = _bins(len(steps), max_points)
        columns["run"] += [group.label] * (len(points) - 1)
        for name, array in series.items():
            columns[name] += [_number(part) for part in _split(array, points)]
    if all(len(group.runs) == 1 for group in groups):
        # Without seeds there is no band.
        del columns["low"], columns["high"]
    return {
        "title": _title(metric),
        "spec": _spec(groups, columns),
        "columns": columns,
    }


def rows(columns: Mapping[str, Sequence]) -> list[dict]:
    """Returns columns as rows, which Vega-Lite takes."""
    names = list(columns)
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def colours(labels: Sequence[str]) -> dict[str, list[str]]:
    """Returns the scale that gives each group of runs its colour."""
    repeated = [COLOURS[place % len(COLOURS)] for place in range(len(labels))]
    return {"domain": list(labels), "range": repeated}


def _title(metric: str) -> str:
    """Returns the title of a metric's chart; of one of a language it is the language's code."""
    one = re.fullmatch(r"accuracy/(\w+)|language/(\w+)/target_word_ratio", metric)
    return (one[1] or one[2]) if one else TITLES.get(metric, metric)


def _values(metric: str, group: RunGroup) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps at which a run of the group has the metric, and each run's values there."""
    by_step = [
        {
            int(record["step"] or 0): value
            for record in run.records
            if (value := record.get(metric)) is not None
        }
        for run in group.runs
    ]
    steps = sorted({step for values in by_step for step in values})
    table = [[values.get(step, math.nan) for step in steps] for values in by_step]
    return np.array(steps), np.array(table, float)


def _bins(length: int, max_points: int) -> np.ndarray:
    """Returns the bounds of at most so many bins of neighbouring steps."""
    return np.linspace(0, length, min(length, max_points) + 1).round().astype(int)


def _split(array: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
    return np.split(array, bounds[1:-1])


def _number(values: np.ndarray) -> float | None:
    """Returns the mean of what is finite, to five digits; None where nothing is."""
    finite = values[np.isfinite(values)]
    return float(f"{finite.mean():.5g}") if len(finite) else None


def _spec(groups: Sequence[RunGroup], columns: Mapping[str, Sequence]) -> dict:
    """Returns the specification of a chart of curves."""
    y: dict = {"type": "quantitative", "title": None, "scale": {"zero": False}}
    largest = max((abs(value) for value in columns["value"] if value), default=0.0)
    if largest >= 10_000:
        # 1,600,000,000 is 1.6G.
        y["axis"] = {"format": "~s"}
    layers: list[dict] = []
    if "low" in columns:
        layers.append(
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            }
        )
    else:
        layers.append(
            {
                "mark": {"type": "line", "opacity": 0.35, "strokeWidth": 1},
                "encoding": {"y": {"field": "value", **y}},
            }
        )
    hover = {
        "name": "hover",
        "select": {
            "type": "point",
            "fields": ["step"],
            "nearest": True,
            "on": "pointerover",
            "clear": "pointerout",
        },
    }
    layers += [
        {
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {"y": {"field": "mean", **y}},
        },
        {
            "params": [hover],
            "mark": {"type": "point", "filled": True, "size": 45},
            "encoding": {
                "y": {"field": "mean", **y},
                "opacity": {
                    "condition": {"param": "hover", "empty": False, "value": 1},
                    "value": 0,
                },
                "tooltip": [
                    {"field": "run", "type": "nominal", "title": "run"},
                    {"field": "step", "type": "quantitative", "title": "step"},
                    {"field": "value", "type": "quantitative", "title": "value"},
                    {
                        "field": "mean",
                        "type": "quantitative",
                        "title": "running mean",
                        "format": ".4~g",
                    },
                ],
            },
        },
    ]
    return {
        "width": "container",
        "height": 170,
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "step",
                "axis": {"tickMinStep": 1, "grid": False},
                "scale": {"zero": False, "nice": False},
            },
            "color": {
                "field": "run",
                "type": "nominal",
                "legend": None,
                "scale": colours([group.label for group in groups]),
            },
        },
        "layer": layers,
    }
