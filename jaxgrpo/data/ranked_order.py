"""Orders problems by a ranking: window by window of the seed's order, the best of each first.

    the seed's order -> a window -> ranked -> some are asked, the others passed over

Each problem is asked or passed over once in a pass over the data.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol, runtime_checkable

from jaxgrpo.data.order import ProblemOrder
from jaxgrpo.problems import Problem


@runtime_checkable
class Ranking(Protocol):
    """Says which problems are asked first, and which are not asked at the moment."""

    def scores(self, problems: Sequence[Problem]) -> Sequence[float]:
        """Returns a score for each problem: the greatest is asked first."""
        ...

    def wakes_at(self, problem: Problem) -> int:
        """Returns the first pass over the data in which the problem may be asked again."""
        ...

    def visits(self, problem: Problem) -> int:
        """Returns how often the problem has been asked."""
        ...


class Position(NamedTuple):
    """A position in the order.

    end: where the window ends in the seed's order
    ranked: those positions of the window whose problems are asked, in that order
    taken: how many of them have been handed out
    """

    end: int
    ranked: tuple[int, ...]
    taken: int


class RankedOrder:
    """Hands out problems as `ProblemOrder` does, in the order of a ranking.

    A window is ranked when its first problem is taken, by what is known then.

    order: the seed's order
    window: problems that are ranked together, never of two passes; 0: a whole pass
    share: how many of a window are asked, at least 1; the others are passed over
    review: how many of these are not the next by rank, but those of the rest that were asked least
        often, resting or not
    """

    def __init__(
        self,
        order: ProblemOrder,
        ranking: Ranking,
        window: int = 0,
        share: float = 1.0,
        review: float = 0.0,
    ):
        self._order = order
        self._ranking = ranking
        self._window = min(window, len(order)) or len(order)
        self._share = Fraction(str(share))
        self._review = Fraction(str(review))
        self._position = Position(0, (), 0)

    @property
    def position(self) -> Position:
        """Returns what `seek` goes back to."""
        return self._position

    @property
    def epoch(self) -> int:
        """Returns the pass that the next problem belongs to, from 0."""
        end, ranked, taken = self._position
        # Windows end at the end of a pass.
        in_window = taken < len(ranked)
        return (end - in_window) // len(self._order)

    def take(self, count: int) -> list[Problem]:
        """Returns the next `count` problems."""
        problems = []
        for _ in range(count):
            position = self._position
            if position.taken == len(position.ranked):
                position = self._next_window(position.end)
            problems.append(self._order.at(position.ranked[position.taken]))
            self._position = position._replace(taken=position.taken + 1)
        return problems

    def seek(self, position: Position) -> None:
        """Goes on from a position."""
        self._position = position

    def state(self) -> dict[str, object]:
        """Returns the JSON values that a checkpoint keeps."""
        end, ranked, taken = self._position
        return self._order.state() | {"position": end, "ranked": list(ranked[taken:])}

    def restore(self, state: Mapping) -> None:
        """Goes on where `state` was taken; raises UserError as `ProblemOrder.restore`."""
        self._order.restore(state)
        self._position = Position(state["position"], tuple(state["ranked"]), 0)

    def _next_window(self, start: int) -> Position:
        """Returns the beginning of the window that begins at a position of the seed's order."""
        size = len(self._order)
        epoch = start // size
        end = min(start + self._window, (epoch + 1) * size)
        # 1. Those that may be asked, the best first, and of equal ones the seed's first.
        window = range(start, end)
        problems = [self._order.at(position) for position in window]
        wakes_at = [self._ranking.wakes_at(problem) for problem in problems]
        scores = self._ranking.scores(problems)
        by_score = sorted(range(end - start), key=lambda place: -scores[place])
        awake = [place for place in by_score if wakes_at[place] <= epoch]
        # 2. So many of them, and for some of these who has been asked least often.
        count = max(int(self._share * len(problems)), 1)
        reviews = self._reviews_until(end) - self._reviews_until(start)
        asked = awake[: count - reviews]
        others = sorted(set(by_score) - set(asked))
        others.sort(key=lambda place: self._ranking.visits(problems[place]))
        asked += others[:reviews]
        # 3. Where all rest, the one that has rested for longest: problems never end.
        if not asked:
            asked = [min(others, key=lambda place: wakes_at[place])]
        return Position(end, tuple(window[place] for place in asked), 0)

    def _reviews_until(self, position: int) -> int:
        """Returns the reviews that are due by a position of the seed's order, in all."""
        return int(self._review * self._share * position)
