"""Orders the problems that are asked: each once a pass over the data, each pass in a new order."""

import copy
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgrpo.data.mixture import MixedProblems
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems


class ProblemOrder:
    """Hands out problems in an order that is a function of the seed and the position alone.

    Of a mixture's parts each has an order and passes of its own, and they take turns by weight.

    Grain permutes indices without a table of them, so a position far ahead costs no more than the
    first one, and a problem is made or read when it is its turn. The state is therefore a number:
    `order.restore(state)` goes on exactly where `state = order.state()` was taken, in the middle of
    a pass too.

    Raises UserError without problems, or for a seed outside [0, 2**32), which is Grain's range.
    """

    def __init__(self, problems: Problems, seed: int):
        if len(problems) == 0:
            raise UserError("there are no problems to ask; check --config.data")
        if not 0 <= seed < 2**32:
            raise UserError(
                f"the seed {seed} is not in [0, 2**32); set --config.seed=0"
            )
        self._problems = problems
        self._seed = seed
        self._index_at = _index_order(problems, seed)
        self._position = 0

    def __len__(self) -> int:
        """Returns the number of problems, which a pass over the data has."""
        return len(self._problems)

    @property
    def position(self) -> int:
        """Returns the number of problems that have been handed out, over all passes."""
        return self._position

    @property
    def epoch(self) -> int:
        """Returns the pass that the next problem belongs to, from 0.

        Of a mixture: how many times as many problems as there are have been handed out.
        """
        return self._position // len(self._problems)

    def take(self, count: int) -> list[Problem]:
        """Returns the next `count` problems; past the end of a pass it goes on into the next."""
        positions = range(self._position, self._position + count)
        problems = [self.at(position) for position in positions]
        # Only now: a problem that cannot be read leaves the position as it was.
        self._position += count
        return problems

    def at(self, position: int) -> Problem:
        """Returns the problem at a position, over all passes."""
        return self._problems[self._index_at(position)]

    def seek(self, position: int) -> None:
        """Goes on as if `position` problems had been handed out."""
        self._position = position

    def state(self) -> dict[str, int]:
        """Returns the JSON values that a checkpoint keeps."""
        return {
            "position": self._position,
            "problems": len(self._problems),
            "seed": self._seed,
        }

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on where `state` was taken.

        Raises UserError if the state has another number of problems or another seed.
        """
        # With another number of problems or another seed the permutation is another one, in which
        # the saved position means nothing.
        current = self.state()
        hints = {"problems": "the same data", "seed": f"--config.seed={state['seed']}"}
        for name, hint in hints.items():
            if state[name] != current[name]:
                raise UserError(
                    f"the checkpoint's order of problems has {name}={state[name]} and this run's "
                    f"has {name}={current[name]}; resume with {hint}, or start in a new "
                    "--config.out"
                )
        self._position = state["position"]


def _index_order(problems: Problems, seed: int) -> Callable[[int], int]:
    """Returns the function from a position, however far, to the index of its problem."""
    # Not at the top: Grain imports jax, which a verifier's worker process must not import. Only
    # the process that trains makes a ProblemOrder.
    from grain import MapDataset

    def shuffled(indices: range, seed: int) -> MapDataset[int]:
        return MapDataset.source(indices).seed(seed).shuffle().repeat()

    if not isinstance(problems, MixedProblems):
        return shuffled(range(len(problems)), seed).__getitem__
    parts = [
        shuffled(indices, _part_seed(seed, part))
        for part, indices in enumerate(problems.ranges)
    ]
    # Fractions, because Grain makes whole numbers of them: 0.3 : 0.1 is 3 : 1.
    weights = [Fraction(str(weight)) for weight in problems.weights]
    return MapDataset.mix(parts, weights).__getitem__


def _part_seed(seed: int, part: int) -> int:
    """Returns the seed of a mixture's part: parts of one size are not in one order."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


@runtime_checkable
class Order(Protocol):
    """An order of problems, with a position that can be kept and sought."""

    @property
    def position(self) -> Any:
        """Returns what `seek` goes back to."""
        ...

    @property
    def epoch(self) -> int:
        """Returns the pass over the data that the next problem belongs to, from 0."""
        ...

    def take(self, count: int) -> list[Problem]:
        """Returns the next `count` problems."""
        ...

    def seek(self, position: Any) -> None:
        """Goes on from a position."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Returns the JSON values that a checkpoint keeps."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; raises UserError if it is another run's."""
        ...


class ProblemStream:
    """Iterates over an order's next problems, leaving out those that are not accepted.

    It looks ahead of the order, which stays behind the last problem that `mark_used` counted: that
    is the position that a checkpoint keeps.

    accepts: returns whether a problem may be asked, such as whether its prompt fits
    """

    def __init__(self, order: Order, accepts: Callable[[Problem], bool]):
        self.used = 0
        """Number of used problems of those handed out since the last `rewind`."""
        self.epoch = 0
        """The pass over the data that the last problem that was handed out belongs to, from 0."""
        self._order = order
        # A shallow copy has a position of its own, and shares the problems and the permutation.
        self._order_ahead = copy.copy(order)
        self._accepts = accepts
        # Of each problem that was handed out and not used: the order's position just after it.
        self._positions: list[Any] = []

    def __iter__(self) -> "ProblemStream":
        return self

    def __next__(self) -> Problem:
        problem = self._take()
        while not self._accepts(problem):
            problem = self._take()
        self._positions.append(self._order_ahead.position)
        return problem

    def _take(self) -> Problem:
        self.epoch = self._order_ahead.epoch
        (problem,) = self._order_ahead.take(1)
        return problem

    def mark_used(self, count: int) -> None:
        """Marks the next `count` of the problems that were handed out as used."""
        self.used += count
        self._order.seek(self._positions[count - 1])
        del self._positions[:count]

    def rewind(self) -> None:
        """Goes back: problems that were handed out and not used will be handed out again."""
        self.used = 0
        self._order_ahead.seek(self._order.position)
        self._positions.clear()
