"""Laws of collecting: what a step keeps is a function of the verdicts alone."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from jaxgrpo.rollout.collect import (
    Collection,
    CollectSpec,
    collect_groups,
    most_informative,
)
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.filter_metrics import divergence, leading_term
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.stream import RolloutStream
from tests import tiny_engines
from tests.tiny_rollouts import (
    BY_ACCURACY,
    REQUEST,
    FixedProblems,
    Verdicts,
    World,
    ids,
    in_lockstep,
    judge_even_lengths,
    make_group,
    no_delay,
)

SCRIPT = [0, 2, 4, 4, 1, 0, 3, *[2] * 40]


def middle(pending: list[int]) -> int:
    return pending[len(pending) // 2]


def test_the_batch_is_filled_in_the_order_of_asking():
    world = World(script=[2, 0, 4, 1, 3, 2, 2, 2])
    collection = world.collect()
    metrics = collection.metrics
    assert ids(collection.groups) == ["p0", "p3", "p4"]
    assert ids(collection.asked) == ["p0", "p1", "p2", "p3", "p4"]
    assert metrics["filter/asked"] == 5
    assert metrics["filter/kept"] == 3 / 5
    assert metrics["filter/too_hard"] == metrics["filter/too_easy"] == 1 / 5
    assert metrics["filter/fallback"] == 0
    assert metrics["filter/groups"] == 3
    assert metrics["rollout/in_flight"] == len(world.taken) - 5


@pytest.mark.parametrize("ahead", [1, 2, 5, 12])
@pytest.mark.parametrize("pick", [min, max, middle], ids=["first", "last", "middle"])
def test_what_is_kept_does_not_depend_on_which_groups_are_ready_first(ahead, pick):
    """`last`: the newest group is always ready first, and the oldest when no other is left.

    Without an end of the problems that would be never.
    """
    world = World(SCRIPT[:20], ahead=ahead, pick=pick, num_problems=20)
    collection = world.collect()
    metrics = collection.metrics
    assert ids(collection.groups) == ["p1", "p4", "p6"]
    # What was asked beyond p6 does not count.
    assert ids(collection.asked) == [f"p{place}" for place in range(7)]
    assert (metrics["filter/groups"], metrics["filter/kept"]) == (3, 3 / 7)
    assert metrics["reward/accuracy"] == sum(SCRIPT[:7]) / 28
    assert metrics["rollout/in_flight"] == len(world.taken) - 7


@pytest.mark.parametrize(
    "slow", [("p0",), ("p1",), ("p5", "p6"), ("p7",), ("p0", "p3", "p6")], ids="".join
)
def test_what_is_kept_does_not_depend_on_which_verdicts_are_slow(slow):
    world = World(
        SCRIPT, ahead=3, delay=lambda name: 0.05 * (name in slow), num_problems=30
    )
    collection = world.collect()
    assert ids(collection.groups) == ["p1", "p4", "p6"]
    assert ids(collection.asked) == [f"p{place}" for place in range(7)]


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("slow", [("p0",), ("p1", "p4"), ("p6",)], ids="".join)
def test_several_processes_share_the_judging_and_come_to_the_same_decisions(
    monkeypatch, num_processes, slow
):
    """A verdict is slow in the process whose share it is.

    All take the same groups at the same call of the device.
    """
    worlds = [
        World(
            SCRIPT, ahead=3, delay=lambda name: 0.03 * (name in slow), num_problems=30
        )
        for _ in range(num_processes)
    ]
    collections = in_lockstep(
        monkeypatch, num_processes, lambda process: worlds[process].collect()
    )
    for collection in collections:
        assert ids(collection.groups) == ["p1", "p4", "p6"]
        assert ids(collection.asked) == [f"p{place}" for place in range(7)]
    for collection, other in pairwise(collections):
        assert collection.metrics == other.metrics
    assert len({len(world.taken) for world in worlds}) == 1
    for process, world in enumerate(worlds):
        share = [
            f"p{place}"
            for place in range(len(world.taken))
            if place % num_processes == process
        ]
        submitted = world.pool.submitted
        assert submitted == share[: len(submitted)]
        assert set(world.pool.waited) <= set(slow)


def test_the_refill_is_bounded():
    world = World(script=[0] * 50)
    collection = world.collect(max_prompts=5)
    metrics = collection.metrics
    assert collection.groups == []
    assert len(collection.asked) == len(world.taken) == 5
    assert metrics["filter/kept"] == metrics["filter/groups"] == 0
    assert metrics["filter/too_hard"] == 1


def test_at_the_bound_the_most_informative_of_the_others_fill_the_batch():
    """Outside a band of exactly 1/2: 1 and 3 of 4 have a variance, 0 and 4 have none.

    These have one where something else was rewarded, too.
    """
    script = [0, 1, 4, 2, 3, 0]
    collection = World(script).collect(low=0.5, high=0.5, max_prompts=6)
    assert ids(collection.groups) == ["p3", "p1", "p4"]
    assert collection.metrics["filter/kept"] == 1 / 6
    assert collection.metrics["filter/fallback"] == 2
    collection = World(script).collect(groups=6, low=0.5, high=0.5, max_prompts=6)
    assert ids(collection.groups) == ["p3", "p1", "p4"]
    assert collection.metrics["filter/groups"] == 3
    shaped = World(script, shaped=0.01).collect(
        groups=6, low=0.5, high=0.5, max_prompts=6
    )
    # Of equal verdicts, the greater variance of the reward comes first.
    assert ids(shaped.groups)[:3] == ["p3", "p4", "p1"]
    assert set(ids(shaped.groups)) == {f"p{place}" for place in range(6)}


def test_equal_rewards_are_never_informative():
    """Eight times 0.1 may have a mean that is not 0.1.

    And sums of the same parts may differ in their last bit.
    """
    same = make_group("same", [0] * 8, [0.1] * 8)
    rounded = make_group("rounded", [0] * 8, [0.1 + 0.2, 0.3] * 4)
    absent = make_group("absent", [math.nan] * 8)
    one = make_group("one", [0, *[math.nan] * 7], [1.0, *[math.nan] * 7])
    different = make_group("different", [0] * 8, [0.1] * 7 + [0.2])
    assert ids(most_informative([same, rounded, absent, one, different], 5)) == [
        "different"
    ]
    assert most_informative([different], 0) == most_informative([different], -1) == []


def test_the_filter_sees_the_verdict_and_not_the_shaped_reward():
    plain = World([2, 0, 4, 1, 3, 2])
    shaped = World([2, 0, 4, 1, 3, 2], shaped=-0.7)
    assert (
        ids(plain.collect().groups)
        == ids(shaped.collect().groups)
        == ["p0", "p3", "p4"]
    )


def test_dapo_and_off():
    script = [0, 1, 4, 3, 0, 2]
    dapo = World(script).collect(rule="dapo", low=0.5, high=0.5)
    assert ids(dapo.groups) == ["p1", "p3", "p5"]
    off = World(script).collect(rule="off", max_prompts=3)
    assert ids(off.groups) == ["p0", "p1", "p2"]
    assert off.metrics["filter/kept"] == 1


def test_without_refill_what_does_not_pass_leaves_the_batch():
    """Neither are further problems asked, nor does anything that failed fill the batch."""
    world = World([2, 0, 4, 1, 3, 2])
    collection = world.collect(refill=False)
    assert ids(collection.asked) == ["p0", "p1", "p2"]
    assert ids(collection.groups) == ["p0"]
    assert collection.metrics["filter/fallback"] == 0
    assert collection.metrics["filter/kept"] == 1 / 3
    nothing = World([0, 4, 0]).collect(refill=False)
    assert nothing.groups == []
    assert len(nothing.asked) == 3


def test_of_all_that_may_be_asked_the_greatest_variance_is_selected():
    """2 of 4 before 1 and 3 of 4, and of these the first that was launched."""
    world = World([1, 2, 0, 3, 4, 2, 1, 2, 2, 2])
    collection = world.collect(select="variance", max_prompts=7)
    assert len(collection.asked) == 7
    assert ids(collection.groups) == ["p1", "p5", "p0"]
    # Where fewer passed, the batch is filled as ever.
    few = World([1, 2, 0, 3, 4]).collect(
        select="variance", low=0.5, high=0.5, max_prompts=5
    )
    assert ids(few.groups) == ["p1", "p0", "p3"]
    assert few.metrics["filter/fallback"] == 2


def test_the_variance_of_rewards_that_are_no_verdicts():
    """Nobody solves p1, but some of its completions are better than others."""
    script = [0] * 12
    plain = World(script).collect(rule="variance")
    assert plain.groups == []
    assert ids(World(script, shaped=0.1).collect(rule="variance").groups) == [
        "p0",
        "p1",
        "p2",
    ]


def test_the_order_of_finishing_favours_short_answers():
    """The more of a group is right, the sooner it ends: right answers are short ones.

    By launch the batch has what was asked. By finishing it has the easy problems of those that
    were sampled side by side, and the hard ones are passed over.
    """
    script = [1, 3] * 20

    def shortest(pending: list[int]) -> int:
        return min(pending, key=lambda index: (-script[index], index))

    def collect(select: str) -> tuple[World, Collection]:
        world = World(script, ahead=8, pick=shortest, num_problems=40)
        return world, world.collect(groups=6, select=select)

    world, launched = collect("launch")
    assert [group.solved for group in launched.groups] == script[:6]
    assert world.used == 6
    world, finished = collect("finish")
    assert ids(finished.groups) == ["p1", "p3", "p5", "p7", "p9", "p11"]
    assert [group.solved for group in finished.groups] == [3] * 6
    assert (
        world.used == 12
    )  # what was launched before p11 is not asked again in this pass


@pytest.mark.parametrize("slow", [("p1",), ("p0", "p3"), ("p7",)], ids="".join)
def test_the_order_of_finishing_is_that_of_sampling_and_not_of_verdicts(slow):
    def collect(delay: Callable[[str], float]) -> tuple[list[str], list[str], int]:
        world = World(SCRIPT, ahead=4, pick=max, delay=delay, num_problems=20)
        collection = world.collect(select="finish")
        return ids(collection.groups), ids(collection.asked), world.used

    assert collect(lambda name: 0.03 * (name in slow)) == collect(no_delay)


@pytest.mark.parametrize("select", ["launch", "variance", "finish"])
@pytest.mark.parametrize("script", [[0] * 30, [4] * 30], ids=["unsolvable", "solved"])
def test_data_without_a_variance_ends_at_the_bound(script, select):
    world = World(script)
    collection = world.collect(select=select, max_prompts=9)
    assert collection.groups == []
    assert len(collection.asked) == world.used == 9


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 20.0])
@pytest.mark.parametrize("solved", range(5))
def test_the_divergence_is_that_of_the_optimal_policy(solved, beta):
    """Four texts, alike for the initial policy, of which some are right."""
    initial = np.full(4, 1 / 4)
    rewards = (np.arange(4) < solved).astype(float)
    optimal = initial * np.exp(rewards / beta)
    optimal /= optimal.sum()
    expected = (initial * np.log(initial / optimal)).sum()
    assert divergence(solved / 4, beta) == pytest.approx(expected, abs=1e-12)
    if beta == 20:
        near = leading_term(rewards.var(), beta)
        assert near == pytest.approx(expected, rel=0.02, abs=1e-12)


def test_the_divergence_of_a_small_beta_is_finite():
    assert divergence(0.5, 1e-4) == pytest.approx(5e3 - math.log(2))


def test_what_the_filter_did_in_numbers():
    collection = World([0, 4, 1, 3, 2, 2]).collect(low=0.5, high=0.75)
    metrics = collection.metrics
    assert ids(collection.groups) == ["p3", "p4", "p5"]
    rates = {
        name.removeprefix("filter/pass_rate/"): round(6 * value)
        for name, value in metrics.items()
        if name.startswith("filter/pass_rate/")
    }
    assert rates == {
        "none": 1,
        "below_0.25": 0,
        "below_0.5": 1,
        "below_0.75": 2,
        "below_1": 1,
        "all": 1,
    }
    assert metrics["filter/oversampling"] == 2
    assert metrics["filter/variance"] == pytest.approx((2 * 3 / 16 + 2 / 4) / 6)
    assert metrics["filter/variance_trained"] == pytest.approx((3 / 16 + 2 / 4) / 3)
    assert metrics["filter/leading_term"] == metrics["filter/variance"] / 2
    assert metrics["filter/divergence"] > 0
    # Groups of 1, 2, 3 and 4 tokens, of which three train; the scripted session counts one token.
    assert metrics["completion/tokens_trained"] == metrics["completion/tokens"] == 2.5
    assert metrics["rollout/trained"] == 30


def test_a_batch_of_no_tokens_has_no_age():
    metrics = World(script=[0] * 50).collect(max_prompts=5).metrics
    assert math.isnan(metrics["rollout/age"])
    assert math.isnan(metrics["rollout/age_max"])


@pytest.fixture(scope="module")
def kept():
    """What a step keeps of a random network's texts, judged at once."""
    return collect_texts(4, 1)


