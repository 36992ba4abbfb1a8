"""Which problems are asked first: by a fixed difficulty, an estimate, or the chance to pass.

These are rankings of data.ranked_order. They look at verdicts alone, which all processes have, so
all of them ask the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from jaxgrpo.problems import Problem
from jaxgrpo.rollout.difficulty import DifficultyFilter, History, exact
from jaxgrpo.rollout.posterior import Posterior, PosteriorState, chance_to_pass

DIGITS = 12
"""Digits of a score that decide. Of equal scores, rounding must not decide which is first."""


@dataclass
class Rests:
    """Problems that rest: solved-out ones and hopeless ones, for longer each time.

    A problem whose pass rate is 0 or at least `retire` is passed over in the next `first` passes
    over the data, then asked again. If that is so again it rests for twice as long, and so on; any
    other pass rate ends that. Sources: arXiv 2510.13786 (retires at 0.9), arXiv 2506.02177.

    retire: the least pass rate of a solved-out problem
    first: passes; 0: none rests
    """

    retire: float = 0.9
    first: int = 0
    streaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By problem id: how often in a row it was so, and the pass in which it is asked again."""

    def record(self, problem_id: str, solved: int, judged: int, epoch: int) -> None:
        """Notes how often a problem was solved in a pass over the data."""
        is_extreme = solved == 0 or solved >= exact(self.retire) * judged
        if not (self.first and judged and is_extreme):
            self.streaks.pop(problem_id, None)
            return
        streak = self.streaks.get(problem_id, (0, 0))[0] + 1
        gap = self.first * 2 ** (streak - 1)
        self.streaks[problem_id] = (streak, epoch + 1 + gap)

    def wakes_at(self, problem_id: str) -> int:
        """Returns the first pass in which a problem may be asked again."""
        return self.streaks.get(problem_id, (0, 0))[1]


Scores = Callable[[Sequence[Problem]], Sequence[float]]


class ProposalsState(TypedDict):
    """Proposals as JSON values."""

    posterior: PosteriorState
    streaks: dict[str, list[int]]


@dataclass
class Proposals:
    """Ranks problems by what a run has seen of them, or by a difficulty that is known beforehand.

    by: "difficulty", "estimate" or "chance", as config.Order has them; "seed": all alike
    group_size: G, completions that are judged of a problem
    measured: pass rates by problem id, for "difficulty"; where empty, levels are that
    """

    by: str
    group_size: int
    history: History
    posterior: Posterior
    rests: Rests
    measured: Mapping[str, float] = field(default_factory=dict)
    step: int = 1
    """The step whose groups are asked."""
    filter: DifficultyFilter = field(
        default_factory=lambda: DifficultyFilter("off", 0.0, 1.0)
    )
    """Its filter."""

    def begin(self, step: int, rule: DifficultyFilter) -> None:
        """Begins a step: from now on problems are ranked for its filter."""
        self.step = step
        self.filter = rule

    def record(
        self, problem: Problem, solved: int, judged: int, step: int, epoch: int
    ) -> None:
        """Notes the verdicts on a group that was asked in a step."""
        self.posterior.record(problem, solved, judged, step)
        self.rests.record(problem.id, solved, judged, epoch)

    def scores(self, problems: Sequence[Problem]) -> list[float]:
        """Returns a score for each problem: the greatest is asked first."""
        return [round(float(score), DIGITS) for score in self._scores(problems)]

    def beta(self, problem: Problem) -> tuple[float, float]:
        """Returns the parameters of a problem's posterior, before the rollouts of this step."""
        return self.posterior.beta(problem, self.step)

    def wakes_at(self, problem: Problem) -> int:
        """Returns the first pass over the data in which the problem may be asked again."""
        return self.rests.wakes_at(problem.id)

    def visits(self, problem: Problem) -> int:
        """Returns how often the problem has been asked."""
        return self.history.visits.get(problem.id, 0)

    def state(self) -> ProposalsState:
        """Returns JSON values that `load` takes."""
        streaks = {name: [*streak] for name, streak in self.rests.streaks.items()}
        return {"posterior": self.posterior.state(), "streaks": streaks}

    def load(self, state: ProposalsState) -> None:
        """Goes on with what `state` was taken of."""
        self.posterior.load(state["posterior"])
        self.rests.streaks = {
            name: (streak, epoch) for name, (streak, epoch) in state["streaks"].items()
        }

    def _scores(self, problems: Sequence[Problem]) -> Sequence[float]:
        if self.by == "seed":
            return [0.0] * len(problems)
        if self.by == "difficulty":
            return [self._ease(problem) for problem in problems]
        parameters = [self.beta(problem) for problem in problems]
        if self.by == "estimate":
            return [solved / (solved + failed) for solved, failed in parameters]
        return chance_to_pass(parameters, self.group_size, self.filter).tolist()

    def _ease(self, problem: Problem) -> float:
        """Returns the measured pass rate, below all of them where there is none, or -level."""
        if self.measured:
            return self.measured.get(problem.id, -1.0)
        return -float(problem.level)
