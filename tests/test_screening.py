"""Laws of early stops: groups whose first verdicts promise nothing are not sampled further."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from jaxgrpo.problems import Problem
from jaxgrpo.rollout.collect import Collection, CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.screening import EarlyStop, early_stop_metrics
from jaxgrpo.rollout.stream import RolloutStream
from tests import tiny_engines
from tests.tiny_rollouts import (
    BY_ACCURACY,
    REQUEST,
    FixedProblems,
    Verdicts,
    ids,
    in_lockstep,
    judge_even_lengths,
    make_group,
    no_delay,
)

BAND = DifficultyFilter("band", 0.5, 0.5)
HALF = EarlyStop(verdicts=2, group_size=4, rule=BAND, min_chance=0.3)
"""Of four, two must be solved. After one of two that is likely, after none or two it is not."""


PROBLEM = Problem("p", "prompt", "1")


def test_a_group_goes_on_while_it_may_well_pass():
    def goes_on(rule: EarlyStop, solved: int, judged: int = 2) -> bool:
        return rule.goes_on(PROBLEM, solved, judged)

    assert [goes_on(HALF, solved) for solved in range(3)] == [False, True, False]
    # From Beta(1, 1), after none of two: two of two more, (1 * 2) / (4 * 5).
    assert goes_on(replace(HALF, min_chance=0.0999), 0)
    assert not goes_on(replace(HALF, min_chance=0.1001), 0)
    # What cannot be any more is never sampled: two of four after three failed.
    three = replace(HALF, verdicts=3, min_chance=1e-9)
    assert not goes_on(three, 0, 3)
    assert goes_on(three, 1, 3)
    # Whatever passes in any case goes on, and so does what has no verdict.
    off = replace(HALF, rule=DifficultyFilter("off", 0.0, 1.0), min_chance=1.0)
    assert goes_on(off, 0)
    assert goes_on(HALF, 0, 0)
    # What is known of the problem before counts, too.
    assert not goes_on(replace(HALF, prior=lambda problem: (1.0, 30.0)), 1)


def collect(
    early_stop: EarlyStop | None,
    slots: int = 4,
    chunk: int = 8,
    delay: Callable[[str], float] = no_delay,
    ahead: float = 0.0,
) -> Collection:
    """Returns what a step keeps of a random network's texts: those of even length are right."""
    judge = Judge(Verdicts(judge_even_lengths, delay), BY_ACCURACY, "accuracy")
    request = replace(REQUEST, screened=early_stop.verdicts if early_stop else 0)
    stream = RolloutStream(
        tiny_engines.make_engine(slots, chunk),
        judge,
        FixedProblems(iter(tiny_engines.make_problems(40))),
        request,
    )
    spec = CollectSpec(4, 24, BAND, ahead=ahead, early_stop=early_stop)
    return collect_groups(
        stream, tiny_engines.make_params(), spec, 2, judge.initial_weights()
    )


def described(collection: Collection) -> list[tuple]:
    return [
        (group.problem.id, group.solved, group.judged, group.tokens.tolist())
        for group in [*collection.groups, *collection.asked]
    ]


@pytest.fixture(scope="module")
def stopped():
    return collect(HALF)


def test_groups_that_go_on_are_what_they_would_have_been(stopped):
    """Text by text, and of those that were stopped the first rows are."""
    whole = {group.problem.id: group for group in collect(None).asked}
    lengths = set()
    for group in stopped.asked:
        rows = len(group.texts)
        lengths.add(rows)
        if group.problem.id in whole:
            expected = whole[group.problem.id]
            assert group.texts == expected.texts[:rows]
            np.testing.assert_array_equal(group.tokens, expected.tokens[:rows])
        first_solved = int(np.sum(group.values["accuracy"][:2]))
        assert (rows == 4) == HALF.goes_on(group.problem, first_solved, 2)
    assert lengths == {2, 4}


def test_exactly_the_batch_is_kept_and_nothing_that_was_stopped(stopped):
    assert len(stopped.groups) == 4
    for group in stopped.groups:
        assert (group.solved, group.judged) == (2, 4)
    metrics = stopped.metrics
    shorter = [group for group in stopped.asked if len(group.texts) == 2]
    assert metrics["filter/stopped"] == len(shorter) / len(stopped.asked)
    assert metrics["filter/fallback"] == 0
    # At the bound, what fills the batch was sampled whole, too.
    nothing = replace(BAND, low=1.0, high=1.0)
    bound = collect(replace(HALF, rule=replace(BAND, low=0.75, high=0.75)))
    assert {len(group.texts) for group in bound.groups} <= {4}
    assert not collect(replace(HALF, rule=nothing, min_chance=1.0)).groups


