"""The histogram of pass rates over time, from the groups that a run wrote down."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from tools.report.curves import Chart

BINS = ("none", "to 0.2", "to 0.4", "to 0.6", "to 0.8", "below 1", "all")
"""Shares of a group's completions that are right: none, above 0 up to 0.2, ..., all."""

COLOURS = ("#a33a2a", "#dd8a6a", "#f2d3bd", "#e6e6e6", "#bcd6e6", "#6ea3c9", "#1f4e8c")
"""A colour for each bin."""

MAX_BARS = 40
"""Bars of a histogram, at most: with more steps, neighbouring ones are put together."""


def bin_of(solved: int, judged: int) -> str:
    """Returns the bin of a group's pass rate.

    solved: completions that are right
    judged: completions of which that is known, at least one
    """
    if solved in (0, judged):
        return BINS[0] if solved == 0 else BINS[-1]
    # In whole numbers: 2/5 is 0.4 and not above it.
    fifths = -(-5 * solved // judged)
    return BINS[fifths]


class Judged(Protocol):
    """A group of completions, of some of which it is known whether they are right."""

    @property
    def step(self) -> int: ...

    @property
    def solved(self) -> int: ...

    @property
    def judged(self) -> int: ...


def histogram(title: str, groups: Iterable[Judged]) -> Chart:
    """Returns the chart of some groups' pass rates."""
    known = [group for group in groups if group.judged]
    steps = sorted({group.step for group in known})
    # Each bar is named by the first of its steps.
    size = -(-len(steps) // MAX_BARS) or 1
    bar_of = {step: steps[place // size * size] for place, step in enumerate(steps)}
    counts = Counter(
        (bar_of[group.step], bin_of(group.solved, group.judged)) for group in known
    )
    bars = sorted({bar for bar, _ in counts})
    columns: dict[str, list] = {"step": [], "rate": [], "order": [], "groups": []}
    for bar in bars:
        for order, name in enumerate(BINS):
            columns["step"].append(bar)
            columns["rate"].append(name)
            columns["order"].append(order)
            columns["groups"].append(counts[bar, name])
    return {"title": title, "spec": _spec(), "columns": columns}


def _spec() -> dict:
    return {
        "width": "container",
        "height": 190,
        "mark": {"type": "bar"},
        "encoding": {
            "x": {
                "field": "step",
                "type": "ordinal",
                "title": "step",
                "axis": {"labelOverlap": True, "labelAngle": 0},
            },
            "y": {
                "field": "groups",
                "type": "quantitative",
                "stack": "normalize",
                "title": "share of groups",
                "axis": {"format": "%"},
            },
            "order": {"field": "order"},
            "color": {
                "field": "rate",
                "type": "nominal",
                "title": "completions right",
                "scale": {"domain": list(BINS), "range": list(COLOURS)},
                "legend": {"orient": "bottom", "columns": 4},
            },
            "tooltip": [
                {"field": "step", "type": "ordinal"},
                {"field": "rate", "type": "nominal", "title": "completions right"},
                {"field": "groups", "type": "quantitative"},
            ],
        },
    }
