"""Filters groups by how often they solve their problem: balanced online difficulty filtering.

A pass rate is a pair of counts, solved of judged, and is compared exactly: 0.2 means one fifth, not
the float next to it. Source: arXiv 2504.03380.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypedDict

from jaxgrpo.errors import check_choice

RULES = ("band", "dapo", "off")


@dataclass(frozen=True)
class DifficultyFilter:
    """Decides which groups may train the policy, by their pass rate.

    rule: one of
      "band": low <= solved / judged <= high (arXiv 2504.03380).
      "dapo": neither none nor all are solved (arXiv 2503.14476).
      "off": every pass rate.
    low, high: the ends of the band; both belong to it. The other rules do not read them.
    """

    rule: str
    low: float
    high: float

    def __post_init__(self) -> None:
        check_choice("filter.rule", self.rule, RULES)

    def accepts(self, solved: int, judged: int) -> bool:
        """Returns whether a group may train the policy.

        A group with fewer than two verdicts has nothing to compare and is never accepted.

        solved: number of completions that solve the problem
        judged: number of completions with a verdict
        """
        return judged >= 2 and self.side(solved, judged) == 0

    def side(self, solved: int, judged: int) -> int:
        """Returns -1 for a group that is too hard, 1 for one that is too easy, 0 for neither."""
        if self.rule == "off":
            return 0
        if self.rule == "dapo":
            return (solved == judged) - (solved == 0)
        # Multiplied instead of divided, and with exact ends, so that no rounding decides.
        is_too_easy = solved > _exact(self.high) * judged
        is_too_hard = solved < _exact(self.low) * judged
        return is_too_easy - is_too_hard


def variance(solved: int, judged: int) -> Fraction:
    """Returns the variance p (1 - p) of a verdict, which is greatest at p = 1/2.

    arXiv 2504.03380 bounds the divergence between the initial and the optimal policy by
    p (1 - p) / (2 beta^2). That is the leading Taylor term of the divergence, so it ranks groups
    here and is not used as a bound.
    """
    pass_rate = Fraction(solved, max(judged, 1))
    return pass_rate * (1 - pass_rate)


class HistoryState(TypedDict):
    """A History as JSON values. solved: (solved, judged) as a list of two."""

    visits: dict[str, int]
    solved: dict[str, list[int]]


@dataclass
class History:
    """Counts of each problem over the run, by problem id; saved with the checkpoint.

    visits: number of times the problem was asked
    solved: (solved, judged) when it was last asked
    """

    visits: dict[str, int] = field(default_factory=dict)
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)

    def record(self, problem_id: str, solved: int, judged: int) -> None:
        """Counts a visit of a problem and notes how often it was solved."""
        self.visits[problem_id] = self.visits.get(problem_id, 0) + 1
        self.solved[problem_id] = (solved, judged)

    def state(self) -> HistoryState:
        """Returns JSON values from which `restore` makes an equal history."""
        return {
            "visits": self.visits,
            "solved": {
                problem_id: list(counts) for problem_id, counts in self.solved.items()
            },
        }

    @classmethod
    def restore(cls, state: HistoryState) -> "History":
        """Returns the history that `state` was taken of."""
        solved_counts = {
            problem_id: (solved, judged)
            for problem_id, (solved, judged) in state["solved"].items()
        }
        return cls(dict(state["visits"]), solved_counts)


def _exact(value: float) -> Fraction:
    """Returns the decimal number that a setting was written as: 1/5 for 0.2."""
    return Fraction(str(value))
