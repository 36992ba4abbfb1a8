"""Laws of judging: verdicts come back in the order of launch, whoever computes them and when."""

import math
import time
from concurrent.futures import Future
from itertools import permutations

import numpy as np
import pytest

from jaxgrpo.problems import Completion, Weighted
from jaxgrpo.rewards.length import SoftOverlong
from jaxgrpo.rewards.workers.pool import Missing, Pool
from jaxgrpo.rollout.groups import FinishedCompletion, JudgedGroup
from jaxgrpo.rollout.judge import Judge, judged_in_order
from jaxgrpo.rollout.report import summarise
from tests.tiny_rollouts import (
    BY_ACCURACY,
    NEW,
    Verdicts,
    ids,
    in_lockstep,
    judge_all,
    make_sampled_group,
    scripted,
)

WEIGHTS = {"accuracy": 1.0}


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_groups_are_judged_in_launch_order_and_submitted_as_they_come(order):
    pool = Verdicts(scripted([1, 2, 3]))
    session = []
    for index in order:
        session += [(index, make_sampled_group(f"p{index}")), None]
    judge = Judge(pool, BY_ACCURACY, "accuracy")
    assert ids(list(judged_in_order(iter(session), judge, WEIGHTS))) == [
        "p0",
        "p1",
        "p2",
    ]
    assert pool.submitted == [f"p{index}" for index in order]


def test_a_group_is_handed_out_as_soon_as_it_and_those_before_it_are_judged():
    pool = Verdicts(scripted([1, 2, 3]))
    complete = []

    def session():
        for index in (1, 0, 2):
            complete.append(index)
            yield index, make_sampled_group(f"p{index}")

    judged = judged_in_order(session(), Judge(pool, BY_ACCURACY, "accuracy"), WEIGHTS)
    assert next(judged).solved == 1
    assert complete == [1, 0]
    assert next(judged).solved == 2
    assert complete == [1, 0]
    assert next(judged).solved == 3


def interleaved_events() -> list:
    """Returns the events of two groups of three.

    Rows 2 and 0 of p0 end, then p1's all, then row 1 of p0.
    """
    groups = [make_sampled_group(f"p{index}", 3) for index in range(2)]

    def finished(index: int, row: int) -> FinishedCompletion:
        text = Completion(groups[index].texts[row], 1)
        return FinishedCompletion(index, groups[index].problem, row, text)

    return [
        finished(0, 2),
        finished(0, 0),
        None,
        *(finished(1, row) for row in range(3)),
        (1, groups[1]),
        finished(0, 1),
        (0, groups[0]),
    ]


@pytest.mark.parametrize("together", [False, True])
def test_texts_are_submitted_as_they_end_unless_a_reward_must_see_them_together(
    together,
):
    """Either way a group's verdicts are in the order of its texts."""

    def verdicts(problem, texts):
        return [
            {"accuracy": float(text[-1]), "size": float(len(texts))} for text in texts
        ]

    pool = Verdicts(verdicts)
    pool.batched = together
    judge = Judge(pool, BY_ACCURACY, "accuracy")
    groups = list(judged_in_order(iter(interleaved_events()), judge, WEIGHTS))
    assert ids(groups) == ["p0", "p1"]
    assert pool.submitted == (
        ["p1", "p0"] if together else ["p0", "p0", "p1", "p1", "p1", "p0"]
    )
    for group in groups:
        assert group.values["accuracy"].tolist() == [0, 1, 2]
        assert set(group.values["size"]) == {3.0 if together else 1.0}


def test_nobody_waits_for_a_slow_verdict_while_the_device_has_work():
    """p0's verdict comes late, and is waited for only at the end.

    The others are written and submitted meanwhile.
    """
    pool = Verdicts(scripted([1, 2, 3]), delay=lambda name: 0.3 * (name == "p0"))
    started_at = time.perf_counter()
    busy_seconds = []

    def session():
        for index in range(3):
            yield index, make_sampled_group(f"p{index}")
        busy_seconds.append(time.perf_counter() - started_at)

    judged = judged_in_order(session(), Judge(pool, BY_ACCURACY, "accuracy"), WEIGHTS)
    assert ids(list(judged)) == ["p0", "p1", "p2"]
    assert pool.waited == ["p0"]
    assert busy_seconds[0] < 0.2


