"""Finds training problems that share a run of words with a held-out one.

Such a problem may have been read in training before it is asked in the evaluation. Thirteen words
in a row are what the authors of GPT-3 looked for (arXiv 2005.14165, appendix C).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxgrpo.data.mixture import MixedProblems, named_settings
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem, Problems, Source, notes_of

# Thai, Japanese and Chinese are written without spaces: there a letter counts as a word.
_UNSPACED = "\\u0e00-\\u0e7f\\u3040-\\u30ff\\u3400-\\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass
class Decontaminated(FixedFields):
    """A Source: another one's problems, without those that overlap with held-out ones.

    source: the other one.
    evaluated: further sources whose held-out problems none is to overlap with.
    words: words in a row that make an overlap; a shorter prompt overlaps with an equal one.
    remove: whether problems that overlap are left out; else they are only counted.

    A run begins with a line that counts them.
    """

    source: Source
    evaluated: tuple[Source, ...] = ()
    words: int = 13
    remove: bool = True
    _note: str = field(default="", init=False, repr=False, compare=False)

    def train(self) -> Problems:
        """Returns the training problems; raises UserError as the sources do."""
        if self.words < 1:
            raise UserError(
                f"--config.data.words is {self.words}: it must be at least 1; 13 is usual"
            )
        heldout = [self.heldout()]
        for place, other in enumerate(self.evaluated):
            with named_settings(f"evaluated.{place}"):
                heldout.append(other.heldout())
        runs = {
            run
            for problems in heldout
            for problem in _iterate(problems)
            for run in _runs(problem.prompt, self.words)
        }
        with named_settings("source"):
            problems = self.source.train()
        overlapping = [
            problem.id
            for problem in _iterate(problems)
            if not runs.isdisjoint(_runs(problem.prompt, self.words))
        ]
        done = "are left out" if self.remove else "stay"
        first = f", {overlapping[0]} first" if overlapping else ""
        self._note = (
            f"{len(overlapping):,} of {len(problems):,} training prompts share {self.words} words "
            f"in a row with a held-out one{first}; they {done}"
        )
        return _without(problems, set(overlapping)) if self.remove else problems

    def heldout(self) -> Problems:
        """Returns the source's held-out problems; raises UserError as it does."""
        with named_settings("source"):
            return self.source.heldout()

    def notes(self) -> list[str]:
        """Returns the source's lines, and one that counts the problems that overlap."""
        return [*notes_of(self.source), *filter(None, [self._note])]


def _without(problems: Problems, ids: set[str]) -> Problems:
    """Returns the problems that have none of these ids; a mixture stays one."""
    if isinstance(problems, MixedProblems):
        return problems.without(ids)
    return [problem for problem in _iterate(problems) if problem.id not in ids]


def _iterate(problems: Problems) -> Iterator[Problem]:
    """Yields the problems, which need have no more than a length and an index."""
    for i in range(len(problems)):
        yield problems[i]


def _runs(text: str, words: int) -> Iterator[tuple[str, ...]]:
    """Yields the runs of so many words of a text, without regard to case and punctuation.

    A text of fewer words is one run.
    """
    found = _WORD.findall(text.lower())
    for begin in range(max(len(found) - words, 0) + 1):
        yield tuple(found[begin : begin + words])
