"""Word problems made here, in four languages and six levels: the laboratory that needs no download. Pure Python.

A problem is a start, as many operations as its level, and a question. Numbers and operations are drawn first and words
after, so every story exists in every language. A row at level 2 in each:

    en  Mia has 12 apples. She buys 7 more. She loses 5. How many apples does Mia have now?
    zh  小美一开始有12个苹果。她又买了7个。她弄丢了5个。小美现在有多少个苹果？
    ko  미나는 사과를 12개 가지고 있다. 7개를 더 샀다. 5개를 잃어버렸다. 미나는 지금 사과를 몇 개 가지고 있을까?
    uk  Марія має 12 яблук. Вона купує ще 7. Вона губить 5. Скільки яблук тепер має Марія?

The chain of thought tells the story again and adds the equations. The completion of the first:

    <think>
    Mia has 12 apples.
    She buys 7 more: 12+7=19
    She loses 5: 19-5=14
    </think>
    \\boxed{14}
"""
# ruff: noqa: RUF001, RUF002  (letters of other scripts are the point here)

import hashlib
import json
import operator
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem

SMALLEST = 2
"""Of the amounts that a story passes through; from 2 up, so that a noun is never singular in English."""

LARGEST = {
    1: (20, 9, 2),
    2: (40, 15, 2),
    3: (60, 25, 3),
    4: (80, 35, 3),
    5: (99, 45, 4),
    6: (99, 49, 4),
}
"""Level -> the largest amount, the largest number added or taken away, the largest factor. Levels differ in how long a story is
and in how hard its sums are, so that difficulty is spread wide."""

LARGEST_START = 60
HELDOUT_BUCKETS = 8
HELDOUT_SIZE = 1_200
HELDOUT_SEED = 0

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}
ODDS = "++--*/"
"""How often each operation is drawn, where the amount allows it."""


# The words. All of it is parallel: the same index is the same person, thing or phrase in every language.


@dataclass(frozen=True)
class Language:
    """The phrases of one language, as templates.

    names: people; a girl and a boy in turn. pronouns: hers and his.
    things: nouns, in the forms that `words` takes apart.
    start, question: the first and the last sentence. phrases: for each operation, the ways to tell it, without a stop.
    stop ends a phrase, colon leads on to its equation, space parts two sentences.
    words: (name, pronoun, thing, start) -> what the templates may name, besides the operand {n}.
    """

    names: str
    pronouns: str
    things: tuple[str, ...]
    start: str
    phrases: dict[str, tuple[str, ...]]
    question: str
    words: Callable[[str, str, str, int], dict[str, str]]
    stop: str = "."
    colon: str = ": "
    space: str = " "


def english_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """What stands for a template's words; thing: "apples"."""
    return {
        "name": name,
        "She": pronoun,
        "she": pronoun.lower(),
        "counted": f"{start} {thing}",
        "things": thing,
    }


def chinese_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """What stands for a template's words; thing: its measure word and the noun, "个 苹果"."""
    measure, noun = thing.split()
    return {"name": name, "她": pronoun, "个": measure, "thing": noun, "start": str(start)}


def korean_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """What stands for a template's words, with the particles that their sounds ask for; thing: noun and counter."""
    noun, counter = thing.split()
    particles = {"name는": with_particle(name, "은는"), "thing를": with_particle(noun, "을를")}
    particles |= {"thing가": with_particle(noun, "이가"), "개를": with_particle(counter, "을를")}
    return {"개": counter, "start": str(start)} | particles


def ukrainian_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """What stands for a template's words; thing: its forms for one, for two to four and for many."""
    one, few, many = thing.split()
    counted = f"{start} {numeral_form(start, one, few, many)}"
    return {"name": name, "Вона": pronoun, "counted": counted, "things": many}


def with_particle(word: str, particles: str) -> str:
    """A Korean word with the first of two particles after a final consonant, with the second after a vowel."""
    ends_in_vowel = (ord(word[-1]) - ord("가")) % 28 == 0
    return word + particles[ends_in_vowel]


