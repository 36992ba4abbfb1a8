"""Tests of ROUGE-L against its definition and the example of its paper."""

import time

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.rouge import RougeL, rouge_l
from jaxgrpo.rewards.workers.pool import Missing, Pool


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        (
            "police kill the gunman",
            "police killed the gunman",
            3 / 4,
        ),  # Lin 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("Police killed, the GUNMAN!", "police killed the gunman", 1.0),
        ("the the the the", "the cat", 2 / 6),
        ("12 яблук", "лише 12 яблук", 4 / 5),
        ("苹果有十二个", "苹果有十二个", 1.0),
        ("ขอบคุณ", "police", 0.0),
        ("", "police", 0.0),
        ("police", "", 0.0),
        ("!", "!", 0.0),
    ],
)
def test_rouge_l(text, reference, value):
    assert rouge_l(text, reference) == pytest.approx(value)


def longest_common(a: str, b: str) -> int:
    """Returns the length of the longest common subsequence, one row of the table at a time."""
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(
    st.text("abc", min_size=1, max_size=90), st.text("abcd", min_size=1, max_size=90)
)
def test_rouge_l_is_its_definition(a, b):
    f1 = 2 * longest_common(a, b) / (len(a) + len(b))
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(f1)


def test_only_the_part_asked_for_is_compared_and_with_what_is_asked():
    problem = Problem("1", "Summarise.", "one two", meta={"summary": "three four"})
    text = "<think>three four</think> one two"
    assert RougeL()(problem, text) == RougeL()(problem, "one two") == 1.0
    assert RougeL("think", "summary")(problem, text) == 1.0
    assert (
        RougeL("think")(problem, text)
        == RougeL(reference="summary")(problem, text)
        == 0.0
    )
    # The tags' names are words: there are six.
    assert RougeL("all")(problem, text) == pytest.approx(2 * 2 / (6 + 2))


def test_a_reference_that_is_not_there_is_missing_and_not_zero():
    problem = Problem("1", "Summarise.", "")
    with Pool(
        {"rouge": Weighted(RougeL(reference="summary"))}, 1, deadline=10.0
    ) as pool:
        verdicts = pool.result(pool.submit(problem, ["text"]))
    assert verdicts == [{"rouge": Missing("KeyError")}]


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="part is 'summary'"):
        RougeL("summary")


@pytest.mark.parametrize(
    "words", [("a ",), ("a ", "b "), tuple(f"{number} " for number in range(1000))]
)
def test_long_texts_take_no_square_of_time(words):
    repeats = 400_000 // len(words)
    text = "".join(words) * repeats
    reference = "".join(reversed(words)) * repeats
    before = time.process_time()
    assert 0.0 < rouge_l(text, reference) <= 1.0
    assert time.process_time() - before < 10
