"""Mixes several sources, each with its weight, its languages and its levels.

    Mixture({
        "gsm8k": Part(GSM8K(), weight=0.7),
        "zoo": Part(Table("zoo.parquet", ...), weight=0.3, min_level=3),
    })

Seven of ten problems that are asked are then of GSM8K, whatever the sizes of the two. A source that
is at its end begins again, in a new order, while the others go on: each has passes of its own.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import SupportsIndex, overload

from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem, Problems, Source, notes_of
from jaxgrpo.text.language_codes import language_code


@dataclass
class Part(FixedFields):
    """A source in a mixture, and which of its problems are in it, to train on and held out.

    Several parts may be of one source, with a weight for each language or level.

    source: where the problems come from.
    weight: share of the problems that are asked, in proportion to the other parts'; 0: none is
      trained on.
    languages: the languages of the problems; none: all.
    min_level: the lowest level.
    max_level: the highest level; 0: any.
    min_chars: the fewest characters of a prompt.
    max_chars: the most characters of a prompt; 0: any. In tokens, `sampling.prompt_width` is the
      bound.
    """

    source: Source
    weight: float = 1.0
    languages: tuple[str, ...] = ()
    min_level: int = 0
    max_level: int = 0
    min_chars: int = 0
    max_chars: int = 0

    def select(self, problems: Problems) -> Problems:
        """Returns the problems that are in the mixture."""
        if replace(self, weight=1.0) == Part(self.source):
            # All are. They may be made or read one by one, when their turn comes.
            return problems
        codes = {language_code(language) for language in self.languages}
        found = (problems[i] for i in range(len(problems)))
        return [
            problem
            for problem in found
            if (not codes or problem.language in codes)
            and _is_between(problem.level, self.min_level, self.max_level)
            and _is_between(len(problem.prompt), self.min_chars, self.max_chars)
        ]


class MixedProblems(Sequence[Problem]):
    """The problems of several parts, one part after another.

    An id begins with its part's name, "zoo/...", which is also Problem.meta["part"].

    parts: by name
    weights: of the parts, in proportion to each other, all above 0

    Raises UserError if a part has no problem.
    """

    def __init__(self, parts: dict[str, Problems], weights: Sequence[float]):
        for name, problems in parts.items():
            if not len(problems):
                raise UserError(
                    f"the part {name} of the mixture has no problem left; widen its languages, "
                    "levels and lengths, or give it weight 0"
                )
        self.parts = parts
        self.weights = tuple(weights)
        sizes = [len(problems) for problems in parts.values()]
        self._ends = list(itertools.accumulate(sizes))
        self._names = list(parts)

    @property
    def ranges(self) -> list[range]:
        """Returns the indices of each part."""
        return [range(*ends) for ends in itertools.pairwise([0, *self._ends])]

    def without(self, ids: set[str]) -> "MixedProblems":
        """Returns the mixture without the problems that have one of these ids."""
        kept: dict[str, Problems] = {}
        for name, problems in self.parts.items():
            found = (problems[i] for i in range(len(problems)))
            kept[name] = [
                problem for problem in found if _named(name, problem).id not in ids
            ]
        return MixedProblems(kept, self.weights)

    def __str__(self) -> str:
        """Returns the parts as people read them: "0.7 gsm8k (7,473 problems), 0.3 zoo (...)"."""
        total = sum(self.weights)
        shares = [
            f"{weight / total:.3g} {name} ({len(problems):,} problems)"
            for (name, problems), weight in zip(
                self.parts.items(), self.weights, strict=True
            )
        ]
        return ", ".join(shares)

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        # Indexing a range takes negative indices, and raises IndexError past the end.
        position = range(len(self))[index]
        part = bisect.bisect_right(self._ends, position)
        name = self._names[part]
        return _named(name, self.parts[name][position - self.ranges[part].start])


@dataclass
class Mixture(FixedFields):
    """A Source: several sources at once.

    parts: by name.

    Held-out problems take turns, so that the first of them are of all parts.
    """

    parts: dict[str, Part]
    _note: str = field(default="", init=False, repr=False, compare=False)

    def train(self) -> Problems:
        """Returns the training problems of all parts whose weight is above 0.

        Raises UserError as the sources do, and if a part has no problem or no part a weight.
        """
        self._check()
        weighted = {name: part for name, part in self.parts.items() if part.weight > 0}
        parts = {name: self._select(name, "train") for name in weighted}
        mixed = MixedProblems(parts, [part.weight for part in weighted.values()])
        self._note = f"training problems: {mixed}"
        return mixed

    def heldout(self) -> Problems:
        """Returns the held-out problems of all parts, in turns; raises UserError as `train`."""
        self._check()
        parts = [
            [_named(name, problem) for problem in self._select(name, "heldout")]
            for name in self.parts
        ]
        rounds = itertools.zip_longest(*parts)
        return [problem for one in rounds for problem in one if problem is not None]

    def notes(self) -> list[str]:
        """Returns a line that says what is mixed, and the lines of the sources."""
        parts = [line for part in self.parts.values() for line in notes_of(part.source)]
        return [*filter(None, [self._note]), *parts]

    def _select(self, name: str, split: str) -> Problems:
        """Returns a part's problems; an error names the part's own settings."""
        part = self.parts[name]
        with named_settings(f"parts.{name}.source"):
            problems = (
                part.source.train() if split == "train" else part.source.heldout()
            )
        return part.select(problems)

    def _check(self) -> None:
        """Raises UserError unless weights are 0 or more, and one is more, and languages known."""
        for name, part in self.parts.items():
            if not 0 <= part.weight < float("inf"):
                raise UserError(
                    f"--config.data.parts.{name}.weight is {part.weight}: it must be 0 or more"
                )
            for language in part.languages:
                if language_code(language) is None:
                    raise UserError(
                        f"--config.data.parts.{name}.languages has {language!r}, not a language "
                        "that can be told; leave it out"
                    )
        if not any(part.weight for part in self.parts.values()):
            raise UserError(
                "no part of the mixture has a weight above 0; give one a weight"
            )


@contextmanager
def named_settings(path: str) -> Iterator[None]:
    """Has errors of a source that is within another one name its settings as they are called there.

    path: of the inner source, from the outer one
    """
    try:
        yield
    except UserError as error:
        text = str(error).replace("--config.data.", f"--config.data.{path}.")
        raise UserError(text) from error


def _is_between(number: int, least: int, most: int) -> bool:
    """Returns whether a number is in bounds, of which 0 is no upper one."""
    return least <= number and (not most or number <= most)


def _named(name: str, problem: Problem) -> Problem:
    """Returns a problem as its part's."""
    return replace(
        problem, id=f"{name}/{problem.id}", meta={**problem.meta, "part": name}
    )
