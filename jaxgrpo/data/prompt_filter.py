"""Problems that a run can ask: short enough, in the vocabulary, in a language that can be told."""

import itertools
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
        # 1. Tokenize the first problems; their languages are checked on the way.
        checked = min(len(problems), MAX_CHECKED)
        prompts = []
        for i in range(checked):
            problem = problems[i]
            check_language(problem)
            prompts.append(self.token_ids(problem))
        if not prompts:
            hint = NO_PROBLEMS_HINTS.get(kind, "check --config.data")
            raise UserError(f"{kind}: there are no problems; {hint}")
        # 2. Tokens without a row in the embedding: the model and the tokenizer do not fit.
        lengths = [len(ids) for ids in prompts if self._has_rows(ids)]
        without_rows = checked - len(lengths)
        if not lengths:
            raise UserError(
                f"all {checked:,} {kind} prompts hold tokens past the model's "
                f"{self.vocab_size:,} rows: give the tokenizer's own model in --config.model"
            )
        # 3. Prompts that are too long, and how much room would be enough.
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
        # 4. Some are left out: the run goes on, and says so.
        notes = []
        if too_long:
            notes.append(
                f"{among} are longer than {self.width} tokens and left out; {greatest}"
            )
        if without_rows:
            notes.append(
                f"{without_rows:,} {kind} prompts hold tokens that the model has no row for, and "
                "are left out"
            )
        return "; ".join(notes) or None

    def _has_rows(self, ids: list[int]) -> bool:
        return max(ids, default=0) < self.vocab_size

    def _width_hint(self, shortest: int, greatest: str) -> str:
        if self.max_width is not None and shortest > self.max_width:
            return f"{greatest}; lower that, take shorter problems, or another model"
        return f"raise it; {greatest}"


def check_language(problem: Problem) -> None:
    """Raises UserError if a problem's language cannot be told, so not measured."""
    if language_code(problem.language) is None:
        raise UserError(
            f"the problem {problem.id!r} has the language {problem.language!r}, which cannot be "
            f"told; its source must give one of {' '.join(sorted(LANGUAGE_CODES))}"
        )
