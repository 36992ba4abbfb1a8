"""Rewards for the length of a completion.

Lengths are in tokens of the policy, never in characters, which differ by language.
"""

import math
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, Reward
from jaxgrpo.rewards.gate import check_unbatched, is_satisfied


def _as_completion(text: str) -> Completion:
    """Returns the text, which must have a number of tokens.

    Raises TypeError for a plain string: without a length it would be rewarded as a short one.
    """
    if not isinstance(text, Completion):
        raise TypeError(
            f"a {type(text).__name__} does not know its tokens: "
            "give a problems.Completion(text, tokens, finished)"
        )
    return text


@dataclass(frozen=True)
class SoftOverlong:
    """A reward from -1.0 to 0.0: DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

        0 up to max_tokens - buffer tokens, then falling evenly to -1 at max_tokens, and -1 beyond

    The objective losses.DAPO has the same under its own max_tokens: use one of the two.

    max_tokens: tokens from which it is -1, the paper's L_max; mostly sampling.max_new_tokens
    buffer: tokens before that over which it falls, the paper's L_cache
    """

    max_tokens: int
    buffer: int

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise UserError(
                f"buffer is {self.buffer}: it must be above 0 and at most max_tokens, "
                f"which is {self.max_tokens}"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        # Negative once the completion has used up the tokens without punishment.
        tokens_left = self.max_tokens - self.buffer - _as_completion(text).tokens
        return min(0.0, max(-1.0, tokens_left / self.buffer))


@dataclass(frozen=True)
class Cosine:
    """A reward: right answers are better short, wrong ones better long (arXiv 2502.03373, 4.2).

        right, wrong    end + (start - end) (1 + cos(pi tokens / max_tokens)) / 2,
                        from start at no tokens to end at max_tokens
        exceed          where the completion was cut off or has max_tokens tokens or more

    The values are the paper's. `correct` is called only for completions that are not too long;
    where its verdict is missing, this one is missing, too.

    correct: the reward whose 1.0 means right
    max_tokens: the paper's L_max; mostly sampling.max_new_tokens
    right: the start and the end of right answers
    wrong: the start and the end of wrong answers
    exceed: the value of completions that are too long
    """

    correct: Reward
    max_tokens: int
    right: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    exceed: float = -10.0

    def __post_init__(self) -> None:
        check_unbatched("correct", self.correct)
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        # `exceed` is a single number: with a zero beside it, it takes the same check.
        pairs = {"right": self.right, "wrong": self.wrong, "exceed": (0.0, self.exceed)}
        for name, values in pairs.items():
            if len(values) != 2 or not all(map(math.isfinite, values)):
                raise UserError(
                    f"{name} is {getattr(self, name)}: "
                    "it must be finite, right and wrong two numbers each"
                )

    def __call__(self, problem: Problem, text: str) -> float:
        completion = _as_completion(text)
        if completion.tokens >= self.max_tokens or not completion.finished:
            return self.exceed
        is_right = is_satisfied(self.correct, problem, text)
        start, end = self.right if is_right else self.wrong
        cosine = math.cos(math.pi * completion.tokens / self.max_tokens)
        return end + (start - end) * (1 + cosine) / 2
