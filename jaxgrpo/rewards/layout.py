r"""Rewards for the layout of a completion.

think_then_answer                           <think> ... </think> ... \boxed{answer}
Tags()                                      <think> ... </think> <answer> ... </answer>
Pattern(r"(?s)Thought: .*\nAnswer: \d+")    any layout that a regular expression describes
"""

from dataclasses import dataclass

import regex as re

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.maths.extraction import find_boxes
from jaxgrpo.text.thoughts import CLOSES_THOUGHTS, OPENS_THOUGHTS, closing_tag


def think_then_answer(problem: Problem, text: str) -> float:
    r"""Returns 1.0 if the text is one think block and then one answer, else 0.0.

    The text has one `<think>`, before which there is only white space; one `</think>` after it; and
    after that exactly one `\boxed{...}`, balanced and not empty. The content of the block and of
    the box is not judged. Another pair of tags that models think in, such as `[THINK]`, does as
    well: see `prose`.
    """
    opening_tags = OPENS_THOUGHTS.findall(text)
    closing_tags = CLOSES_THOUGHTS.findall(text)
    if len(opening_tags) != 1 or closing_tags != [closing_tag(opening_tags[0])]:
        return 0.0
    if not text.lstrip().startswith(opening_tags[0]):
        return 0.0
    _, _, answer = text.partition(closing_tags[0])
    boxes = find_boxes(answer)
    # "\boxed" is counted besides the balanced boxes, so that a box never closed is one too many.
    has_one_box = answer.count(r"\boxed") == len(boxes) == 1
    return float(has_one_box and bool(boxes[0].text.strip()))


@dataclass(frozen=True)
class Tags:
    """A reward: 1.0 for `<think> ... </think> <answer> ... </answer>` and nothing more, else 0.0.

    Each of the four tags stands once, in this order, with only white space before, between and
    after the two pairs. The answer is not empty.

    think: the name of the first pair of tags
    answer: the name of the second
    """

    think: str = "think"
    answer: str = "answer"

    def __post_init__(self) -> None:
        for name in (self.think, self.answer):
            # "think", "최종", "a.b"
            if not re.fullmatch(r"\w[\w.:-]*", name):
                raise UserError(
                    f"a tag's name is {name!r}: it must be letters and digits, such as think"
                )
        if self.think == self.answer:
            raise UserError(f"both tags are {self.think!r}: they must have two names")

    def __call__(self, problem: Problem, text: str) -> float:
        tags = [
            f"<{self.think}>",
            f"</{self.think}>",
            f"<{self.answer}>",
            f"</{self.answer}>",
        ]
        any_tag = "|".join(map(re.escape, tags))
        # With a group in the pattern, split also returns the tags: text, tag, text, tag, ..., text.
        parts = re.split(f"({any_tag})", text)
        if parts[1::2] != tags:
            return 0.0
        before, _, between, answer, after = parts[::2]
        has_other_text = bool((before + between + after).strip())
        return float(not has_other_text and bool(answer.strip()))


@dataclass(frozen=True)
class Pattern:
    r"""A reward: 1.0 if the whole text matches a regular expression, else 0.0.

    The syntax is that of the library regex: that of re, and more, such as \p{Han}. A dot does not
    match the end of a line: begin with (?s) where it should. Where an expression takes for ever,
    the pool's deadline ends it, and the verdict is missing.

    regex: the expression
    """

    regex: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.regex)
        except (
            Exception
        ) as error:  # regex raises other errors than re.error for some nonsense
            raise UserError(f"regex is {self.regex!r}: {error}") from error

    def __call__(self, problem: Problem, text: str) -> float:
        return float(re.fullmatch(self.regex, text) is not None)
