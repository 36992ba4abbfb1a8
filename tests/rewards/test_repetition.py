# ruff: noqa: RUF001  (letters of other scripts that look like Latin ones are what is tested)
"""Tests of the penalty for n-grams that came before, in any script."""

import time

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.languages.words import MAX_WORDS, split
from jaxgrpo.rewards.repetition import Repetition

PROBLEM = Problem("1", "question", "42")
SENTENCES = {
    "en": "First we count the apples and then we share them among all her friends.",
    "zh": "首先我们计算她有多少个苹果，然后把它们分给她的朋友。",
    "ja": "まず彼女がリンゴを何個持っているか計算し、友達に分けます。",
    "ko": "먼저 사과가 몇 개인지 계산한 다음 친구들에게 나누어 줍니다.",
    "th": "ก่อนอื่นเราคำนวณว่าเธอมีแอปเปิ้ลกี่ผล แล้วแบ่งให้เพื่อน",
    "uk": "Спочатку порахуємо, скільки в неї яблук, а потім поділимо їх між друзями.",
}


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("a b a b", 2, 1 / 3),  # ab ba ab
        ("a b c d", 2, 0.0),
        ("a A a a", 1, 3 / 4),
        ("a a a a a", 2, 3 / 4),
        ("one two", 3, 0.0),
        ("= = = =", 2, 2 / 3),
        ("", 1, 0.0),
        (" \n ", 1, 0.0),
    ],
)
def test_the_share_of_n_grams_that_came_before(text, n, share):
    assert Repetition(n, -0.5)(PROBLEM, text) == pytest.approx(-0.5 * share)


@pytest.mark.parametrize("language", SENTENCES)
def test_a_loop_is_punished_in_every_script_and_a_sentence_is_not(language):
    reward = Repetition(n=3, max_penalty=-1.0)
    assert reward(PROBLEM, SENTENCES[language]) == 0.0
    assert reward(PROBLEM, SENTENCES[language] * 20) < -0.9


def test_words_have_no_need_of_spaces():
    assert split("She's got 12: 사과와苹果") == [
        "she's",
        "got",
        "12",
        ":",
        "사과와",
        "苹果",
    ]
    assert len(split(SENTENCES["th"])) > 10
    assert "".join(split(SENTENCES["zh"])) == SENTENCES["zh"]


@pytest.mark.parametrize("piece", ["a b ", "!", "苹果", "ก่อนอื่น", "\n", "x"])
def test_a_megabyte_takes_seconds(piece):
    before = time.process_time()
    Repetition(n=40)(PROBLEM, piece * (10**6 // len(piece)))
    assert time.process_time() - before < 5
    assert len(split(piece * (10**6 // len(piece)))) in (0, 1, MAX_WORDS)


@pytest.mark.parametrize(
    ("n", "max_penalty", "message"),
    [(0, -1.0, "n is 0"), (3, 0.1, "is 0.1"), (3, -float("inf"), "is -inf")],
)
def test_settings_that_cannot_be_are_refused(n, max_penalty, message):
    with pytest.raises(UserError, match=message):
        Repetition(n, max_penalty)
