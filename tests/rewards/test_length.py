"""Tests of rewards for length: in tokens, with the bounds that the papers give."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.errors import UserError
from jaxgrpo.losses import advantages
from jaxgrpo.problems import Completion, Problem, Weighted, batched
from jaxgrpo.rewards.length import Cosine, SoftOverlong
from jaxgrpo.rewards.maths.verifier import accuracy
from jaxgrpo.rewards.workers.pool import Missing, Pool

PROBLEM = Problem("1", "question", "42")
RIGHT, WRONG = r"\boxed{42}", r"\boxed{41}"


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (0, 0.0),
        (80, 0.0),
        (81, -0.05),
        (90, -0.5),
        (99, -0.95),
        (100, -1.0),
        (101, -1.0),
        (10**6, -1.0),
    ],
)
def test_soft_overlong_is_equation_13(tokens, value):
    assert (
        SoftOverlong(max_tokens=100, buffer=20)(PROBLEM, Completion("text", tokens))
        == value
    )


@pytest.mark.parametrize("buffer", [1, 7, 20])
def test_soft_overlong_is_the_punishment_of_the_objective(buffer):
    lengths = np.arange(1, 31).reshape(3, 10)
    rewards = [
        [
            SoftOverlong(20, buffer)(PROBLEM, Completion("", int(tokens)))
            for tokens in row
        ]
        for row in lengths
    ]
    np.testing.assert_allclose(
        rewards,
        advantages.soft_overlong(jnp.asarray(lengths), 20.0, float(buffer)),
        rtol=1e-6,
    )


def test_length_is_in_tokens_whatever_the_text():
    for reward in (SoftOverlong(100, 50), Cosine(accuracy, 100)):
        assert reward(PROBLEM, Completion("x", 70)) == reward(
            PROBLEM, Completion("и" * 10_000, 70)
        )


def cosine(text: str, tokens: int, finished: bool = True) -> float:
    return Cosine(accuracy, max_tokens=1000)(
        PROBLEM, Completion(text, tokens, finished)
    )


def test_cosine_starts_and_ends_where_its_settings_say():
    assert (cosine(RIGHT, 0), cosine(WRONG, 0)) == (2.0, -10.0)
    assert cosine(RIGHT, 500) == pytest.approx(1.5)
    assert cosine(WRONG, 500) == pytest.approx(-5.0)
    assert cosine(RIGHT, 999) == pytest.approx(1.0, abs=1e-5)
    assert cosine(WRONG, 999) == pytest.approx(0.0, abs=1e-4)


def test_right_answers_are_better_short_and_wrong_ones_better_long():
    lengths = range(0, 1000, 37)
    right = [cosine(RIGHT, tokens) for tokens in lengths]
    wrong = [cosine(WRONG, tokens) for tokens in lengths]
    assert right == sorted(right, reverse=True)
    assert wrong == sorted(wrong)
    assert len(set(right)) == len(right)
    assert min(right) > max(wrong)


def test_what_is_too_long_or_cut_off_gets_the_exceed_value():
    assert {
        cosine(text, tokens) for text in (RIGHT, WRONG) for tokens in (1000, 1001)
    } == {-10.0}
    assert cosine(RIGHT, 5, finished=False) == -10.0


def raise_lookup_error(problem, text):
    raise LookupError


def not_a_number(problem, text):
    return math.nan


def test_what_is_missing_inside_or_not_known_is_missing_and_not_zero():
    rewards = {
        "overlong": SoftOverlong(100, 20),
        "cosine": Cosine(accuracy, 100),
        "error": Cosine(raise_lookup_error, 100),
        "nan": Cosine(not_a_number, 100),
    }
    with Pool(
        {name: Weighted(reward) for name, reward in rewards.items()}, 1, deadline=10.0
    ) as pool:
        with_length, without_length = pool.result(
            pool.submit(PROBLEM, [Completion(RIGHT, 0), RIGHT])
        )
    assert with_length == {
        "overlong": 0.0,
        "cosine": 2.0,
        "error": Missing("LookupError"),
        "nan": Missing("ValueError"),
    }
    assert without_length == dict.fromkeys(rewards, Missing("TypeError"))


@batched
def all_at_once(problem, completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("make_reward", "message"),
    [
        (
            lambda: SoftOverlong(100, 0),
            "buffer is 0: it must be above 0 and at most max_tokens, which is 100",
        ),
        (lambda: SoftOverlong(100, 101), "buffer is 101"),
        (lambda: Cosine(accuracy, 0), "max_tokens is 0"),
        (lambda: Cosine(accuracy, 9, exceed=-math.inf), "exceed is -inf"),
        (lambda: Cosine(accuracy, 9, wrong=(math.nan, 0.0)), "wrong is"),
        (lambda: Cosine(all_at_once, 9), "not a batched one"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_reward, message):
    with pytest.raises(UserError, match=message):
        make_reward()