def numeral_form(number: int, one: str, few: str, many: str) -> str:
    """The form of a Ukrainian noun after a number: 1, 21 яблуко; 2-4, 22-24 яблука; 5-20, 25-30 яблук."""
    if number % 100 in range(11, 15):
        return many
    last = number % 10
    return one if last == 1 else few if last in (2, 3, 4) else many


LANGUAGES = {
    "en": Language(
        names="Mia Ben Anna Tom Lily Leo Emma Max",
        pronouns="She He",
        things=("apples", "books", "pencils", "candies", "coins", "stamps", "stickers", "walnuts"),
        start="{name} has {counted}",
        phrases={
            "+": ("{She} buys {n} more", "{She} finds {n} more", "{She} gets {n} more"),
            "-": ("{She} gives away {n}", "{She} loses {n}", "{She} sells {n}"),
            "*": ("Soon {she} has {n} times as many", "Later {she} has {n} times as many"),
            "/": ("{She} keeps one of {n} equal piles", "{She} keeps one of {n} equal shares"),
        },
        question="How many {things} does {name} have now?",
        words=english_words,
    ),
    "zh": Language(
        names="小美 小明 小红 小刚 小丽 小强 小雨 小龙",
        pronouns="她 他",
        things=(
            "个 苹果",
            "本 书",
            "支 铅笔",
            "颗 糖果",
            "枚 硬币",
            "张 邮票",
            "张 贴纸",
            "个 核桃",
        ),
        start="{name}一开始有{start}{个}{thing}",
        phrases={
            "+": ("{她}又买了{n}{个}", "{她}又找到了{n}{个}", "{她}又得到了{n}{个}"),
            "-": ("{她}送给朋友{n}{个}", "{她}弄丢了{n}{个}", "{她}卖掉了{n}{个}"),
            "*": ("不久{她}的{thing}变成了原来的{n}倍", "后来{她}的{thing}变成了原来的{n}倍"),
            "/": ("{她}平均分成{n}堆，自己留一堆", "{她}平均分成{n}份，自己留一份"),
        },
        question="{name}现在有多少{个}{thing}？",
        words=chinese_words,
        stop="。",
        colon="：",
        space="",
    ),
    "ko": Language(
        names="미나 준호 서연 민준 지수 현우 하은 태민",
        pronouns="그녀 그",  # left out of every sentence, as Korean does
        things=(
            "사과 개",
            "책 권",
            "연필 자루",
            "사탕 개",
            "동전 개",
            "우표 장",
            "스티커 장",
            "호두 개",
        ),
        start="{name는} {thing를} {start}{개} 가지고 있다",
        phrases={
            "+": ("{n}{개를} 더 샀다", "{n}{개를} 더 찾았다", "{n}{개를} 더 받았다"),
            "-": ("{n}{개를} 친구에게 주었다", "{n}{개를} 잃어버렸다", "{n}{개를} 팔았다"),
            "*": ("얼마 뒤 {thing가} {n}배로 늘었다", "나중에 {thing가} {n}배로 늘었다"),
            "/": ("똑같이 나눈 {n}묶음 중 하나만 남겼다", "똑같이 나눈 {n}몫 중 하나만 가졌다"),
        },
        question="{name는} 지금 {thing를} 몇 {개} 가지고 있을까?",
        words=korean_words,
    ),
    "uk": Language(
        names="Марія Богдан Оксана Тарас Леся Андрій Ганна Максим",
        pronouns="Вона Він",
        things=(  # after має 1, 2-4, 5 and more: accusative singular, nominative plural, genitive plural
            *(
                "яблуко яблука яблук",
                "книжку книжки книжок",
                "олівець олівці олівців",
                "цукерку цукерки цукерок",
            ),
            *(
                "монету монети монет",
                "марку марки марок",
                "наліпку наліпки наліпок",
                "горіх горіхи горіхів",
            ),
        ),
        start="{name} має {counted}",
        phrases={
            "+": ("{Вона} купує ще {n}", "{Вона} знаходить ще {n}", "{Вона} отримує ще {n}"),
            "-": ("{Вона} віддає друзям {n}", "{Вона} губить {n}", "{Вона} продає {n}"),
            "*": ("Невдовзі їх стає в {n} рази більше", "Потім їх стає в {n} рази більше"),
            "/": ("{Вона} лишає одну з {n} рівних купок", "{Вона} лишає одну з {n} рівних частин"),
        },
        question="Скільки {things} тепер має {name}?",
        words=ukrainian_words,
    ),
}


