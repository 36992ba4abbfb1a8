"""Problems that a run can ask: short enough, in the vocabulary, in a language that can be told."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code
from jaxgrpo.text.tokenizer import Tokenizer

NO_PROBLEMS_HINTS = {
    "held-out": "set --config.evaluation.problems=0, or hold some out (--config.data)"
}
"""The mend where there are no problems of a kind."""

MAX_CHECKED = 2_000
"""Problems that are checked before a run begins. The others are checked when their turn comes, and
passed over if they do not fit."""


@dataclass(frozen=True)
class PromptFilter:
    """Accepts the problems that a run can ask.

    system: a system message before every prompt; "": none
    width: W, tokens of a prompt, at most
    vocab_size: rows of the model's embedding; a tokenizer may have special tokens that a text model
        has no row for
    max_width: the greatest width that the model has positions for beside the new tokens; None: not
        known
    """

    tokenizer: Tokenizer
    system: str
    width: int
    vocab_size: int
    max_width: int | None = None

    def token_ids(self, problem: Problem) -> list[int]:
        """Returns the tokens of a problem's prompt as it is asked."""
        return self.tokenizer.prompt(
            problem.prompt, self.system, problem.language, problem.context
        )

    def accepts(self, problem: Problem) -> bool:
        """Returns whether the prompt fits and its language can be told."""
        ids = self.token_ids(problem)
        if len(ids) > self.width or not self._has_rows(ids):
            return False
        return language_code(problem.language) is not None

    def take(self, problems: Problems, count: int) -> list[Problem]:
        """Returns the first `count` problems that are accepted, or as many as there are."""
        candidates = (problems[i] for i in range(len(problems)))
        return list(itertools.islice(filter(self.accepts, candidates), count))

    def check(self, problems: Problems, kind: str) -> str | None:
        """Returns a line that counts the prompts that are left out, None if none is.

        Raises UserError if there is no problem, if none is accepted, or if a language cannot be
        told.

        kind: "training" or "held-out", for the messages
        """
        # 1. How long the first prompts are.
        checked = min(len(problems), MAX_CHECKED)
        lengths = known_lengths(
            problems, f"{kind} prompts", self.token_ids, self.vocab_size
        )
        without_rows = checked - len(lengths)
        # 2. Prompts that are too long, and how much room would be enough.
        too_long = sum(length > self.width for length in lengths)
        first = "the first " if checked < len(problems) else ""
        among = f"{too_long:,} of {first}{checked:,} {kind} prompts"
        greatest = f"{max(lengths)} takes all"
        if self.max_width is not None and max(lengths) > self.max_width:
            greatest = (
                f"{self.max_width} is what the model has positions for, beside "
                "sampling.max_new_tokens"
            )
        if too_long == len(lengths):
            raise UserError(
                f"{among} are longer than sampling.prompt_width={self.width} tokens, the shortest "
                f"{min(lengths)}: {self._width_hint(min(lengths), greatest)}"
            )
        # 3. Some are left out: the run goes on, and says so.
        notes = []
        if too_long:
            notes.append(
                f"{among} are longer than {self.width} tokens and left out; {greatest}"
            )
        if without_rows:
            notes.append(rows_note(without_rows, f"{kind} prompts"))
        return "; ".join(notes) or None

    def _has_rows(self, ids: list[int]) -> bool:
        return has_rows(ids, self.vocab_size)

    def _width_hint(self, shortest: int, greatest: str) -> str:
        if self.max_width is not None and shortest > self.max_width:
            return f"{greatest}; lower that, take shorter problems, or another model"
        return f"raise it; {greatest}"


def known_lengths(
    problems: Problems,
    what: str,
    token_ids: Callable[[Problem], list[int]],
    vocab_size: int,
) -> list[int]:
    """Returns the lengths in tokens of the first problems' texts, of MAX_CHECKED at most.

    Those with a token that the model has no row for are left out.

    what: "training prompts" and their like, for the messages
    token_ids: returns the tokens of a problem's text
    vocab_size: rows of the model's embedding

    Raises UserError if there is no problem, if all texts are left out, or if a language cannot be
    told.
    """
    checked = min(len(problems), MAX_CHECKED)
    texts = []
    for i in range(checked):
        check_language(problems[i])
        texts.append(token_ids(problems[i]))
    if not texts:
        kind = what.split()[0]
        hint = NO_PROBLEMS_HINTS.get(kind, "check --config.data")
        raise UserError(f"{kind}: there are no problems; {hint}")
    lengths = [len(ids) for ids in texts if has_rows(ids, vocab_size)]
    # The model and the tokenizer do not fit.
    if not lengths:
        raise UserError(
            f"all {checked:,} {what} hold tokens past the model's {vocab_size:,} rows: give the "
            "tokenizer's own model in --config.model"
        )
    return lengths


def has_rows(ids: list[int], vocab_size: int) -> bool:
    """Returns whether the model's embedding has a row for each token."""
    return max(ids, default=0) < vocab_size


def rows_note(count: int, what: str) -> str:
    """Returns the line about texts with tokens that the model has no row for."""
    return (
        f"{count:,} {what} hold tokens that the model has no row for, and are left out"
    )


def check_language(problem: Problem) -> None:
    """Raises UserError if a problem's language cannot be told, so not measured."""
    if language_code(problem.language) is None:
        raise UserError(
            f"the problem {problem.id!r} has the language {problem.language!r}, which cannot be "
            f"told; its source must give one of {' '.join(sorted(LANGUAGE_CODES))}"
        )
