"""Makes word problems in four languages and six levels, without a download. Pure Python.

A problem is a start, as many operations as its level, and a question. Numbers and operations are
drawn first and words after, so every story exists in every language. A row at level 2 in each:

    en  Mia has 12 apples. She buys 7 more. She loses 5. How many apples does Mia have now?
    zh  小美一开始有12个苹果。她又买了7个。她弄丢了5个。小美现在有多少个苹果？
    ko  미나는 사과를 12개 가지고 있다. 7개를 더 샀다. 5개를 잃어버렸다.
        미나는 지금 사과를 몇 개 가지고 있을까?
    uk  Марія має 12 яблук. Вона купує ще 7. Вона губить 5. Скільки яблук тепер має Марія?

The chain of thought tells the story again and adds the equations. The completion of the first:

    <think>
    Mia has 12 apples.
    She buys 7 more: 12+7=19
    She loses 5: 19-5=14
    </think>
    \\boxed{14}
"""
# ruff: noqa: RUF002  (letters of other scripts are the point here)

import hashlib
import itertools
import json
import operator
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, TypeVar

from jaxgrpo.data.arithmetic_words import PHRASEBOOKS
from jaxgrpo.errors import FixedFields, UserError
from jaxgrpo.problems import Problem

T = TypeVar("T")

Story = dict[str, Any]
"""A story without its words, JSON values. It is the Problem.meta of these problems.

start: the first amount
steps: [operation, operand] of each operation
name, thing: indices of the person and the thing in a Phrasebook
phrases: of each step, the index of the phrase that tells it
"""


class LevelLimits(NamedTuple):
    """The largest numbers of a level's stories.

    amount: of any amount that a story passes through
    change: of a number that is added or taken away
    factor: of a number that is multiplied or divided by
    """

    amount: int
    change: int
    factor: int


LEVEL_LIMITS = {
    1: LevelLimits(20, 9, 2),
    2: LevelLimits(40, 15, 2),
    3: LevelLimits(60, 25, 3),
    4: LevelLimits(80, 35, 3),
    5: LevelLimits(99, 45, 4),
    6: LevelLimits(99, 49, 4),
}
"""Levels differ in how long a story is and in how hard its sums are: difficulty is spread wide."""

LEVELS = tuple(LEVEL_LIMITS)
LANGUAGES = tuple(PHRASEBOOKS)

MIN_AMOUNT = 2
"""The least amount that a story passes through: from 2 up, an English noun is never singular."""

MAX_START = 60

HELDOUT_BUCKETS = 8
"""One story in so many is held out."""

HELDOUT_SIZE = 1_200
HELDOUT_SEED = 0

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}

OPERATION_DRAWS = "++--*/"
"""Each operation as often as it is drawn, where the amount allows it."""


@dataclass
class Arithmetic(FixedFields):
    """A Source: arithmetic word problems, each made when it is asked for.

    languages: codes of the languages, of "en", "zh", "ko" and "uk".
    levels: numbers of operations, from 1 to 6.
    seed: of the training problems. The held-out ones are the same for every `seed` and `size`.
    size: number of training problems.
    """

    languages: tuple[str, ...] = LANGUAGES
    levels: tuple[int, ...] = LEVELS
    seed: int = 0
    size: int = 100_000

    def train(self) -> "ArithmeticProblems":
        """Returns the problems to learn from; raises UserError as ArithmeticProblems does."""
        return ArithmeticProblems(
            self.languages, self.levels, "train", self.seed, self.size
        )

    def heldout(self) -> "ArithmeticProblems":
        """Returns HELDOUT_SIZE problems, none of which is a training one in any language or words.

        Raises UserError as ArithmeticProblems does.
        """
        return ArithmeticProblems(
            self.languages, self.levels, "heldout", HELDOUT_SEED, HELDOUT_SIZE
        )


