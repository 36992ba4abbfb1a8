"""The order in which problems are asked: pass after pass, each problem once a pass, each pass in a new order."""

import copy
from collections.abc import Callable
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems


class ProblemOrder:
    """Hands out problems in an order that is a function of the seed and the position alone.

    Grain permutes indices without a table of them, so a place far ahead costs what the first one does, and a problem is
    made or read when it is its turn. The state is therefore a number: `order.restore(state)` goes on exactly where
    `state = order.state()` was taken, in the middle of a pass too.

    Raises UserError without problems, or for a seed outside [0, 2**32), which is Grain's range.
    """

    def __init__(self, problems: Problems, seed: int):
        if len(problems) == 0:
            raise UserError("there are no problems to ask; check --config.data")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed {seed} is not in [0, 2**32); set --config.seed=0")
        # Here and not at the top: Grain imports jax, which a verifier's worker process must not. Only the process that
        # trains makes an Order.
        import grain

        self._problems = problems
        self._seed = seed
        self._indices = grain.MapDataset.source(range(len(problems))).seed(seed).shuffle().repeat()
        self._position = 0

    @property
    def position(self) -> int:
        """How many problems have been handed out, over all passes."""
        return self._position

    @property
    def epoch(self) -> int:
        """The pass that the next problem belongs to, from 0."""
        return self._position // len(self._problems)

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems; a count past the end of a pass goes on into the next."""
        places = range(self._position, self._position + count)
        problems = [self._problems[self._indices[place]] for place in places]
        self._position += count
        return problems

    def seek(self, position: int) -> None:
        """Goes on from where so many problems have been handed out."""
        self._position = position

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; JSON values."""
        return {"position": self._position, "problems": len(self._problems), "seed": self._seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. UserError if it is of another number of problems or another seed."""
        here = self.state()
        for name, mend in (
            ("problems", "the same data"),
            ("seed", f"--config.seed={state['seed']}"),
        ):
            if state[name] != here[name]:
                raise UserError(
                    f"the checkpoint's order of problems has {name}={state[name]} and this run's has "
                    f"{name}={here[name]}; resume with {mend}, or start in a new --config.out"
                )
        self._position = state["position"]


class ProblemStream:
    """An iterator over an order's next problems whose prompts fit; the others are passed over.

    It looks ahead: the order itself stands after the last problem that `use` says was used, which a checkpoint can keep.
    """

    def __init__(self, order: ProblemOrder, fits: Callable[[Problem], bool]):
        self.used = 0
        """Of the problems handed out since the last `rewind`."""
        self._order, self._ahead, self._fits = order, copy.copy(order), fits
        self._positions: list[int] = []

    def __iter__(self) -> "ProblemStream":
        return self

    def __next__(self) -> Problem:
        (problem,) = self._ahead.take(1)
        while not self._fits(problem):
            (problem,) = self._ahead.take(1)
        self._positions.append(self._ahead.position)
        return problem

    def use(self, count: int) -> None:
        """The next `count` of those handed out have been used."""
        self.used += count
        self._order.seek(self._positions[count - 1])
        del self._positions[:count]

    def rewind(self) -> None:
        """What was handed out and not used will be handed out again."""
        self.used = 0
        self._ahead.seek(self._order.position)
        self._positions.clear()
