"""Rewards made of rewards: one reward that counts only where another one gives 1.0.

Gate(languages.target_word_ratio, when=maths.accuracy)    language counts in right answers only
Gate(maths.accuracy, when=languages.Threshold())          answers count in the language only
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Reward, is_batched


@dataclass(frozen=True)
class Gate:
    """A reward that gives the value of `reward` where `when` gives exactly 1.0, and else 0.0.

    Where `when` gives another value, `reward` is not computed. Where either of the two raises an
    error or takes too long, the verdict is missing.

    reward: the reward whose value is given
    when: the reward that has to be 1.0 for that
    """

    reward: Reward
    when: Reward

    def __post_init__(self) -> None:
        check_unbatched("a gate's reward", self.reward)
        check_unbatched("a gate's when", self.when)

    def __call__(self, problem: Problem, text: str) -> float:
        if not is_satisfied(self.when, problem, text):
            return 0.0
        return self.reward(problem, text)


def check_unbatched(name: str, reward: Callable) -> None:
    """Raises UserError unless the reward is a function that scores one completion at a time.

    name: the setting that holds the reward, for the message
    """
    if not callable(reward) or is_batched(reward):
        raise UserError(
            f"{name} is {reward!r}: it must be a function of (problem, text), and not a batched one"
        )


def is_satisfied(reward: Reward, problem: Problem, text: str) -> bool:
    """Returns whether a reward gives exactly 1.0.

    Raises ValueError or TypeError if it gives no finite number: then there is no verdict.
    """
    value = reward(problem, text)
    if not math.isfinite(value):
        raise ValueError(f"{reward!r} gave {value}")
    return value == 1.0