class ArithmeticProblems(Sequence[Problem]):
    """A sequence whose problems are made when they are asked for.

    Problem i is a pure function of the arguments and i, the same in every process. Each block of
    len(languages) * len(levels) indices has each pair of language and level once, in an order of
    its own.

    Raises UserError for an unknown language or split, a level out of range, or nothing to choose
    from.
    """

    def __init__(
        self,
        languages: Iterable[str] = LANGUAGES,
        levels: Iterable[int] = LEVELS,
        split: str = "train",
        seed: int = 0,
        size: int = 100_000,
    ):
        self.languages = tuple(languages)
        self.levels = tuple(levels)
        self.split = split
        self.seed = seed
        self.size = size
        _check_choices("languages", self.languages, LANGUAGES)
        _check_choices("levels", self.levels, LEVELS)
        _check_choices("split", (split,), ("train", "heldout"))
        if size < 1:
            raise UserError(f"arithmetic: size is {size}; it must be at least 1")

    def __len__(self) -> int:
        return self.size

    # One at a time: slices are not supported.
    def __getitem__(self, index: SupportsIndex) -> Problem:  # type: ignore[override]
        """Returns problem `index`, counted from the end if negative.

        Raises IndexError past either end.
        """
        number = operator.index(index)
        if number < 0:
            number += self.size
        if not 0 <= number < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        block, offset = divmod(number, len(self.languages) * len(self.levels))
        language, level = self._shuffled_pairs(block)[offset]
        story = _draw_story(
            _make_random(self.split, self.seed, number), level, self.split
        )
        return Problem(
            id=f"arithmetic/{self.split}/{self.seed}/{number}",
            prompt=_tell_prompt(story, language),
            answer=str(_amounts(story)[-1]),
            language=language,
            level=level,
            meta=story,
        )

    def _shuffled_pairs(self, block: int) -> list[tuple[str, int]]:
        """Returns each pair of language and level once, in the order of a block of problems."""
        rng = _make_random("mix", self.split, self.seed, block)
        pairs = itertools.product(self.languages, self.levels)
        # Sorted by random keys: random.shuffle may differ between versions of Python.
        return sorted(pairs, key=lambda _: rng.random())


def solution(problem: Problem, language: str | None = None) -> str:
    """Returns the completion that solves a problem: its steps in <think>, then the boxed answer.

    problem: one of this module
    language: of the steps, with that language's people and things; None for the problem's own

    Raises UserError for an unknown language.
    """
    language = language or problem.language
    _check_choices("language", (language,), LANGUAGES)
    phrasebook = PHRASEBOOKS[language]
    amounts = _amounts(problem.meta)
    # The meta has no words, so the story can be told in any language. The question is not needed.
    start, *told_steps, _ = _tell_sentences(problem.meta, language)
    lines = [start + phrasebook.stop]
    for told, step, before, after in zip(
        told_steps, problem.meta["steps"], amounts[:-1], amounts[1:], strict=True
    ):
        operation, operand = step
        # The equation has no spaces: each would be a token.
        lines.append(f"{told}{phrasebook.colon}{before}{operation}{operand}={after}")
    thoughts = "\n".join(lines)
    return f"<think>\n{thoughts}\n</think>\n\\boxed{{{amounts[-1]}}}"


def is_heldout(story: Mapping[str, Any]) -> bool:
    """Returns whether a story is kept for evaluation.

    Its numbers and operations alone decide, never its words: no training problem is a held-out one
    told in another language.
    """
    return _digest(story["start"], story["steps"]) % HELDOUT_BUCKETS == 0


def _draw_story(rng: random.Random, level: int, split: str) -> Story:
    """Draws numbers and operations until they belong to the split, then the words' indices."""
    # One story in HELDOUT_BUCKETS is held out, so that split takes about as many tries.
    while True:
        start, steps = _draw_sums(rng, level)
        # Lists, not tuples, so that the story is equal to itself as JSON.
        story: Story = {"start": start, "steps": [list(step) for step in steps]}
        if is_heldout(story) == (split == "heldout"):
            break
    # All languages have equally many words of each kind.
    words = PHRASEBOOKS["en"]
    story["name"] = _choose(rng, range(len(words.names)))
    story["thing"] = _choose(rng, range(len(words.things)))
    story["phrases"] = [
        _choose(rng, range(len(words.phrases[operation]))) for operation, _ in steps
    ]
    return story


