"""Checks the line about gold answers that are no mathematics."""

import pytest

from jaxgrpo.problems import Problem, Task, Weighted
from jaxgrpo.rewards import layout, maths
from jaxgrpo.rewards.maths.golds import is_mathematical, note_on_golds, notes_on_golds


def problems(*answers: str) -> list[Problem]:
    return [Problem(f"a:{i}", "?", answer) for i, answer in enumerate(answers, start=1)]


MATHEMATICAL = [
    "42",
    "-1,234.50",
    "5.4 cents",
    r"\frac{\pi}{2}",
    r"\left( 3, \frac{\pi}{2} \right)",
    r"\{1+\sqrt{5}, 1-\sqrt{5}\}",
    r"1\pm\sqrt{5}",
    "x = 5",
    "(C)",
    "3x^2 + 2x",
]
WORDS = [
    "east",
    r"\text{Evelyn}",
    "Natalia sold clips to 48 of her friends, and half as many in May",
    "Algebra",
    "apples, pears and 3 plums",
    "x" * 2000,
    "",
]


@pytest.mark.parametrize("answer", MATHEMATICAL)
def test_numbers_formulas_and_lists_of_them_are_mathematical(answer):
    assert is_mathematical(answer)


@pytest.mark.parametrize("answer", WORDS)
def test_words_are_not(answer):
    assert not is_mathematical(answer)


def test_a_column_that_is_wrong_is_said_in_one_line():
    assert note_on_golds(problems(*WORDS[:5]), "training") == (
        "5 of 5 training answers are no number or formula, and are compared as text; "
        'a:1: "east"'
    )
    long = note_on_golds(problems(WORDS[2] * 9), "held-out")
    assert long.endswith(f'a:1: "{WORDS[2][:60]} ..."')
    many = note_on_golds(problems(*["Algebra"] * 10_001), "training")
    assert many.startswith("10,000 of the first 10,000 training answers")


def test_solutions_and_some_words_are_to_be_expected():
    solutions = ["48/2 = 24\n#### 24", r"So it is \boxed{7}.", "The answer is 19."]
    assert note_on_golds(problems(*solutions), "training") is None
    assert note_on_golds(problems("east", "1", "2"), "training") is None
    assert note_on_golds([], "training") is None


def test_only_where_mathematics_decides_what_is_solved():
    def notes(reward) -> list:
        task = Task(problems("east"), {"solved": Weighted(reward)}, "solved")
        return notes_on_golds(task, problems("west"))

    for reward in (maths.accuracy, maths.Accuracy(tolerance=0.01)):
        assert [note.split(" answers")[0] for note in notes(reward)] == [
            "1 of 1 training",
            "1 of 1 held-out",
        ]
    assert notes(layout.think_then_answer) == []
