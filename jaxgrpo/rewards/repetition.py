"""Does the completion say the same again and again?"""

import math
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.languages.words import split


@dataclass(frozen=True)
class Repetition:
    """A reward from max_penalty to 0.0: max_penalty times the share of n-grams that came before (arXiv 2502.03373, C.2).

        max_penalty * (1 - different n-grams / n-grams); 0.0 of a text with fewer than n words

    As in the paper's code and in open-r1, but for what a word is: there, what stands between spaces, so that a Chinese,
    Japanese or Thai text is hardly a word; here, a segment of Unicode's word segmentation (see words.split), so that it
    has as many as they have. Signs are words, too: a model can be caught in "= = =".

    n: words of an n-gram
    max_penalty: for nothing but repetition; at most 0
    """

    n: int = 20
    max_penalty: float = -1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n is {self.n}: an n-gram has at least 1 word")
        if not -math.inf < self.max_penalty <= 0:
            raise UserError(f"max_penalty is {self.max_penalty}: it must be finite and at most 0")

    def __call__(self, problem: Problem, text: str) -> float:
        words = split(text)
        grams = [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]
        return self.max_penalty * (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
