"""Laws of streams: what goes on from step to step, and how old what is trained on may be."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.problems import Problem
from jaxgrpo.rewards.workers.pool import Ticket
from jaxgrpo.rollout.collect import Collection, CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.screening import EarlyStop
from jaxgrpo.rollout.stream import RolloutStream
from tests import tiny_engines
from tests.tiny_rollouts import (
    BY_ACCURACY,
    REQUEST,
    Verdicts,
    ids,
    in_lockstep,
    judge_even_lengths,
    no_delay,
)

OFF = DifficultyFilter("off", 0.0, 1.0)
TWO_GROUPS = CollectSpec(groups=2, max_prompts=2, filter=OFF)
DAPO = CollectSpec(groups=2, max_prompts=6, filter=DifficultyFilter("dapo", 0.0, 1.0))
CLOCK_METRICS = {"rollout/tokens_per_s", "rollout/idle", "time/rollout"}


def is_accepted(problem: Problem) -> bool:
    return problem.id != "p3"


def make_order() -> ProblemOrder:
    return ProblemOrder(tiny_engines.make_problems(40), seed=0)


def make_stream(
    keep_in_flight: bool, verdicts: Verdicts | None = None, max_age: int = 2
) -> RolloutStream:
    """Returns a stream of endless problems, which a random network is asked.

    verdicts: by default a text is right if it has an even number of letters
    """
    return RolloutStream(
        tiny_engines.make_engine(16, 8),
        Judge(verdicts or Verdicts(judge_even_lengths), BY_ACCURACY, "accuracy"),
        ProblemStream(make_order(), is_accepted),
        REQUEST,
        keep_in_flight,
        max_age,
    )


def collect(stream: RolloutStream, spec: CollectSpec, step: int) -> Collection:
    weights = stream.judge.initial_weights()
    return collect_groups(stream, tiny_engines.make_params(), spec, step, weights)


def position_after(used: int) -> int:
    """Returns where an order stands once so many accepted problems were taken from it."""
    order = make_order()
    while used:
        (problem,) = order.take(1)
        used -= is_accepted(problem)
    return order.position


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_in_flight_goes_on_at_the_next_step_or_is_asked_again(keep):
    stream = make_stream(keep)
    asked = []
    ages = []
    for step in (1, 2, 3, 4):
        collection = collect(stream, TWO_GROUPS, step)
        assert collection.groups == collection.asked
        asked += collection.asked
        ages.append(collection.metrics["rollout/age_max"])
        assert (collection.metrics["rollout/age"] > 0) == (ages[-1] > 0)
        for group in collection.groups:
            assert group.policy_steps[group.completion_mask].min() >= 1
            assert group.policy_steps.max() <= step
            assert not group.policy_steps[~group.completion_mask].any()
        # Either way a checkpoint would go on after the last problem that was used: p3 alone is
        # passed over.
        assert position_after(2 * step) == stream.problems._order.position
    first_problems = islice(ProblemStream(make_order(), is_accepted), 8)
    assert ids(asked) == [problem.id for problem in first_problems]
    assert ages[0] == 0
    assert (max(ages) > 0) == keep


def test_kept_rows_are_what_one_policy_would_have_written_if_it_does_not_change():
    """Four steps of two groups are one of eight.

    The policy and what randomness is made of stay the same.
    """
    at_once = collect(make_stream(True), CollectSpec(8, 8, OFF), 1).groups
    stream = make_stream(True)
    groups = []
    for _ in range(4):
        groups += collect(stream, TWO_GROUPS, 1).groups
    assert ids(groups) == ids(at_once)
    for group, expected in zip(groups, at_once, strict=True):
        np.testing.assert_array_equal(group.tokens, expected.tokens)
        np.testing.assert_allclose(group.logprobs, expected.logprobs, atol=1e-6)


def run_seven_steps(
    max_age: int,
    delay: Callable[[str], float] = no_delay,
    verdicts: Callable[[Problem, list[str]], list[dict]] = judge_even_lengths,
    spec: CollectSpec = DAPO,
):
    """Returns what seven steps hold that keep what is in flight.

    Of each step: the ids of its groups; id, tokens, their steps and the solved count of each group
    that it asked; and its metrics but those of a clock.

    delay: seconds that a problem's verdicts take
    """
    stream = make_stream(True, Verdicts(verdicts, delay), max_age)
    if spec.early_stop:
        stream = replace(stream, request=replace(REQUEST, screened=2))
    steps = []
    for step in range(1, 8):
        collection = collect(stream, spec, step)
        texts = [
            (
                group.problem.id,
                group.tokens.tolist(),
                group.policy_steps.tolist(),
                group.solved,
            )
            for group in collection.asked
        ]
        metrics = collection.metrics
        timeless = {
            name: value for name, value in metrics.items() if name not in CLOCK_METRICS
        }
        timeless["tokens"] = round(
            metrics["rollout/tokens_per_s"] * metrics["time/rollout"]
        )
        steps.append((ids(collection.groups), texts, timeless))
    return steps


@pytest.mark.parametrize("max_age", [1, 2, 3])
def test_what_is_kept_in_flight_does_not_depend_on_how_long_verdicts_take(max_age):
    """Texts, the step of each token, and all metrics but times depend on the seed alone."""
    at_once = run_seven_steps(max_age)
    random = np.random.default_rng(0)
    assert run_seven_steps(max_age, lambda _: 0.03) == at_once
    assert (
        run_seven_steps(max_age, lambda name: 0.1 * (name in ("p0", "p7", "p11")))
        == at_once
    )
    assert (
        run_seven_steps(max_age, lambda _: random.choice([0.0, 0.002, 0.05])) == at_once
    )


def test_groups_that_are_stopped_early_do_not_depend_on_it_either():
    """With completions that go on from step to step, too."""
    early_stop = EarlyStop(2, 4, DAPO.filter, min_chance=0.8)
    spec = replace(DAPO, early_stop=early_stop)
    at_once = run_seven_steps(2, spec=spec)
    assert run_seven_steps(2, lambda name: 0.05 * (name < "p2"), spec=spec) == at_once
    sizes = {len(tokens) for _, asked, _ in at_once for _, tokens, _, _ in asked}
    assert sizes == {2, 4}
    ages = [metrics["rollout/age_max"] for _, _, metrics in at_once]
    assert 0 < np.nanmax(ages) <= 2


def all_wrong(problem: Problem, texts: list[str]) -> list[dict]:
    return [{"accuracy": 0.0} for _ in texts]


def all_right(problem: Problem, texts: list[str]) -> list[dict]:
    return [{"accuracy": 1.0} for _ in texts]


@pytest.mark.parametrize("max_age", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spec": TWO_GROUPS},
        {"verdicts": all_wrong},
        {"spec": replace(DAPO, max_prompts=3)},
        {"spec": replace(DAPO, filter=DifficultyFilter("band", 0.5, 0.5))},
    ],
    ids=["dapo", "off", "underfull", "max_prompts", "band"],
)
def test_tokens_that_are_trained_on_are_no_older_than_they_may_be(max_age, changes):
    """Whether batches are filled or `max_prompts` problems are asked in vain.

    All tokens are looked at.
    """
    in_flight = []
    ages = []
    for step, (_, asked, metrics) in enumerate(
        run_seven_steps(max_age, **changes), start=1
    ):
        in_flight.append(metrics["rollout/in_flight"])
        for _, _, policy_steps, _ in asked:
            steps = np.array(policy_steps)
            ages += (step - steps[steps > 0]).tolist()
    assert max(ages) <= max_age
    assert max(ages) > 0
    assert 0 < max(in_flight) <= max_age * DAPO.groups


def test_the_metrics_of_a_step_are_those_of_its_own_tokens():
    results = run_seven_steps(2)
    by_group = []
    for _, asked, _ in results:
        by_group += [np.array(policy_steps) for _, _, policy_steps, _ in asked]
    policy_steps_of_all = np.concatenate(by_group, axis=None)
    for step, (chosen, asked, metrics) in enumerate(results[:-2], start=1):
        # All rows of a step's tokens have been handed out two steps later.
        assert metrics["tokens"] == np.sum(policy_steps_of_all == step)
        ages = []
        for problem_id, _, policy_steps, _ in asked:
            steps = np.array(policy_steps)
            if problem_id in chosen:
                ages += (step - steps[steps > 0]).tolist()
        if ages:
            assert metrics["rollout/age"] == pytest.approx(np.mean(ages), abs=1e-9)
            assert metrics["rollout/age_max"] == np.max(ages)


def test_time_that_verdicts_take_after_the_last_call_is_no_time_of_sampling():
    stream = make_stream(True, Verdicts(all_right, lambda _: 0.5))
    started_at = time.perf_counter()
    metrics = collect(stream, TWO_GROUPS, 1).metrics
    assert metrics["time/rollout"] < time.perf_counter() - started_at - 0.2


def test_what_is_in_flight_when_a_run_ends_is_not_judged():
    stream = make_stream(True)
    cancelled: list[Ticket] = []
    stream.judge.pool.cancel = cancelled.append
    collect(stream, TWO_GROUPS, 1)
    assert not cancelled
    stream.close()
    assert len(cancelled) > 0


@pytest.mark.parametrize("keep", [False, True])
def test_a_problem_that_is_asked_twice_in_a_step_is_another_group(keep):
    """Four problems fill a batch of eight groups: no two are alike, in a step or in two."""
    order = ProblemOrder(tiny_engines.make_problems(4), seed=0)
    stream = replace(
        make_stream(keep, Verdicts(all_right)),
        problems=ProblemStream(order, lambda problem: True),
    )
    groups = []
    for step in (1, 2):
        groups += collect(stream, CollectSpec(8, 8, OFF), step).groups
    assert len({(group.problem.id, group.tokens.tobytes()) for group in groups}) == 16


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_keep_the_same_in_flight(monkeypatch, num_processes):
    """A third of the verdicts is late, in the process whose share it is."""

    def late(problem_id: str) -> float:
        return 0.03 * (int(problem_id[1:]) % 3 == 0)

    results = in_lockstep(
        monkeypatch, num_processes, lambda process: run_seven_steps(2, late)
    )
    assert results == [run_seven_steps(2)] * num_processes
