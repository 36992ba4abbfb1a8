"""Every problem is asked once an epoch, wherever a run stops and however many processes go on.

Steps are real but for the sampling: a script says which groups are complete, and what is right.
"""

import functools
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pytest

from jaxgrpo.data import order
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.problems import Problem, Problems
from jaxgrpo.rollout.collect import CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.stream import RolloutStream
from tests.test_mixture import mixed, problems
from tests.tiny_rollouts import (
    BY_ACCURACY,
    REQUEST,
    ScriptedSession,
    Verdicts,
    ids,
    in_lockstep,
)

EPOCHS = 3
PROCESSES = (1, 2, 4)
SOURCES: dict[str, Problems] = {
    "one source": problems(8),
    "a mixture": mixed((3, 5), (0.4, 0.6)),
}
SPEC = CollectSpec(groups=2, max_prompts=5, filter=DifficultyFilter("dapo", 0.0, 1.0))
"""A step wants two groups that are neither all right nor all wrong: it asks two to five."""
MORE = 12
"""Problems past the last epoch that a step may use, or have in flight."""


@pytest.fixture(autouse=True)
def _permutations(monkeypatch):
    """Has Grain permute the few indices once, which takes it milliseconds an index."""

    @functools.cache
    def permuted(name: str, seed: int) -> Callable[[int], int]:
        return functools.cache(index_order(SOURCES[name], seed))

    index_order = order._index_order
    names = {id(source): name for name, source in SOURCES.items()}
    monkeypatch.setattr(
        order, "_index_order", lambda source, seed: permuted(names[id(source)], seed)
    )


class Sampler:
    """Stands in for an engine: of three problems in flight, any is complete next."""

    def session(self, params, problems, request, step) -> ScriptedSession:
        return ScriptedSession(
            problems, 3, lambda flying: flying[sum(flying) % len(flying)]
        )


def sequence(source: Problems) -> list[str]:
    """Returns the ids of three epochs' problems and of a few more, in their order."""
    whole = ProblemOrder(source, seed=3)
    return [problem.id for problem in whole.take(EPOCHS * len(source) + MORE)]


def part_of(problem_id: str) -> str:
    """Returns the name of the part of a mixture that a problem is of, or ""."""
    return problem_id.rpartition("/")[0]


def judge_by_name(problem: Problem, texts: list[str]) -> list[dict[str, float]]:
    """Returns verdicts by which none to all of a problem's texts are right."""
    right = zlib.crc32(problem.id.encode()) % 5
    return [{"accuracy": float(row < right)} for row in range(len(texts))]


class Step(NamedTuple):
    """A step of a process.

    asked: ids of the problems that it used
    state: what a checkpoint keeps of the order after it
    judged: ids of the problems that this process judged
    """

    asked: list[str]
    state: Mapping[str, int]
    judged: list[str]


def take_step(source: Problems, state: Mapping[str, int], keep: bool) -> Step:
    """Returns the step of a run that goes on from a state.

    keep: its sampling.keep_in_flight
    """
    own_order = ProblemOrder(source, seed=3)
    own_order.restore(state)
    pool = Verdicts(judge_by_name)
    judge = Judge(pool, BY_ACCURACY, "accuracy")
    stream = RolloutStream(
        Sampler(), judge, ProblemStream(own_order, lambda problem: True), REQUEST, keep
    )
    collected = collect_groups(stream, None, SPEC, 1, judge.initial_weights())
    return Step(
        ids(collected.asked), json.loads(json.dumps(own_order.state())), pool.submitted
    )


def take_steps(
    source: Problems, position: int, counts: Iterator[int], keep: bool, monkeypatch
) -> Iterator[list[str]]:
    """Yields what step after step asks, each by other processes that go on where the last ended.

    position: where the first begins
    counts: of processes
    """
    whole = sequence(source)
    state: Mapping[str, int] = ProblemOrder(source, seed=3).state() | {
        "position": position
    }
    for count in counts:
        steps = in_lockstep(
            monkeypatch, count, lambda _, state=state: take_step(source, state, keep)
        )
        first = steps[0]
        assert all(step[:2] == first[:2] for step in steps)
        # What is used was judged by one of them, and nothing by two.
        judged = Counter(itertools.chain(*(step.judged for step in steps)))
        start = state["position"]
        assert Counter(first.asked) <= judged
        assert judged <= Counter(whole[start : start + MORE])
        state = first.state
        yield first.asked


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_three_epochs_ask_each_problem_three_times(name, keep, monkeypatch):
    """A run that is stopped after every step, and goes on with 1, 2 or 4 processes.

    A mixture's parts have epochs of their own.
    """
    source = SOURCES[name]
    sizes = Counter(map(part_of, (problem.id for problem in source)))
    asked: dict[str, list[str]] = {part: [] for part in sizes}
    counts = itertools.cycle(PROCESSES)
    for step in take_steps(source, 0, counts, keep, monkeypatch):
        assert 2 <= len(step) <= 5
        for problem_id in step:
            asked[part_of(problem_id)].append(problem_id)
        if all(len(asked[part]) >= EPOCHS * sizes[part] for part in sizes):
            break
    in_epochs = Counter()
    for part, found in asked.items():
        in_epochs.update(found[: EPOCHS * sizes[part]])
    assert in_epochs == {problem.id: EPOCHS for problem in source}


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_goes_on_from_any_state_with_what_comes_next(name, monkeypatch):
    source = SOURCES[name]
    whole = sequence(source)
    for position in range(EPOCHS * len(source)):
        count = PROCESSES[position % 3]
        (asked,) = take_steps(source, position, iter([count]), False, monkeypatch)
        assert asked == whole[position : position + len(asked)]
