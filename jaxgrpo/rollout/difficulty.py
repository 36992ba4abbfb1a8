"""Balanced online difficulty filtering (arXiv 2504.03380): which groups train the policy, by how often it solves them.

A pass rate is a pair of counts, solved of judged, and is compared exactly: 0.2 means one fifth, not the float next to it.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from jaxgrpo.errors import UserError


def is_kept(rule: str, low: float, high: float, solved: int, judged: int) -> bool:
    """Whether a group with `solved` of `judged` completions right may train the policy.

    "band": low <= solved / judged <= high (arXiv 2504.03380). "dapo": neither none nor all (arXiv 2503.14476). "off": any.
    A group with fewer than two verdicts has nothing to compare and is never kept.
    """
    return judged >= 2 and side(rule, low, high, solved, judged) == 0


def side(rule: str, low: float, high: float, solved: int, judged: int) -> int:
    """-1 for a group that is too hard for the rule, 1 for one too easy, 0 for one that is neither."""
    if rule == "off":
        return 0
    if rule == "dapo":
        return (solved == judged) - (solved == 0)
    if rule == "band":
        return (solved > _exact(high) * judged) - (solved < _exact(low) * judged)
    raise UserError(f"filter.rule is {rule!r}: it must be one of band, dapo, off")


def variance(solved: int, judged: int) -> Fraction:
    """p (1 - p): the variance of a verdict, greatest at p = 1/2. arXiv 2504.03380 bounds the divergence between the initial
    and the optimal policy by p (1 - p) / (2 beta^2); that is its leading Taylor term, so it ranks and is not a bound here."""
    rate = Fraction(solved, max(judged, 1))
    return rate * (1 - rate)


@dataclass
class History:
    """What is known of each problem, by its id; saved with the checkpoint.

    visits: how often it was asked. solved: (solved, judged) when it was last asked.
    """

    visits: dict[str, int] = field(default_factory=dict)
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)

    def record(self, problem: str, solved: int, judged: int) -> None:
        """Notes that a problem was asked and how it went."""
        self.visits[problem] = self.visits.get(problem, 0) + 1
        self.solved[problem] = (solved, judged)

    def state(self) -> dict:
        """JSON values from which `restore` makes an equal history."""
        return {
            "visits": self.visits,
            "solved": {problem: list(pair) for problem, pair in self.solved.items()},
        }

    @classmethod
    def restore(cls, state: dict) -> "History":
        return cls(
            dict(state["visits"]),
            {problem: tuple(pair) for problem, pair in state["solved"].items()},
        )


def _exact(value: float) -> Fraction:
    return Fraction(str(value))
