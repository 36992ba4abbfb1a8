"""Holds the words of the arithmetic stories in four languages, and the grammar that joins them.

Everything is parallel: the same index is the same person, thing or phrase in every language.
"""
# ruff: noqa: RUF001  (letters of other scripts are the point here)

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasebook:
    """The phrases of one language, as templates for str.format.

    names: people, a girl and a boy in turn
    pronouns: hers and his
    things: nouns, in the forms that `template_words` takes apart
    start, question: the first and the last sentence
    phrases: operation -> the ways to tell it, without a full stop; {n} is the operand
    template_words: (name, pronoun, thing, start) -> values of the templates' fields besides {n}
    stop: ends a phrase
    colon: leads from a phrase on to its equation
    space: stands between two sentences
    """

    names: tuple[str, ...]
    pronouns: tuple[str, str]
    things: tuple[str, ...]
    start: str
    phrases: dict[str, tuple[str, ...]]
    question: str
    template_words: Callable[[str, str, str, int], dict[str, str]]
    stop: str = "."
    colon: str = ": "
    space: str = " "


def english_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """Returns the values of the English templates' fields.

    thing: a noun in the plural, "apples"
    """
    # A field's name is how its value is used: {She} begins a sentence, {she} stands within one.
    return {
        "name": name,
        "She": pronoun,
        "she": pronoun.lower(),
        "counted": f"{start} {thing}",
        "things": thing,
    }


def chinese_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """Returns the values of the Chinese templates' fields.

    thing: a measure word and the noun, "个 苹果"
    """
    measure, noun = thing.split()
    return {
        "name": name,
        "她": pronoun,
        "个": measure,
        "thing": noun,
        "start": str(start),
    }


def korean_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """Returns the values of the Korean templates' fields, with the particles that sounds ask for.

    thing: a noun and its counter, "사과 개"
    """
    noun, counter = thing.split()
    # A field that ends in a particle stands for the word with whichever form of the particle fits.
    return {
        "개": counter,
        "start": str(start),
        "name는": with_particle(name, "은는"),
        "thing를": with_particle(noun, "을를"),
        "thing가": with_particle(noun, "이가"),
        "개를": with_particle(counter, "을를"),
    }


def ukrainian_words(name: str, pronoun: str, thing: str, start: int) -> dict[str, str]:
    """Returns the values of the Ukrainian templates' fields.

    thing: a noun's forms for one, for two to four and for many, "яблуко яблука яблук"
    """
    one, few, many = thing.split()
    counted = f"{start} {numeral_form(start, one, few, many)}"
    return {"name": name, "Вона": pronoun, "counted": counted, "things": many}


def with_particle(word: str, particles: str) -> str:
    """Returns a Korean word with its particle.

    particles: the one that follows a consonant, then the one that follows a vowel
    """
    # Unicode orders Hangul syllables by their sounds: each block of 28 differs in the final
    # consonant alone, and begins with the syllable that has none.
    ends_in_vowel = (ord(word[-1]) - ord("가")) % 28 == 0
    return word + particles[ends_in_vowel]


def numeral_form(number: int, one: str, few: str, many: str) -> str:
    """Returns the form of a Ukrainian noun after a number.

    1, 21 яблуко; 2-4, 22-24 яблука; 5-20, 25-30 яблук
    """
    # 11 to 14 do not follow their last digit.
    if number % 100 in range(11, 15):
        return many
    last_digit = number % 10
    if last_digit == 1:
        return one
    return few if last_digit in (2, 3, 4) else many


PHRASEBOOKS = {
    "en": Phrasebook(
        names=("Mia", "Ben", "Anna", "Tom", "Lily", "Leo", "Emma", "Max"),
        pronouns=("She", "He"),
        things=(
            "apples",
            "books",
            "pencils",
            "candies",
            "coins",
            "stamps",
            "stickers",
            "walnuts",
        ),
        start="{name} has {counted}",
        phrases={
            "+": ("{She} buys {n} more", "{She} finds {n} more", "{She} gets {n} more"),
            "-": ("{She} gives away {n}", "{She} loses {n}", "{She} sells {n}"),
            "*": (
                "Soon {she} has {n} times as many",
                "Later {she} has {n} times as many",
            ),
            "/": (
                "{She} keeps one of {n} equal piles",
                "{She} keeps one of {n} equal shares",
            ),
        },
        question="How many {things} does {name} have now?",
        template_words=english_words,
    ),
    "zh": Phrasebook(
        names=("小美", "小明", "小红", "小刚", "小丽", "小强", "小雨", "小龙"),
        pronouns=("她", "他"),
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
            "*": (
                "不久{她}的{thing}变成了原来的{n}倍",
                "后来{她}的{thing}变成了原来的{n}倍",
            ),
            "/": ("{她}平均分成{n}堆，自己留一堆", "{她}平均分成{n}份，自己留一份"),
        },
        question="{name}现在有多少{个}{thing}？",
        template_words=chinese_words,
        stop="。",
        colon="：",
        space="",
    ),
    "ko": Phrasebook(
        names=("미나", "준호", "서연", "민준", "지수", "현우", "하은", "태민"),
        # Korean leaves the pronoun out of every sentence.
        pronouns=("그녀", "그"),
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
            "-": (
                "{n}{개를} 친구에게 주었다",
                "{n}{개를} 잃어버렸다",
                "{n}{개를} 팔았다",
            ),
            "*": (
                "얼마 뒤 {thing가} {n}배로 늘었다",
                "나중에 {thing가} {n}배로 늘었다",
            ),
            "/": (
                "똑같이 나눈 {n}묶음 중 하나만 남겼다",
                "똑같이 나눈 {n}몫 중 하나만 가졌다",
            ),
        },
        question="{name는} 지금 {thing를} 몇 {개} 가지고 있을까?",
        template_words=korean_words,
    ),
    "uk": Phrasebook(
        names=(
            "Марія",
            "Богдан",
            "Оксана",
            "Тарас",
            "Леся",
            "Андрій",
            "Ганна",
            "Максим",
        ),
        pronouns=("Вона", "Він"),
        # Forms after має 1, after 2 to 4, after 5 and more: accusative singular, nominative plural,
        # genitive plural.
        things=(
            "яблуко яблука яблук",
            "книжку книжки книжок",
            "олівець олівці олівців",
            "цукерку цукерки цукерок",
            "монету монети монет",
            "марку марки марок",
            "наліпку наліпки наліпок",
            "горіх горіхи горіхів",
        ),
        start="{name} має {counted}",
        phrases={
            "+": (
                "{Вона} купує ще {n}",
                "{Вона} знаходить ще {n}",
                "{Вона} отримує ще {n}",
            ),
            "-": ("{Вона} віддає друзям {n}", "{Вона} губить {n}", "{Вона} продає {n}"),
            "*": (
                "Невдовзі їх стає в {n} рази більше",
                "Потім їх стає в {n} рази більше",
            ),
            "/": (
                "{Вона} лишає одну з {n} рівних купок",
                "{Вона} лишає одну з {n} рівних частин",
            ),
        },
        question="Скільки {things} тепер має {name}?",
        template_words=ukrainian_words,
    ),
}
"""By language code."""
