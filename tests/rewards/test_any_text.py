"""Every reward has a number within its bounds for any text that a model may write."""

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxgrpo.problems import Completion, Problem
from jaxgrpo.rewards.gate import Gate
from jaxgrpo.rewards.layout import Pattern, Tags, think_then_answer
from jaxgrpo.rewards.length import Cosine, SoftOverlong
from jaxgrpo.rewards.maths.verifier import accuracy
from jaxgrpo.rewards.repetition import Repetition
from jaxgrpo.rewards.rouge import RougeL

BOUNDS = [
    (SoftOverlong(100, 30), -1.0, 0.0),
    (Cosine(accuracy, 100), -10.0, 2.0),
    (Repetition(2, -0.5), -0.5, 0.0),
    (RougeL(), 0.0, 1.0),
    (RougeL("all", reference="summary"), 0.0, 1.0),
    (Pattern(r"(?s).*\p{L}+"), 0.0, 1.0),
    (Tags(), 0.0, 1.0),
    (think_then_answer, 0.0, 1.0),
    (Gate(Repetition(1, -2.0), when=Tags()), -2.0, 0.0),
]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
FRAGMENTS = (
    *TAGS,
    r"\boxed{42}",
    "苹果",
    "ก่อนอื่น",
    "e\u0301",
    "\ud800",
    "\x00",
    " ",
    "a b ",
)
TEXT = st.text(st.characters()) | st.lists(
    st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=20
).map("".join)


@pytest.mark.parametrize(
    ("reward", "low", "high"), BOUNDS, ids=lambda value: type(value).__name__
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(TEXT, TEXT, st.integers(0, 300), st.booleans())
def test_any_text_has_a_score_within_the_bounds(
    reward, low, high, text, reference, tokens, finished
):
    problem = Problem("1", "question", "42", meta={"summary": reference})
    value = reward(problem, Completion(text, tokens, finished))
    assert type(value) is float
    assert low <= value <= high