@pytest.mark.parametrize(
    ("slots", "chunk", "slow"), [(4, 8, ("p0", "p5")), (16, 1, ("p3",)), (64, 32, ())]
)
def test_what_is_kept_depends_neither_on_slots_nor_on_slow_verdicts(
    stopped, slots, chunk, slow
):
    again = collect(HALF, slots, chunk, lambda name: 0.05 * (name in slow))
    assert described(again) == described(stopped)
    if slots == 4:
        # When rows start is a function of what was sampled: nothing is rounded otherwise.
        for group, other in zip(again.asked, stopped.asked, strict=True):
            assert group.logprobs.tobytes() == other.logprobs.tobytes()


def test_several_processes_stop_the_same(monkeypatch, stopped):
    def late(problem_id: str) -> float:
        return 0.02 * (int(problem_id[1:]) % 3 == 0)

    for collection in in_lockstep(
        monkeypatch, 2, lambda process: collect(HALF, delay=late)
    ):
        assert described(collection) == described(stopped)
        assert ids(collection.groups) == ids(stopped.groups)


@pytest.mark.parametrize("early_stop", [None, HALF], ids=["whole", "screened"])
def test_what_is_launched_ahead_is_bounded_and_changes_nothing_else(early_stop):
    """Fewer problems are in flight when the batch is full, and no clock says which."""
    free = collect(early_stop, slots=64)
    bounded = collect(early_stop, slots=64, ahead=2.0)
    assert described(bounded) == described(free)
    # Where a fifth passes, as with early stops here, all that may be asked are needed.
    saved = free.metrics["rollout/in_flight"] - bounded.metrics["rollout/in_flight"]
    assert saved > 0 if early_stop is None else saved == 0
    assert bounded.usage.tokens <= free.usage.tokens
    slow = collect(early_stop, slots=64, ahead=2.0, delay=lambda name: 0.02)
    assert slow.usage.tokens == bounded.usage.tokens
    for group, other in zip(slow.asked, bounded.asked, strict=True):
        assert group.logprobs.tobytes() == other.logprobs.tobytes()


# What selection by early verdicts does to estimates.


@pytest.mark.parametrize("pass_rate", [0.1, 0.3, 0.5])
def test_only_what_was_not_selected_is_a_fair_estimate(pass_rate):
    """All 256 outcomes of a group of 8, weighted by their probability.

    A group goes on after 1 of 2. Of hard problems the mean of solved / judged is then too low, and
    the pass rate of those that go on too high.
    """
    all_means = []
    first_means = []
    in_those_that_go_on = []
    further = []
    chances = []
    for outcome in product([0, 1], repeat=8):
        verdicts = np.array(outcome)
        chances.append(
            pass_rate ** verdicts.sum() * (1 - pass_rate) ** (8 - verdicts.sum())
        )
        goes_on = verdicts[:2].sum() == 1
        all_means.append(verdicts.mean() if goes_on else verdicts[:2].mean())
        first_means.append(verdicts[:2].mean())
        in_those_that_go_on.append(verdicts.mean() if goes_on else np.nan)
        further.append(verdicts[2:].mean() if goes_on else np.nan)

    def expected(values: list[float]) -> float:
        known = ~np.isnan(values)
        return np.average(np.array(values)[known], weights=np.array(chances)[known])

    assert expected(first_means) == pytest.approx(pass_rate)
    assert expected(further) == pytest.approx(pass_rate)
    is_fair = pass_rate == 0.5
    assert (expected(all_means) == pytest.approx(pass_rate)) == is_fair
    assert (expected(in_those_that_go_on) == pytest.approx(pass_rate)) == is_fair
    if not is_fair:
        assert expected(all_means) < pass_rate < expected(in_those_that_go_on)


def test_the_mean_of_the_first_verdicts():
    groups = [
        make_group("a", [1, 0, 1, 1]),
        make_group("b", [0, 0]),
        make_group("c", [np.nan, 1, 0, 0]),
        make_group("d", [np.nan, np.nan]),
    ]
    metrics = early_stop_metrics(groups, HALF, "accuracy")
    assert metrics == {"filter/stopped": 0.5, "filter/accuracy_first": 0.5}
