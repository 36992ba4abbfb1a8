"""Rewards made of rewards: one that is earned only where another is won.

Gate(languages.target_word_ratio, when=maths.accuracy)    the language counts only in right answers
Gate(maths.accuracy, when=languages.Threshold())          the answer counts only in the problem's language
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Reward, is_batched


@dataclass(frozen=True)
class Gate:
    """A reward: what `reward` gives where `when` gives exactly 1.0, else 0.0. Missing if either verdict cannot be had.

    Where `when` is not won, `reward` is not computed.

    reward: what is earned
    when: what has to be won for that
    """

    reward: Reward
    when: Reward

    def __post_init__(self) -> None:
        check_single("a gate's reward", self.reward)
        check_single("a gate's when", self.when)

    def __call__(self, problem: Problem, text: str) -> float:
        return self.reward(problem, text) if is_won(self.when, problem, text) else 0.0


def check_single(what: str, reward: Callable) -> None:
    """Raises UserError for what is no reward that scores one completion at a time."""
    if not callable(reward) or is_batched(reward):
        raise UserError(
            f"{what} is {reward!r}: it must be a function of (problem, text), and not a batched one"
        )


def is_won(reward: Reward, problem: Problem, text: str) -> bool:
    """Whether a reward gives exactly 1.0. ValueError or TypeError where it gives no finite number: that is no verdict."""
    value = reward(problem, text)
    if not math.isfinite(value):
        raise ValueError(f"{reward!r} gave {value}")
    return value == 1.0
