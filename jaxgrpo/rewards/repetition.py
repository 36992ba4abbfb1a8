"""A penalty for completions that say the same again and again."""

import math
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.languages.words import split


@dataclass(frozen=True)
class Repetition:
    """A reward from max_penalty to 0.0: max_penalty times the share of n-grams that came before.

        max_penalty * (1 - different n-grams / n-grams); 0.0 for a text with fewer than n words

    This is the penalty of arXiv 2502.03373, section C.2, and of open-r1, but for the words. There,
    a word is what stands between spaces, so that a Chinese, Japanese or Thai text has hardly any.
    Here, it is a segment of Unicode's word segmentation (see `words.split`), so that these texts
    have as many as others. Signs are words, too: a model can be caught in "= = =".

    n: words of an n-gram
    max_penalty: the value for nothing but repetition; at most 0
    """

    n: int = 20
    max_penalty: float = -1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"n is {self.n}: an n-gram has at least 1 word")
        if not -math.inf < self.max_penalty <= 0:
            raise UserError(
                f"max_penalty is {self.max_penalty}: it must be finite and at most 0"
            )

    def __call__(self, problem: Problem, text: str) -> float:
        words = split(text)
        starts = range(len(words) - self.n + 1)
        ngrams = [tuple(words[start : start + self.n]) for start in starts]
        if not ngrams:
            return 0.0
        num_repeated = len(ngrams) - len(set(ngrams))
        return self.max_penalty * num_repeated / len(ngrams)