def collect_texts(slots: int, chunk: int, delay: Callable[[str], float] = no_delay):
    """Returns what a step keeps, what it asked, and its metrics but those of speed.

    A text is right if it has an even number of letters.
    """
    judge = Judge(Verdicts(judge_even_lengths, delay), BY_ACCURACY, "accuracy")
    engine = tiny_engines.make_engine(slots, chunk)
    problems = FixedProblems(iter(tiny_engines.make_problems(40)))
    spec = CollectSpec(
        groups=6, max_prompts=30, filter=DifficultyFilter("band", 0.5, 0.5)
    )
    collection = collect_groups(
        RolloutStream(engine, judge, problems, REQUEST),
        tiny_engines.make_params(),
        spec,
        2,
        judge.initial_weights(),
    )
    metrics = collection.metrics
    assert metrics["rollout/tokens_per_s"] > 0
    assert 0 < metrics["rollout/utilisation"] <= 1
    assert 0 <= metrics["rollout/idle"] <= 1
    assert metrics["time/rollout"] > 0
    assert metrics["rollout/in_flight"] >= 0
    same_metrics = {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("rollout/", "time/"))
    }
    texts = [
        (group.problem.id, group.texts, group.rewards.tolist())
        for group in collection.groups
    ]
    return texts, ids(collection.asked), same_metrics


@pytest.mark.parametrize(("slots", "chunk"), [(4, 8), (16, 1), (16, 8), (64, 32)])
@pytest.mark.parametrize(
    "slow", [(), ("p0", "p5"), ("p3",)], ids=["none", "p0 p5", "p3"]
)
def test_the_groups_of_a_step_do_not_depend_on_slots_chunk_or_slow_verdicts(
    kept, slots, chunk, slow
):
    collected = collect_texts(slots, chunk, lambda name: 0.1 * (name in slow))
    texts, asked, _ = collected
    assert len(texts) == 6
    assert 6 < len(asked) < 30
    assert collected == kept
