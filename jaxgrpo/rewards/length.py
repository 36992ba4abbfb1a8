"""How long is the completion? In tokens, as the policy counts them: never in characters, which differ by language."""

import math
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, Reward
from jaxgrpo.rewards.gate import check_single, is_won


def completion(text: str) -> Completion:
    """The text, which must know its tokens. TypeError for a plain one: taken for a short one it would be rewarded."""
    if not isinstance(text, Completion):
        raise TypeError(
            f"a {type(text).__name__} does not know its tokens: give a problems.Completion(text, tokens, finished)"
        )
    return text


@dataclass(frozen=True)
class SoftOverlong:
    """A reward from -1.0 to 0.0: the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).

        0 up to max_tokens - buffer tokens, then falling evenly to -1 at max_tokens, and -1 beyond

    The objective losses.DAPO has the same under its own max_tokens: use one of the two.

    max_tokens: tokens at which the punishment is whole, the paper's L_max; mostly sampling.max_new_tokens
    buffer: tokens before that over which it grows, the paper's L_cache
    """

    max_tokens: int
    buffer: int

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise UserError(
                f"buffer is {self.buffer}: it must be above 0 and at most max_tokens, which is {self.max_tokens}"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        left = self.max_tokens - self.buffer - completion(text).tokens
        return min(0.0, max(-1.0, left / self.buffer))


@dataclass(frozen=True)
class Cosine:
    """A reward: right answers are better short, wrong ones better long (arXiv 2502.03373, section 4.2).

        right or wrong: end + (start - end) (1 + cos(pi tokens / max_tokens)) / 2, from start at no tokens to end at max_tokens
        exceed          where the completion was cut off or has max_tokens tokens or more, right or wrong

    The values are the paper's. `correct` is called for what is not too long; what is missing there is missing here.

    correct: the reward whose 1.0 means right
    max_tokens: the paper's L_max; mostly sampling.max_new_tokens
    right: the start and the end of right answers
    wrong: the start and the end of wrong answers
    exceed: of completions that are too long
    """

    correct: Reward
    max_tokens: int
    right: tuple[float, float] = (2.0, 1.0)
    wrong: tuple[float, float] = (-10.0, 0.0)
    exceed: float = -10.0

    def __post_init__(self) -> None:
        check_single("correct", self.correct)
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}: it must be at least 1")
        for name, values in (
            ("right", self.right),
            ("wrong", self.wrong),
            ("exceed", (0.0, self.exceed)),
        ):
            if len(values) != 2 or not all(map(math.isfinite, values)):
                raise UserError(
                    f"{name} is {getattr(self, name)}: it must be finite, right and wrong two numbers each"
                )

    def __call__(self, problem: Problem, text: str) -> float:
        tokens = completion(text).tokens
        if tokens >= self.max_tokens or not completion(text).finished:
            return self.exceed
        start, end = self.right if is_won(self.correct, problem, text) else self.wrong
        return end + (start - end) * (1 + math.cos(math.pi * tokens / self.max_tokens)) / 2
