"""Estimates of pass rates over a run: what is known of a problem, and of those like it.

    verdicts of each step -> decayed counts -> a Beta posterior -> the chance to pass the filter

Source: arXiv 2510.26374, whose explicit evidence is a problem's own verdicts. Our implicit evidence
is the verdicts on all problems of the same language and level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float

from jaxgrpo.problems import Problem
from jaxgrpo.rollout.difficulty import DifficultyFilter


class Counts(NamedTuple):
    """Decayed counts of verdicts, as they were after a step."""

    solved: float
    failed: float
    step: int


NOTHING = Counts(0.0, 0.0, 0)


class PosteriorState(TypedDict):
    """A Posterior as JSON values, each Counts as a list."""

    problems: dict[str, list]
    kinds: dict[str, list]


@dataclass
class Posterior:
    """Beta posteriors of problems' pass rates, from verdicts that count less with each step.

    prior_solved, prior_failed: pseudo-verdicts from which every problem begins
    decay: what earlier verdicts are multiplied by with each step, for the policy has moved on
    kind_weight: pseudo-verdicts that all verdicts on problems of the same language and level count
        for together, at most
    """

    prior_solved: float = 1.0
    prior_failed: float = 1.0
    decay: float = 1.0
    kind_weight: float = 0.0
    problems: dict[str, Counts] = field(default_factory=dict)
    """By problem id."""
    kinds: dict[str, Counts] = field(default_factory=dict)
    """By language and level."""

    def record(self, problem: Problem, solved: int, judged: int, step: int) -> None:
        """Adds the verdicts of a group that was asked in a step."""
        by_name = [(self.problems, problem.id), (self.kinds, _kind(problem))]
        for counts, name in by_name:
            old = self._decayed(counts.get(name, NOTHING), step)
            counts[name] = Counts(
                old.solved + solved, old.failed + judged - solved, step
            )

    def beta(self, problem: Problem, step: int) -> tuple[float, float]:
        """Returns the two parameters of a problem's posterior, before the rollouts of a step."""
        own = self._decayed(self.problems.get(problem.id, NOTHING), step)
        kind = self._decayed(self.kinds.get(_kind(problem), NOTHING), step)
        total = kind.solved + kind.failed
        scale = min(1.0, self.kind_weight / total) if total else 0.0
        return (
            self.prior_solved + scale * kind.solved + own.solved,
            self.prior_failed + scale * kind.failed + own.failed,
        )

    def state(self) -> PosteriorState:
        """Returns JSON values that `load` takes."""
        return {
            "problems": {name: [*counts] for name, counts in self.problems.items()},
            "kinds": {name: [*counts] for name, counts in self.kinds.items()},
        }

    def load(self, state: PosteriorState) -> None:
        """Goes on with the verdicts that `state` was taken of."""
        self.problems = _from_json(state["problems"])
        self.kinds = _from_json(state["kinds"])

    def _decayed(self, counts: Counts, step: int) -> Counts:
        factor = self.decay ** (step - counts.step)
        return Counts(counts.solved * factor, counts.failed * factor, step)


def chance_to_pass(
    parameters: Sequence[tuple[float, float]],
    size: int,
    rule: DifficultyFilter,
    solved_before: int = 0,
    judged_before: int = 0,
) -> Float[np.ndarray, "n"]:
    """Returns how likely a group of each posterior is to pass the filter.

    The number of solved completions is Beta-binomial; its probability is summed over the numbers
    that pass. A filter by the variance of rewards is taken to be one by the variance of verdicts.

    parameters: of Beta distributions
    size: completions that are still to be judged
    solved_before, judged_before: what is known of the others of the group
    """
    # Not at the top: it takes seconds to import, and most runs do not need it.
    from scipy.stats import betabinom

    judged = judged_before + size
    passing = [n for n in range(size + 1) if rule.accepts(solved_before + n, judged)]
    solved, failed = np.array(parameters, float).reshape(-1, 2, 1).transpose(1, 0, 2)
    return betabinom.pmf(np.array(passing), size, solved, failed).sum(axis=1)


def _kind(problem: Problem) -> str:
    return f"{problem.language}/{problem.level}"


def _from_json(counts: dict[str, list]) -> dict[str, Counts]:
    return {
        name: Counts(solved, failed, int(step))
        for name, (solved, failed, step) in counts.items()
    }
