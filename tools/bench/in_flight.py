"""Steps of sampling whose unfinished completions go on in the next step (arXiv 2505.24298)."""

import statistics

from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.problems import Problem
from jaxgrpo.rollout.collect import CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.groups import SamplingRequest
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.types import Params
from tools.bench.turns import Result


def _accept(problem: Problem) -> bool:
    return True


class InFlightSteps:
    """Takes steps one after another from an endless stream of the same problems.

    Each takes as many groups as there are problems, the first that were launched.
    """

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        problems: list[Problem],
        request: SamplingRequest,
        params: Params,
    ):
        self._params = params
        self._weights = judge.initial_weights()
        self._stream = RolloutStream(
            engine,
            judge,
            ProblemStream(ProblemOrder(problems, seed=0), _accept),
            request,
            keep_in_flight=True,
        )
        count = len(problems)
        self._spec = CollectSpec(count, count, DifficultyFilter("off", 0.0, 1.0))
        self._metrics: list[dict[str, float]] = []
        # Fills the slots: later steps begin with what this one left in flight.
        self.step()

    def step(self) -> None:
        """Takes a step, whose policy is the same as the last one's."""
        collected = collect_groups(
            self._stream, self._params, self._spec, len(self._metrics), self._weights
        )
        self._metrics.append(collected.metrics)

    def result(self) -> Result:
        """Returns tokens a second and utilisation, the medians of the timed steps."""
        # The first was that, and the second compiles.
        timed = self._metrics[2:]
        return {
            f"in_flight_{name}": statistics.median(
                metrics[f"rollout/{name}"] for metrics in timed
            )
            for name in ("tokens_per_s", "utilisation", "age")
        }

    def close(self) -> None:
        """Gives up what is in flight."""
        self._stream.close()
