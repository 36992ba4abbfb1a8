"""Rewards that see a whole group: one call with one deadline, whose loss costs no other call."""

import itertools
import os
import time
from dataclasses import dataclass

import hostile_rewards
import numpy
import pytest

from jaxgrpo.problems import Completion, Problem, Weighted, batched, is_batched
from jaxgrpo.rewards.workers.pool import Missing, Pool, reward_name
from jaxgrpo.rewards.workers.worker import find_reward, list_calls

PROBLEM = Problem("1", "question", "42")


@batched
def rarity(problem, completions):
    """Returns the share of the group that says something else."""
    return numpy.array(
        [1 - completions.count(text) / len(completions) for text in completions]
    )


@batched
def tokens(problem, completions):
    return [text.tokens for text in completions]


@batched
@dataclass(frozen=True)
class Scaled:
    """A batched reward with a setting."""

    scale: float = 2.0

    def __call__(self, problem, completions):
        return [self.scale * len(completions)] * len(completions)


@batched
def too_few(problem, completions):
    return [1.0]


@batched
def one_number(problem, completions):
    return 1.0


@batched
def mixed(problem, completions):
    return [1.0, None, float("nan")]


@batched
def raise_error(problem, completions):
    raise ZeroDivisionError


@batched
def exit_at_once(problem, completions):
    os._exit(1)


@batched
def a_tenth_each(problem, completions):
    time.sleep(0.1 * len(completions))
    return [1.0] * len(completions)


def judged(texts, *rewards, deadline=10.0):
    names = {
        getattr(reward, "__name__", "instance"): Weighted(reward) for reward in rewards
    }
    with Pool(names, 1, deadline) as pool:
        return pool.result(pool.submit(PROBLEM, texts))


def test_a_batched_reward_sees_the_whole_group_and_each_text_gets_its_own():
    texts = [
        Completion(text, tokens)
        for text, tokens in (("a", 5), ("b", 6), ("a", 7), ("c", 8))
    ]
    values = judged(texts, rarity, hostile_rewards.length, tokens, Scaled(0.5))
    assert [value["rarity"] for value in values] == [0.5, 0.75, 0.5, 0.75]
    assert [value["tokens"] for value in values] == [5.0, 6.0, 7.0, 8.0]
    assert {(value["length"], value["instance"]) for value in values} == {(1.0, 2.0)}
    assert judged([], rarity, hostile_rewards.length) == []


def test_a_batched_reward_is_known_by_its_mark_and_keeps_its_settings():
    assert is_batched(rarity)
    assert is_batched(Scaled())
    assert not is_batched(hostile_rewards.length)
    assert find_reward(reward_name(Scaled(3.0))) == Scaled(3.0)


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (too_few, "wrong number of results"),
        (one_number, "TypeError"),
        (raise_error, "ZeroDivisionError"),
        (exit_at_once, "crash"),
    ],
)
def test_a_lost_call_costs_its_own_verdicts_and_no_others(reward, reason):
    values = judged(["a", "bb", "ccc", "dddd"], hostile_rewards.length, reward, rarity)
    assert values == [
        {"length": length, reward.__name__: Missing(reason), "rarity": 0.75}
        for length in (1, 2, 3, 4)
    ]


def test_what_is_no_number_is_missing_by_itself():
    values = judged(["a", "b", "c"], mixed)
    assert values == [
        {"mixed": 1.0},
        {"mixed": Missing("not a number")},
        {"mixed": Missing("not finite")},
    ]


def test_one_deadline_holds_for_the_whole_call():
    """A group of eight may not take eight deadlines: that would hide a hang."""
    before = time.monotonic()
    values = judged(["text"] * 8, a_tenth_each, hostile_rewards.length, deadline=0.4)
    assert values == [{"a_tenth_each": Missing("timeout"), "length": 4.0}] * 8
    assert time.monotonic() - before < 5
    assert (
        judged(["text"] * 2, a_tenth_each, deadline=2.0) == [{"a_tenth_each": 1.0}] * 2
    )


@pytest.mark.parametrize("texts", [0, 1, 3])
@pytest.mark.parametrize(
    "rewards",
    [[], [rarity], [hostile_rewards.length], [rarity, hostile_rewards.length, tokens]],
)
def test_the_calls_of_a_ticket_are_every_reward_of_every_text_once(rewards, texts):
    planned = list_calls(rewards, texts)
    pairs = [(call.reward, text) for call in planned for text in call.texts]
    assert sorted(pairs) == list(itertools.product(range(len(rewards)), range(texts)))
    for call in planned:
        assert len(call.texts) == (texts if is_batched(rewards[call.reward]) else 1)
