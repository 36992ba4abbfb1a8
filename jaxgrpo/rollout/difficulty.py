"""Filters groups by how often they solve their problem: balanced online difficulty filtering.

A pass rate is a pair of counts, solved of judged, and is compared exactly: 0.2 means one fifth, not
the float next to it. Source: arXiv 2504.03380.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from jaxgrpo.errors import check_choice

RULES = ("band", "dapo", "variance", "off")


@dataclass(frozen=True)
class DifficultyFilter:
    """Decides which groups may train the policy, by their pass rate.

    rule: one of
      "band": low <= solved / judged <= high (arXiv 2504.03380).
      "dapo": neither none nor all are solved (arXiv 2503.14476).
      "variance": the rewards' variance is above min_variance, for rewards that are no verdicts.
      "off": every pass rate.
    low, high: the ends of the band; both belong to it. The other rules do not read them.
    min_variance: the greatest variance of rewards that "variance" rejects
    """

    rule: str
    low: float | Fraction
    high: float | Fraction
    min_variance: float = 0.0

    def __post_init__(self) -> None:
        check_choice("filter.rule", self.rule, RULES)

    def accepts(
        self, solved: int, judged: int, rewards: Float[np.ndarray, "G"] | None = None
    ) -> bool:
        """Returns whether a group may train the policy.

        A group with fewer than two verdicts has nothing to compare and is never accepted.

        solved: number of completions that solve the problem
        judged: number of completions with a verdict
        rewards: the weighted sums, which "variance" alone reads; None: the verdicts themselves
        """
        if self.rule == "variance":
            if rewards is None:
                return variance(solved, judged) > exact(self.min_variance)
            return reward_variance(rewards) > self.min_variance
        return judged >= 2 and self.side(solved, judged) == 0

    def side(self, solved: int, judged: int) -> int:
        """Returns -1 for a group that is too hard, 1 for one that is too easy, 0 for neither."""
        if self.rule in ("off", "variance"):
            return 0
        if self.rule == "dapo":
            return (solved == judged) - (solved == 0)
        # Multiplied instead of divided, and with exact ends, so that no rounding decides.
        is_too_easy = solved > exact(self.high) * judged
        is_too_hard = solved < exact(self.low) * judged
        return is_too_easy - is_too_hard


def variance(solved: int, judged: int) -> Fraction:
    """Returns the variance p (1 - p) of a verdict, which is greatest at p = 1/2.

    arXiv 2504.03380 bounds the divergence between the initial and the optimal policy by
    p (1 - p) / (2 beta^2). That is the leading Taylor term of the divergence, so it ranks groups
    here and is not used as a bound.
    """
    pass_rate = Fraction(solved, max(judged, 1))
    return pass_rate * (1 - pass_rate)


def reward_variance(rewards: Float[np.ndarray, "G"]) -> float:
    """Returns the variance of a group's rewards in float32, as advantages are made of them.

    It is exactly 0 where they are equal in float32, whatever their mean is rounded to. Missing
    rewards, which are NaN, are left out.
    """
    known = rewards[~np.isnan(rewards)].astype(np.float32)
    if np.unique(known).size < 2:
        return 0.0
    # Squares of small differences would underflow in float32.
    return float(np.var(known.astype(np.float64)))


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
        """Returns JSON values that `load` takes."""
        return {
            "visits": self.visits,
            "solved": {
                problem_id: list(counts) for problem_id, counts in self.solved.items()
            },
        }

    def load(self, state: HistoryState) -> None:
        """Goes on with the counts that `state` was taken of."""
        self.visits = dict(state["visits"])
        self.solved = {
            problem_id: (solved, judged)
            for problem_id, (solved, judged) in state["solved"].items()
        }


def exact(value: float | Fraction) -> Fraction:
    """Returns the decimal number that a setting was written as: 1/5 for 0.2."""
    return Fraction(str(value))