@dataclass
class Arithmetic:
    """The source of these problems: `config.data`. The held-out ones are the same for every `seed` and `size`."""

    languages: tuple[str, ...] = ("en", "zh", "ko", "uk")
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    seed: int = 0
    size: int = 100_000

    def train(self) -> "ArithmeticProblems":
        """The problems to learn from. Raises UserError as Problems does."""
        return ArithmeticProblems(self.languages, self.levels, "train", self.seed, self.size)

    def heldout(self) -> "ArithmeticProblems":
        """HELDOUT_SIZE problems of which none, in any language or wording, is a training one. Raises UserError."""
        return ArithmeticProblems(
            self.languages, self.levels, "heldout", HELDOUT_SEED, HELDOUT_SIZE
        )


class ArithmeticProblems(Sequence[Problem]):
    """Problem i, made when asked for: a pure function of the arguments and i, the same in every process.

    Each run of len(languages) * len(levels) indexes has each pair of language and level once, in an order of its own.

    Raises:
      UserError: an unknown language or split, a level out of range, or nothing to choose from.
    """

    def __init__(
        self,
        languages: Iterable[str] = ("en", "zh", "ko", "uk"),
        levels: Iterable[int] = (1, 2, 3, 4, 5, 6),
        split: str = "train",
        seed: int = 0,
        size: int = 100_000,
    ):
        self.languages, self.levels = tuple(languages), tuple(levels)
        self.split, self.seed, self.size = split, seed, size
        _check("languages", self.languages, tuple(LANGUAGES))
        _check("levels", self.levels, (1, 2, 3, 4, 5, 6))
        _check("split", (split,), ("train", "heldout"))
        if size < 1:
            raise UserError(f"arithmetic: size is {size}; it must be at least 1")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> Problem:  # type: ignore[override]  # one at a time: no slices
        """Problem `index`, from the end where negative. Raises IndexError past either end."""
        place = operator.index(index)
        place = place + self.size if place < 0 else place
        if not 0 <= place < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        block, position = divmod(place, len(self.languages) * len(self.levels))
        language, level = self._mix(block)[position]
        meta = _story(_random(self.split, self.seed, place), level, self.split)
        identity = f"arithmetic/{self.split}/{self.seed}/{place}"
        return Problem(
            identity, _prompt(meta, language), str(_amounts(meta)[-1]), language, level, meta
        )

    def _mix(self, block: int) -> list[tuple[str, int]]:
        pairs = [(language, level) for language in self.languages for level in self.levels]
        random_order = _random("mix", self.split, self.seed, block)
        return sorted(pairs, key=lambda _: random_order.random())


def solution(problem: Problem, language: str | None = None) -> str:
    """The completion that solves a problem of this module: its steps in <think>, then the boxed answer.

    The steps are in `language`, the problem's own by default; people and things take that language's words.

    Raises:
      UserError: an unknown language.
    """
    language = language or problem.language
    _check("language", (language,), tuple(LANGUAGES))
    phrasebook, amounts = LANGUAGES[language], _amounts(problem.meta)
    start, *told, _ = _sentences(problem.meta, language)
    lines = [start + phrasebook.stop]
    for said, (operation, n), before, after in zip(
        told, problem.meta["steps"], amounts, amounts[1:], strict=False
    ):
        lines.append(
            f"{said}{phrasebook.colon}{before}{operation}{n}={after}"
        )  # unspaced: a space is a token
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\\boxed{{{amounts[-1]}}}"