def test_missing_verdicts_and_numbers_travel_between_processes_as_they_are(monkeypatch):
    third = 1 / 3

    def verdicts(problem, texts):
        return [
            {"accuracy": third} if "1" in text[2:] else {"accuracy": Missing("crash")}
            for text in texts
        ]

    def work(process: int):
        judge = Judge(Verdicts(verdicts), BY_ACCURACY, "accuracy")
        return list(judged_in_order(iter(interleaved_events()), judge, WEIGHTS))

    for groups in in_lockstep(monkeypatch, 2, work):
        assert ids(groups) == ["p0", "p1"]
        for group in groups:
            np.testing.assert_array_equal(group.rewards, [math.nan, third, math.nan])
            assert group.missing == {(0, "accuracy"): "crash", (2, "accuracy"): "crash"}


def test_a_ticket_is_judged_when_its_verdicts_are_there():
    pool = Verdicts(scripted([3]), delay=lambda _: 0.02)
    judge = Judge(pool, {"accuracy": Weighted(len, 2.0)}, "accuracy")
    group = make_sampled_group("p0")
    ticket = judge.submit(group)
    assert isinstance(ticket.verdicts, Future)
    judged = judge.judge(group, judge.verdicts([ticket]), judge.initial_weights())
    assert (judged.solved, judged.judged) == (3, 4)
    np.testing.assert_array_equal(judged.rewards, [2, 2, 2, 0])


def judged_groups(solved_by: str = "accuracy", **weights: float) -> list[JudgedGroup]:
    """Returns two groups judged by a pool that knows the verdicts beforehand."""
    verdicts = {
        "a": [
            {"accuracy": 1.0, "format": 0.5},
            {"accuracy": 0.0, "format": Missing("timeout")},
            {"accuracy": 0.999, "format": 1.0},
        ],
        "b": [
            {"accuracy": Missing("crash"), "format": 1.0},
            {"accuracy": 1.0, "format": 0.0},
            {"accuracy": 0.0, "format": 0.0},
        ],
    }
    rewards = {name: Weighted(len, weight) for name, weight in weights.items()}
    judge = Judge(Verdicts(lambda problem, _: verdicts[problem.id]), rewards, solved_by)
    return judge_all(judge, [make_sampled_group("a", 3), make_sampled_group("b", 3)])


def test_rewards_of_length_see_the_tokens_that_the_mask_counts():
    rewards = {"short": Weighted(SoftOverlong(max_tokens=NEW, buffer=NEW))}
    with Pool(rewards, 1, deadline=10.0) as pool:
        (group,) = judge_all(Judge(pool, rewards, "short"), [make_sampled_group("a")])
    np.testing.assert_array_equal(
        group.rewards, -group.completion_mask.sum(axis=1) / NEW
    )


def test_rewards_are_weighted_sums_and_pass_rates_are_not():
    a, b = judged_groups(accuracy=2.0, format=0.1)
    np.testing.assert_allclose(a.rewards, [2.05, math.nan, 2.098])
    np.testing.assert_allclose(b.rewards, [math.nan, 2.0, 0.0])
    assert (a.solved, a.judged) == (1, 3)  # 0.999 is not solved
    assert (b.solved, b.judged) == (
        1,
        2,
    )  # the missing verdict is neither right nor wrong
    assert [list(group.missing.values()) for group in (a, b)] == [
        ["timeout"],
        ["crash"],
    ]


def test_a_missing_verdict_of_no_weight_costs_no_reward():
    a, b = judged_groups(accuracy=1.0, format=0.0)
    np.testing.assert_allclose(a.rewards, [1.0, 0.0, 0.999])
    means = summarise([a, b])
    assert means["verdict/missing"] == 2 / 12
    assert means["verdict/missing/timeout"] == means["verdict/missing/crash"] == 1


def test_solved_by_another_reward():
    groups = judged_groups(solved_by="format", accuracy=1.0, format=0.0)
    assert [(group.solved, group.judged) for group in groups] == [(1, 2), (1, 3)]