def _draw_sums(rng: random.Random, level: int) -> tuple[int, list[tuple[str, int]]]:
    """Draws the first amount and the (operation, operand) steps of a story."""
    limits = LEVEL_LIMITS[level]
    start = _choose(rng, range(MIN_AMOUNT, min(MAX_START, limits.amount) + 1))
    amount = start
    steps = []
    for _ in range(level):
        operands = _possible_operands(amount, limits)
        # An operation that stands twice in OPERATION_DRAWS is drawn twice as often.
        possible = [operation for operation in OPERATION_DRAWS if operands[operation]]
        operation = _choose(rng, possible)
        operand = _choose(rng, operands[operation])
        amount = OPERATIONS[operation](amount, operand)
        steps.append((operation, operand))
    return start, steps


def _possible_operands(amount: int, limits: LevelLimits) -> dict[str, Sequence[int]]:
    """Returns the operands by operation that keep the amount whole and within its limits."""
    factors = range(2, limits.factor + 1)
    max_added = min(limits.amount - amount, limits.change)
    max_taken = min(amount - MIN_AMOUNT, limits.change)
    return {
        "+": range(2, max_added + 1),
        "-": range(2, max_taken + 1),
        "*": [n for n in factors if amount * n <= limits.amount],
        "/": [n for n in factors if amount % n == 0 and amount // n >= MIN_AMOUNT],
    }


def _amounts(story: Mapping[str, Any]) -> list[int]:
    """Returns the first amount and the amount after each step."""
    amounts = [story["start"]]
    for operation, operand in story["steps"]:
        amounts.append(OPERATIONS[operation](amounts[-1], operand))
    return amounts


def _tell_prompt(story: Mapping[str, Any], language: str) -> str:
    """Returns the story and its question as one text."""
    phrasebook = PHRASEBOOKS[language]
    *told, question = _tell_sentences(story, language)
    sentences = [phrase + phrasebook.stop for phrase in told]
    return phrasebook.space.join([*sentences, question])


def _tell_sentences(story: Mapping[str, Any], language: str) -> list[str]:
    """Returns the start, each step and the question, in the words of a language; no stops."""
    phrasebook = PHRASEBOOKS[language]
    name = story["name"]
    words = phrasebook.template_words(
        phrasebook.names[name],
        # Names are of a girl and a boy in turn.
        phrasebook.pronouns[name % 2],
        phrasebook.things[story["thing"]],
        story["start"],
    )
    told_steps = [
        phrasebook.phrases[operation][phrase].format(n=operand, **words)
        for (operation, operand), phrase in zip(
            story["steps"], story["phrases"], strict=True
        )
    ]
    start = phrasebook.start.format(**words)
    question = phrasebook.question.format(**words)
    return [start, *told_steps, question]


def _check_choices(
    field: str, values: Sequence[object], known: Sequence[object]
) -> None:
    """Raises UserError if there are no values, or one of them is not known."""
    choices = ", ".join(map(str, known))
    if not values:
        raise UserError(f"arithmetic: {field} is empty; choose from {choices}")
    for value in values:
        if value not in known:
            raise UserError(f"arithmetic: {field} has {value!r}; choose from {choices}")


# Only Random.random() is promised to be the same in every version of Python. All other draws are
# made from it, and seeds are made by a hash that is the same in every process.


def _digest(*parts: object) -> int:
    """Returns a number of 64 bits that is a function of the parts, which are JSON values."""
    return int.from_bytes(
        hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big"
    )


def _make_random(*parts: object) -> random.Random:
    """Returns a random generator whose seed is a function of the parts."""
    return random.Random(_digest(*parts))


def _choose(rng: random.Random, options: Sequence[T]) -> T:
    """Draws one of the options, all equally likely."""
    return options[int(rng.random() * len(options))]