def is_heldout(meta: dict[str, Any]) -> bool:
    """Whether a story is kept for evaluation: by its numbers and operations alone, never by its words."""
    return _digest(meta["start"], meta["steps"]) % HELDOUT_BUCKETS == 0


def _story(rng: random.Random, level: int, split: str) -> dict[str, Any]:
    while True:
        start, steps = _sums(rng, level)
        meta = {"start": start, "steps": steps}
        if is_heldout(meta) == (split == "heldout"):
            break
    english = LANGUAGES["en"]
    meta["name"] = _choice(rng, range(len(english.names.split())))
    meta["thing"] = _choice(rng, range(len(english.things)))
    meta["phrases"] = [
        _choice(rng, range(len(english.phrases[operation]))) for operation, _ in steps
    ]
    return meta


def _sums(rng: random.Random, level: int) -> tuple[int, list[list[Any]]]:
    start = amount = _choice(rng, range(SMALLEST, min(LARGEST_START, LARGEST[level][0]) + 1))
    steps: list[list[Any]] = []
    for _ in range(level):
        operands = _operands(amount, *LARGEST[level])
        operation = _choice(rng, [one for one in ODDS if operands[one]])
        n = _choice(rng, operands[operation])
        amount = OPERATIONS[operation](amount, n)
        steps.append([operation, n])
    return start, steps


def _operands(amount: int, most: int, change: int, factor: int) -> dict[str, Sequence[int]]:
    """What each operation may be done with, so that the amount stays whole and within its bounds."""
    factors = range(2, factor + 1)
    return {
        "+": range(2, min(most - amount, change) + 1),
        "-": range(2, min(amount - SMALLEST, change) + 1),
        "*": [n for n in factors if amount * n <= most],
        "/": [n for n in factors if amount % n == 0 and amount // n >= SMALLEST],
    }


def _amounts(meta: dict[str, Any]) -> list[int]:
    amounts = [meta["start"]]
    for operation, n in meta["steps"]:
        amounts.append(OPERATIONS[operation](amounts[-1], n))
    return amounts


def _prompt(meta: dict[str, Any], language: str) -> str:
    phrasebook = LANGUAGES[language]
    *story, question = _sentences(meta, language)
    return phrasebook.space.join([*(told + phrasebook.stop for told in story), question])


def _sentences(meta: dict[str, Any], language: str) -> list[str]:
    """The start, each step and the question, in the words of a language; no stops."""
    phrasebook, name = LANGUAGES[language], meta["name"]
    words = phrasebook.words(
        phrasebook.names.split()[name],
        phrasebook.pronouns.split()[name % 2],
        phrasebook.things[meta["thing"]],
        meta["start"],
    )
    told = [
        phrasebook.phrases[operation][phrase].format(n=n, **words)
        for (operation, n), phrase in zip(meta["steps"], meta["phrases"], strict=True)
    ]
    return [phrasebook.start.format(**words), *told, phrasebook.question.format(**words)]


def _check(field: str, values: Sequence[Any], known: Sequence[Any]) -> None:
    if not values:
        raise UserError(f"arithmetic: {field} is empty; choose from {', '.join(map(str, known))}")
    for value in values:
        if value not in known:
            raise UserError(
                f"arithmetic: {field} has {value!r}; choose from {', '.join(map(str, known))}"
            )


def _digest(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")


# Only Random.random() is promised to be the same in every version of Python; the rest is made from it.


def _random(*parts: Any) -> random.Random:
    return random.Random(_digest(*parts))


def _choice(rng: random.Random, options: Sequence[Any]) -> Any:
    return options[int(rng.random() * len(options))]
