"""Groups of which only the first rows are sampled, until they promise to pass the filter.

    first rows -> their verdicts -> the other rows, or none

What a group's first verdicts decide is a selection: of the groups that go on, the first rows are
solved more often than others (or less), and the mean of solved / judged over all groups is no fair
estimate of the mean pass rate. The first verdicts of all groups are one, and so are the further
ones of those that go on. A Beta posterior is right with all verdicts, whatever ended the sampling.

Source: arXiv 2506.09016
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxgrpo.problems import Problem
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.pending import PendingGroup
from jaxgrpo.rollout.posterior import chance_to_pass
from jaxgrpo.rollout.report import mean


@dataclass
class Screening:
    """A session's groups whose first rows have ended, and what became of them."""

    _num_open: int = 0
    """Groups that are not decided on, though their first rows may still be written."""
    _undecided: dict[int, PendingGroup] = field(default_factory=dict)
    """By index, those of them whose first rows have ended."""
    _continued: deque[PendingGroup] = field(default_factory=deque)
    """Those that go on, and whose other rows have not started."""
    _stopped: list[PendingGroup] = field(default_factory=list)
    """Those that do not, and that were not handed out."""

    @property
    def may_continue(self) -> bool:
        """Returns whether rows of some group may still start."""
        return bool(self._num_open or self._continued)

    @property
    def is_busy(self) -> bool:
        """Returns whether a group is still to come."""
        return self.may_continue or bool(self._stopped)

    def note_start(self, group: PendingGroup) -> None:
        """Notes a group of which rows have just started."""
        self._num_open += group.num_started < len(group.rows)

    def take_whole(self, complete: Sequence[PendingGroup]) -> list[PendingGroup]:
        """Returns the groups that are whole, and those that were stopped; it keeps the others.

        complete: groups whose rows have all ended, as far as they have started
        """
        stopped = self._stopped
        self._stopped = []
        for group in complete:
            if group.num_started < len(group.rows):
                self._undecided[group.index] = group
        return stopped + [
            group for group in complete if group.index not in self._undecided
        ]

    def decide(self, index: int, goes_on: bool) -> None:
        """Has the other rows of a group start, or drops them."""
        group = self._undecided.pop(index)
        self._num_open -= 1
        if goes_on:
            self._continued.append(group)
        else:
            del group.rows[group.num_started :]
            self._stopped.append(group)

    def take_continued(self, count: int) -> list[PendingGroup]:
        """Returns the next groups that go on, at most `count`."""
        return [
            self._continued.popleft() for _ in range(min(count, len(self._continued)))
        ]


def uniform_prior(problem: Problem) -> tuple[float, float]:
    """Returns the parameters of a pass rate of which nothing is known."""
    return 1.0, 1.0


@dataclass(frozen=True)
class EarlyStop:
    """Says by the verdicts on a group's first rows whether it may still pass the filter.

    verdicts: rows that are judged first
    group_size: G
    rule: the filter
    min_chance: a group that is less likely to pass is stopped
    prior: returns the parameters of the Beta distribution of a problem's pass rate, as it is known
        before
    """

    verdicts: int
    group_size: int
    rule: DifficultyFilter
    min_chance: float
    prior: Callable[[Problem], tuple[float, float]] = uniform_prior

    def goes_on(self, problem: Problem, solved: int, judged: int) -> bool:
        """Returns whether a group's other rows are worth sampling.

        solved, judged: of the first rows
        """
        before_solved, before_failed = self.prior(problem)
        parameters = (before_solved + solved, before_failed + judged - solved)
        others = self.group_size - self.verdicts
        chance = chance_to_pass([parameters], others, self.rule, solved, judged)
        return bool(chance[0] >= self.min_chance)


def early_stop_metrics(
    asked: Sequence[JudgedGroup], early_stop: EarlyStop, solved_by: str
) -> dict[str, float]:
    """Returns the metrics of groups that may have been stopped.

        filter/stopped: those that were, as a share of those that were asked
        filter/accuracy_first: the mean pass rate of the first rows, before anything was selected

    solved_by: the reward whose value 1.0 counts as solved
    """
    first = [group.values[solved_by][: early_stop.verdicts] for group in asked]
    known = [values[~np.isnan(values)] for values in first]
    rates = [float(np.mean(values == 1.0)) for values in known if values.size]
    stopped = [len(group.texts) < early_stop.group_size for group in asked]
    return {"filter/stopped": mean(stopped), "filter/accuracy_first": mean(rates)}
