"""Tests of rewards for layouts: tags with names of one's own, and regular expressions."""

import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.layout import Pattern, Tags
from jaxgrpo.rewards.workers.pool import Missing, Pool

PROBLEM = Problem("1", "question", "42")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>6 * 7</think><answer>42</answer>", 1.0),
        ("\n<think>\n6 * 7\n</think>\n\n<answer> 42\n</answer> ", 1.0),
        ("<think></think><answer>a <b> c</answer>", 1.0),
        ("<think>6 * 7</think><answer> \n</answer>", 0.0),
        ("<think>6 * 7</think><answer>42", 0.0),
        ("<think>6 * 7</think>42</answer>", 0.0),
        ("<answer>42</answer><think>6 * 7</think>", 0.0),
        ("<think>6<answer></think>42</answer>", 0.0),
        ("<think><think>6</think><answer>42</answer>", 0.0),
        ("<think>6</think><answer>42</answer><answer>42</answer>", 0.0),
        ("So <think>6</think><answer>42</answer>", 0.0),
        ("<think>6</think> so <answer>42</answer>", 0.0),
        ("<think>6</think><answer>42</answer>.", 0.0),
        ("<Think>6</Think><answer>42</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tags(text, value):
    assert Tags()(PROBLEM, text) == value
    renamed = text.replace("think>", "a.b>").replace("answer>", "최종>")
    assert Tags("a.b", "최종")(PROBLEM, renamed) == value
    if value:
        assert Tags("axb", "최종")(PROBLEM, renamed) == 0.0


@pytest.mark.parametrize(
    ("expression", "text", "value"),
    [
        (r"Answer: \d+", "Answer: 42", 1.0),
        (r"Answer: \d+", "Answer: 42\n", 0.0),
        (r"Answer: \d+", "So Answer: 42", 0.0),
        (r".*Answer: \d+", "So\nAnswer: 42", 0.0),
        (r"(?s).*Answer: \d+", "So\nAnswer: 42", 1.0),
        (r"(?i)answer: \p{Han}+", "ANSWER: 四十二", 1.0),
        ("", "", 1.0),
        ("", "x", 0.0),
    ],
)
def test_a_pattern_is_for_the_whole_text(expression, text, value):
    assert Pattern(expression)(PROBLEM, text) == value


@pytest.mark.parametrize(
    ("make_reward", "message"),
    [
        (lambda: Pattern("(unclosed"), r"regex is '\(unclosed': missing \)"),
        (lambda: Pattern("*"), "nothing to repeat"),
        (lambda: Tags("a b"), "a tag's name is 'a b'"),
        (lambda: Tags(answer=""), "a tag's name is ''"),
        (lambda: Tags("x", "x"), "both tags are 'x'"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(make_reward, message):
    with pytest.raises(UserError, match=message):
        make_reward()


def test_an_expression_without_an_end_is_ended_by_the_deadline():
    with Pool(
        {"pattern": Weighted(Pattern("(a|aa)+b")), "tags": Weighted(Tags())},
        1,
        deadline=0.5,
    ) as pool:
        hopeless, easy = pool.result(pool.submit(PROBLEM, ["a" * 60 + "cb", "aaab"]))
    assert hopeless == {"pattern": Missing("timeout"), "tags": 0.0}
    assert easy == {"pattern": 1.0, "tags": 0.0}
