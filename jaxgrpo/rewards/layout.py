r"""Is the completion laid out as asked?

think_then_answer                           <think> ... </think> ... \boxed{answer}
Tags()                                      <think> ... </think> <answer> ... </answer>
Pattern(r"(?s)Thought: .*\nAnswer: \d+")    whatever a regular expression says
"""

from dataclasses import dataclass

import regex as re

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.maths.verifier import boxes
from jaxgrpo.rewards.prose import CLOSES_THOUGHTS, OPENS_THOUGHTS, closing_tag


def think_then_answer(problem: Problem, text: str) -> float:
    r"""1.0 if the text is one think block and then one answer, else 0.0.

    One `<think>`, before which there is nothing but space; one `</think>` after it; and after that exactly one
    `\boxed{...}`, balanced and not empty. What the block and the box say does not matter here.
    Another pair of tags that models think in, such as `[THINK]`, does as well: see `prose`.
    """
    opened = OPENS_THOUGHTS.findall(text)
    closed = CLOSES_THOUGHTS.findall(text)
    if len(opened) != 1 or closed != [closing_tag(opened[0])]:
        return 0.0
    if not text.lstrip().startswith(opened[0]):
        return 0.0
    answer = text.partition(closed[0])[2]
    found = boxes(answer)
    return float(answer.count(r"\boxed") == len(found) == 1 and bool(found[0][1].strip()))


@dataclass(frozen=True)
class Tags:
    """A reward: 1.0 if the text is `<think> ... </think> <answer> ... </answer>` and nothing more, else 0.0.

    Each of the four tags once, in this order; nothing but space before, between and after; an answer that is not empty.

    think: the name of the first pair of tags
    answer: the name of the second
    """

    think: str = "think"
    answer: str = "answer"

    def __post_init__(self) -> None:
        for name in (self.think, self.answer):
            if not re.fullmatch(r"\w[\w.:-]*", name):
                raise UserError(
                    f"a tag's name is {name!r}: it must be letters and digits, such as think"
                )
        if self.think == self.answer:
            raise UserError(f"both tags are {self.think!r}: they must have two names")

    def __call__(self, problem: Problem, text: str) -> float:
        tags = [f"<{self.think}>", f"</{self.think}>", f"<{self.answer}>", f"</{self.answer}>"]
        parts = re.split(f"({'|'.join(map(re.escape, tags))})", text)
        if parts[1::2] != tags:
            return 0.0
        before, _, between, answer, after = parts[::2]
        return float(not (before + between + after).strip() and bool(answer.strip()))


@dataclass(frozen=True)
class Pattern:
    r"""A reward: 1.0 if the whole text matches a regular expression, else 0.0.

    In the syntax of the library regex: that of re, and more, such as \p{Han}. A dot is no line's end: begin with (?s) where
    it shall be one. Where an expression takes for ever, the pool's deadline ends it, and the verdict is missing.

    regex: the expression
    """

    regex: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.regex)
        except Exception as error:  # of some nonsense regex says more than re.error
            raise UserError(f"regex is {self.regex!r}: {error}") from error

    def __call__(self, problem: Problem, text: str) -> float:
        return float(re.fullmatch(self.regex, text) is not None)
