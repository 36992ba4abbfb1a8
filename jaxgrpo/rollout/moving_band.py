"""The band of each step: its ends may move evenly, or so that a share of the groups is kept."""

from dataclasses import dataclass, replace
from fractions import Fraction

from jaxgrpo.rollout.difficulty import DifficultyFilter, exact

INNERMOST = Fraction(1, 1000)
"""An end that a target moves stays so far from 0 or 1: groups without a variance stay outside."""


@dataclass(frozen=True)
class MovingBand:
    """Makes the filter of each step.

    first: that of the first step
    last_low, last_high: the ends after `steps` steps; in between they move evenly
    steps: 0: they do not move
    target_kept: share of the groups that were asked which should pass; 0: there is no target. Both
        ends move outwards by the same margin, which grows by `rate` times what is missing.
    """

    first: DifficultyFilter
    last_low: float = 0.0
    last_high: float = 1.0
    steps: int = 0
    target_kept: float = 0.0
    rate: float = 0.1

    def at(self, step: int, margin: float = 0.0) -> DifficultyFilter:
        """Returns the filter of a step, from 1.

        margin: of `next_margin`, 0 at the first step
        """
        low = exact(self.first.low)
        high = exact(self.first.high)
        if self.steps:
            # Exactly: rounding would decide about pass rates that lie on the way.
            moved = min(Fraction(step - 1, self.steps), Fraction(1))
            low += moved * (exact(self.last_low) - low)
            high += moved * (exact(self.last_high) - high)
        if self.target_kept:
            middle = (low + high) / 2
            outer_low = min(low, INNERMOST)
            outer_high = max(high, 1 - INNERMOST)
            low = min(max(low - exact(margin), outer_low), middle)
            high = max(min(high + exact(margin), outer_high), middle)
        return replace(self.first, low=low, high=high)

    def next_margin(self, margin: float, kept: float) -> float:
        """Returns the margin of the next step; it stays where there is no target.

        kept: share of the groups that passed in this step
        """
        if not self.target_kept:
            return margin
        # Beyond that neither end moves any more.
        return min(max(margin + self.rate * (self.target_kept - kept), -0.5), 0.5)
