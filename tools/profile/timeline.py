"""Intervals of time: which of several that overlap has the time, and what is left over.

Times are nanoseconds.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

Label = tuple[str, str]
"""What an interval's time counts for: a program and a kind of work."""

Times = dict[Label, float]
"""Nanoseconds by label."""


class Interval(NamedTuple):
    """A stretch of time that counts for a label.

    is_container: it stands for what runs within it, as a loop does, and has the time that is left
    """

    start: float
    end: float
    label: Label
    is_container: bool = False


def innermost(intervals: Iterable[Interval]) -> list[Interval]:
    """Returns intervals that do not overlap: of nested ones the innermost has the time.

    intervals: of one thread or stream, where whatever begins within another also ends there
    """
    pieces: list[Interval] = []
    stack: list[Interval] = []
    now = 0.0

    def advance(time: float) -> None:
        """Gives the time up to `time` to the interval on top of the stack."""
        nonlocal now
        if stack and time > now:
            pieces.append(stack[-1]._replace(start=now, end=time))
        now = max(now, time)

    for interval in sorted(intervals, key=lambda i: (i.start, -i.end)):
        while stack and stack[-1].end <= interval.start:
            advance(stack[-1].end)
            stack.pop()
        advance(interval.start)
        stack.append(interval)
    while stack:
        advance(stack[-1].end)
        stack.pop()
    return pieces


def share_out(
    lines: Sequence[Sequence[Interval]], start: float, end: float
) -> tuple[Times, list[tuple[float, float]]]:
    """Returns the nanoseconds of each label from `start` to `end`, and the gaps in which none ran.

    Labels and gaps together are all of the time. Where several lines are busy at once they share
    it; a container has a part only where nothing else runs.

    lines: of each thread or stream of a device, intervals that do not overlap
    """
    pieces = heapq.merge(*lines)
    times: Times = defaultdict(float)
    gaps: list[tuple[float, float]] = []
    active: list[Interval] = []
    now = start

    def advance(time: float) -> None:
        """Shares the time up to `time` among the active intervals."""
        nonlocal now, active
        while now < time:
            # Until the next of them ends, the same are active.
            until = min([time, *(interval.end for interval in active)])
            sharing = [i for i in active if not i.is_container] or active
            for interval in sharing:
                times[interval.label] += (until - now) / len(sharing)
            if not active:
                gaps.append((now, until))
            now = until
            active = [interval for interval in active if interval.end > now]

    for piece in pieces:
        advance(min(piece.start, end))
        if piece.end > now:
            active.append(piece)
    advance(end)
    return times, gaps


def within(
    pieces: Sequence[Interval], gaps: Sequence[tuple[float, float]], rest: Label
) -> Times:
    """Returns the nanoseconds of the gaps, each by the piece that it falls into.

    pieces, gaps: in order, neither overlapping among themselves
    rest: the label of time that falls into no piece
    """
    times: Times = defaultdict(float)
    first = 0
    for start, end in gaps:
        left = end - start
        while first < len(pieces) and pieces[first].end <= start:
            first += 1
        for piece in islice(pieces, first, None):
            if piece.start >= end:
                break
            inside = min(end, piece.end) - max(start, piece.start)
            times[piece.label] += inside
            left -= inside
        times[rest] += left
    return times
