"""Makes examples for supervised training: prompts as they are asked, with worked solutions.

A row, and the config that learns from it:

    {"question": "What is 6 * 7?", "thoughts": "6 * 7 = 42", "answer": 42}
    SFTConfig(data=Table(path="mine.jsonl", solution="thoughts"),
              solution=Solution(layout=THINK_THEN_ANSWER))
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxgrpo.data import prompt_filter
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.text.language_codes import language_code
from jaxgrpo.text.tokenizer import Tokenizer

THINK_THEN_ANSWER = "<think>\n{solution}\n</think>\n\\boxed{{answer}}"
"""The layout that `rewards.layout.think_then_answer` looks for."""


class Example(NamedTuple):
    """Token ids of a prompt, which is read, and of its completion, which is learned.

    The end token is the completion's last.
    """

    prompt: list[int]
    completion: list[int]

    @property
    def ids(self) -> list[int]:
        """Returns the tokens of both."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Solution:
    """Writes a completion from the worked solution that comes with a problem.

    field: of Problem.meta that holds the solution. GSM8K, translated GSM8K, NuminaMath and rows
      that have such a field call it "solution".
    layout: the completion; {solution} and {answer} are put in.
    """

    field: str = "solution"
    layout: str = "{solution}"

    def __call__(self, problem: Problem) -> str:
        """Returns the completion. Raises UserError if the problem has no solution as text."""
        text = problem.meta.get(self.field)
        if not isinstance(text, str) or not text.strip():
            there = ", ".join(sorted(problem.meta)) or "nothing"
            raise UserError(
                f"the problem {problem.id!r} has no text {self.field!r} to learn, but {there}; set "
                "--config.data.solution to a Table's field that holds worked solutions, or "
                "--config.solution.field to what another source calls them"
            )
        values = {"solution": text, "answer": problem.answer}
        # At once: a solution may itself have {answer} in it.
        return re.sub(
            r"\{(solution|answer)\}", lambda match: values[match[1]], self.layout
        )


@dataclass(frozen=True)
class ExampleMaker:
    """Makes the example of a problem.

    The prompt is laid out as reinforcement learning asks it; the completion ends with the token
    that ends an assistant's turn. Turns before the last are read, not learned.

    system: a system message before every prompt; "": none
    solution: writes the completion of a problem
    width: tokens of an example, at most
    vocab_size: rows of the model's embedding
    positions: that the model was made for; None: not known
    """

    tokenizer: Tokenizer
    system: str
    solution: Callable[[Problem], str]
    width: int
    vocab_size: int
    positions: int | None = None

    def __call__(self, problem: Problem) -> Example:
        """Returns the example. Raises UserError if there is nothing to learn."""
        text = self.solution(problem)
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"the solution of the problem {problem.id!r} is {text!r}: it must be a text; mend "
                "the data, or the function --config.solution"
            )
        prompt = self.tokenizer.prompt(
            problem.prompt, self.system, problem.language, problem.context
        )
        # What the prompt has opened the completion does not open again.
        text = text.removeprefix(self.tokenizer.completion_prefix)
        return Example(prompt, [*self.tokenizer.encode(text), self.tokenizer.end_id])

    def token_ids(self, problem: Problem) -> list[int]:
        """Returns the tokens of a problem's example."""
        return self(problem).ids

    def accepts(self, problem: Problem) -> bool:
        """Returns whether the example fits, and the problem's language can be told."""
        return self.accepted_length(problem) > 0

    def accepted_length(self, problem: Problem) -> int:
        """Returns the tokens of a problem's example; 0 where it is left out."""
        ids = self.token_ids(problem)
        has_rows = prompt_filter.has_rows(ids, self.vocab_size)
        is_known = language_code(problem.language) is not None
        is_learned = len(ids) <= self.max_tokens and has_rows and is_known
        return len(ids) if is_learned else 0

    @property
    def max_tokens(self) -> int:
        """Returns the tokens that an example may have."""
        return min(self.width, self.positions or self.width)

    def check(self, problems: Problems, kind: str) -> str | None:
        """Returns a line that counts the examples that are left out, None if none is.

        Raises UserError if there is no problem, if no example fits, or if a language cannot be
        told.

        kind: "training" or "held-out", for the messages
        """
        # 1. How long the first examples are.
        checked = min(len(problems), prompt_filter.MAX_CHECKED)
        lengths = prompt_filter.known_lengths(
            problems,
            f"{kind} examples",
            self.token_ids,
            self.vocab_size,
        )
        without_rows = checked - len(lengths)
        # 2. Examples that are too long, and how much room would be enough.
        too_long = sum(length > self.max_tokens for length in lengths)
        first = "the first " if checked < len(problems) else ""
        among = f"{too_long:,} of {first}{checked:,} {kind} examples"
        greatest = f"packing.width={max(lengths)} takes all"
        if self.positions is not None and max(lengths) > self.positions:
            greatest = f"{self.positions} is what the model has positions for"
        if too_long == len(lengths):
            raise UserError(
                f"{among} are longer than {self.max_tokens} tokens, the shortest {min(lengths)}: "
                f"raise packing.width, or take shorter ones; {greatest}"
            )
        notes = []
        if too_long:
            notes.append(
                f"{among} are longer than {self.max_tokens} tokens and left out; {greatest}"
            )
        if without_rows:
            notes.append(prompt_filter.rows_note(without_rows, f"{kind} examples"))
        return "; ".join(notes) or None
