"""Laws of collecting, with a policy and verifiers that are plain functions: no device, no worker processes."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count, islice, permutations

import numpy as np
import pytest

from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.problems import Completion, Problem, Weighted
from jaxgrpo.rewards.length import SoftOverlong
from jaxgrpo.rewards.workers.pool import Missing, Pool, Ticket
from jaxgrpo.rollout.collect import (
    CollectSpec,
    Judge,
    MissingVerdictsError,
    RolloutStream,
    ages_of_trained_tokens,
    check_missing_verdicts,
    collect_groups,
    judged_in_order,
    make_batch,
    most_informative,
    summarise,
)
from jaxgrpo.rollout.engine import (
    Draw,
    Engine,
    FinishedCompletion,
    Group,
    SamplingSession,
    SamplingUsage,
)
from tests import tiny_engines

WIDTH, NEW = 3, 4
WANTED = CollectSpec(groups=3, group_size=4, rule="band", low=0.2, high=0.8, most=12)


def make_group(
    name: str,
    solved: Sequence[float],
    rewards: Sequence[float] = (),
    language: str = "en",
    **values,
) -> Group:
    """A judged group with the verdicts `solved` and completions of 1, 2, ... tokens."""
    correct = np.array(solved, float)
    size = len(correct)
    chosen = np.zeros((size, WIDTH + NEW), bool)
    for row in range(size):
        chosen[row, WIDTH : WIDTH + 1 + row % NEW] = True
    verdicts = {"accuracy": correct} | {
        name: np.array(column, float) for name, column in values.items()
    }
    return Group(
        problem=Problem(name, f"prompt {name}", "1", language),
        texts=[Completion(f"{name} {row}", 1 + row % NEW) for row in range(size)],
        tokens=np.arange(1, size * (WIDTH + NEW) + 1, dtype=np.int32).reshape(size, -1),
        attention_mask=chosen | (np.arange(WIDTH + NEW) < WIDTH),
        completion_mask=chosen,
        logprobs=np.where(chosen, -1.0, 0.0).astype(np.float32),
        written=np.where(chosen, 7, 0),
        finished=np.arange(size) % NEW != NEW - 1,
        values=verdicts,
        rewards=np.array(rewards if len(rewards) else correct, float),
        solved=int((correct == 1).sum()),
        judged=int((~np.isnan(correct)).sum()),
    )


class Verdicts(Pool):
    """A pool whose verdicts are a function of the problem and its texts, and come so many seconds later."""

    def __init__(
        self,
        verdicts: Callable[[Problem, list[str]], list[dict]],
        delay: Callable[[str], float] = lambda _: 0.0,
    ):
        self._verdicts, self._delay = verdicts, delay
        self.submitted: list[str] = []
        self.waited: list[str] = []
        self._names_of: dict[int, str] = {}

    batched = False

    def submit(self, problem, texts):
        self.submitted.append(problem.id)
        ticket = Ticket(b"", len(texts))
        self._names_of[id(ticket)] = problem.id
        delay, verdicts = self._delay(problem.id), self._verdicts(problem, texts)
        if delay:
            threading.Timer(delay, ticket.verdicts.set_result, [verdicts]).start()
        else:
            ticket.verdicts.set_result(verdicts)
        return ticket

    def result(self, ticket):
        if not ticket.verdicts.done():
            self.waited.append(self._names_of[id(ticket)])
        return ticket.verdicts.result()


def scripted(script: Sequence[int], shaped: float = 0.0):
    """Verdicts for problems p0, p1, ...: script[i] of pi's 4 completions are right.

    shaped: what a reward has besides the verdict, times the completion's place in its group.
    """

    def verdicts(problem: Problem, texts: list[str]) -> list[dict]:
        right = script[int(problem.id[1:])]
        return [
            {"accuracy": float(row < right), "shape": shaped * row} for row in range(len(texts))
        ]

    return verdicts


@dataclass
class World(SamplingSession):
    """An engine whose groups become ready in a scripted order, and a judge whose verdicts take as long as the script says.

    script: of each problem, how many of its 4 completions are right. ahead: how many problems are in the making at a time;
    pick: which of them becomes ready next. delay: seconds that a problem's verdicts take.
    """

    script: Sequence[int]
    shaped: float = 0.0
    ahead: int = 2
    pick: Callable[[list[int]], int] = min
    delay: Callable[[str], float] = lambda _: 0.0
    problems: int = 10**9
    taken: list[str] = field(default_factory=list)
    launched: int = 0
    usage: SamplingUsage = field(
        default_factory=lambda: SamplingUsage(tokens=1, computed=2, seconds=1.0)
    )

    def ask(self) -> Iterator[Problem]:
        for place in count() if self.problems > 10**6 else range(self.problems):
            self.taken.append(f"p{place}")
            yield Problem(f"p{place}", f"p{place}", "1")

    def wave(self, params, problems, group_size, draw, step, purpose, limits=None):
        assert (params, group_size, draw, step, purpose) == ("params", 4, Draw(), 7, "training")
        self.asked = iter(problems)
        return self

    def __iter__(self) -> Iterator[tuple[int, Group] | None]:
        making = {}
        while True:
            while len(making) < self.ahead and (problem := next(self.asked, None)):
                making[self.launched] = problem
                self.launched += 1
            if not making:
                return
            index = self.pick(sorted(making))
            yield None
            yield index, make_group(making.pop(index).id, [math.nan] * 4)

    def collect(self, **changes):
        engine = object.__new__(Scripted)
        object.__setattr__(engine, "world", self)
        self.pool = Verdicts(scripted(self.script, self.shaped), self.delay)
        judge = Judge(
            self.pool, {"accuracy": Weighted(len, 1.0), "shape": Weighted(len, 1.0)}, "accuracy"
        )
        return collect_groups(
            RolloutStream(engine, judge, Handed(self.ask()), Draw()),
            "params",
            replace(WANTED, **changes),
            7,
        )


class Handed(ProblemStream):
    """Problems that come from an iterator and cannot be handed back."""

    def __init__(self, problems: Iterator[Problem]):
        self.used, self._problems = 0, problems

    def __next__(self) -> Problem:
        return next(self._problems)

    def mark_used(self, count: int) -> None: ...

    def rewind(self) -> None: ...


class Scripted(Engine):
    """An engine that does as its world says."""

    def wave(self, *arguments):
        return self.world.wave(*arguments)


def names(groups: Sequence[Group]) -> list[str]:
    return [group.problem.id for group in groups]


def test_the_batch_is_filled_in_the_order_of_asking():
    world = World(script=[2, 0, 4, 1, 3, 2, 2, 2])
    groups, metrics, asked = world.collect()
    assert names(groups) == ["p0", "p3", "p4"]
    assert names(asked) == ["p0", "p1", "p2", "p3", "p4"]
    assert metrics["filter/asked"] == 5
    assert metrics["filter/kept"] == 3 / 5
    assert metrics["filter/too_hard"] == metrics["filter/too_easy"] == 1 / 5
    assert metrics["filter/fallback"] == 0
    assert metrics["filter/groups"] == 3
    assert metrics["rollout/in_flight"] == len(world.taken) - 5


SCRIPT = [0, 2, 4, 4, 1, 0, 3, *[2] * 40]


@pytest.mark.parametrize("ahead", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "pick", [min, max, lambda making: making[len(making) // 2]], ids=["first", "last", "middle"]
)
def test_what_is_kept_does_not_depend_on_which_groups_are_ready_first(ahead, pick):
    """`last`: the newest group is always ready first, and the oldest only when no other is left: never without an end."""
    world = World(SCRIPT[:20], ahead=ahead, pick=pick, problems=20)
    groups, metrics, asked = world.collect()
    assert names(groups) == ["p1", "p4", "p6"]
    assert names(asked) == [
        f"p{place}" for place in range(7)
    ]  # what was asked beyond p6 does not count
    assert (metrics["filter/groups"], metrics["filter/kept"]) == (3, 3 / 7)
    assert metrics["reward/accuracy"] == sum(SCRIPT[:7]) / 28
    assert metrics["rollout/in_flight"] == len(world.taken) - 7


@pytest.mark.parametrize(
    "slow", [("p0",), ("p1",), ("p5", "p6"), ("p7",), ("p0", "p3", "p6")], ids="".join
)
def test_what_is_kept_does_not_depend_on_which_verdicts_are_slow(slow):
    world = World(SCRIPT, ahead=3, delay=lambda name: 0.05 * (name in slow), problems=30)
    groups, _, asked = world.collect()
    assert names(groups) == ["p1", "p4", "p6"]
    assert names(asked) == [f"p{place}" for place in range(7)]


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_groups_are_judged_in_launch_order_and_submitted_as_they_come(order):
    pool = Verdicts(scripted([1, 2, 3]))
    wave = [
        item for index in order for item in ((index, make_group(f"p{index}", [math.nan] * 4)), None)
    ]
    judge = Judge(pool, {"accuracy": Weighted(len, 1.0)}, "accuracy")
    assert names(list(judged_in_order(iter(wave), judge))) == ["p0", "p1", "p2"]
    assert pool.submitted == [f"p{index}" for index in order]


def test_a_group_is_handed_out_as_soon_as_it_and_those_before_it_are_judged():
    pool = Verdicts(scripted([1, 2, 3]))
    made = []

    def wave():
        for index in (1, 0, 2):
            made.append(index)
            yield index, make_group(f"p{index}", [math.nan] * 4)

    judged = judged_in_order(wave(), Judge(pool, {"accuracy": Weighted(len, 1.0)}, "accuracy"))
    assert next(judged).solved == 1
    assert made == [1, 0]
    assert next(judged).solved == 2
    assert made == [1, 0]
    assert next(judged).solved == 3


@pytest.mark.parametrize("together", [False, True])
def test_texts_are_submitted_as_they_end_unless_a_reward_must_see_them_together(together):
    """Rows 2 and 0 of p0 end, then p1's all, then row 1 of p0; its verdicts are in the order of its texts."""
    verdicts = lambda problem, texts: [
        {"accuracy": float(text[-1]), "size": float(len(texts))} for text in texts
    ]
    pool = Verdicts(verdicts)
    pool.batched = together
    groups = [make_group(f"p{index}", [math.nan] * 3) for index in range(2)]
    ended = lambda index, row: FinishedCompletion(
        index, groups[index].problem, row, Completion(groups[index].texts[row], 1)
    )
    wave = [
        ended(0, 2),
        ended(0, 0),
        None,
        *(ended(1, row) for row in range(3)),
        (1, groups[1]),
        ended(0, 1),
        (0, groups[0]),
    ]
    judge = Judge(pool, {"accuracy": Weighted(len, 1.0)}, "accuracy")
    found = list(judged_in_order(iter(wave), judge))
    assert names(found) == ["p0", "p1"]
    assert pool.submitted == (["p1", "p0"] if together else ["p0", "p0", "p1", "p1", "p1", "p0"])
    for group in found:
        assert group.values["accuracy"].tolist() == [0, 1, 2]
        assert set(group.values["size"]) == {3.0 if together else 1.0}


def test_nobody_waits_for_a_slow_verdict_while_the_device_has_work():
    """p0's verdict comes late: the others are written and submitted meanwhile, and it is waited for only at the end."""
    pool = Verdicts(scripted([1, 2, 3]), delay=lambda name: 0.3 * (name == "p0"))
    started, busy = time.perf_counter(), []

    def wave():
        for index in range(3):
            yield index, make_group(f"p{index}", [math.nan] * 4)
        busy.append(time.perf_counter() - started)

    judged = judged_in_order(wave(), Judge(pool, {"accuracy": Weighted(len, 1.0)}, "accuracy"))
    assert names(list(judged)) == ["p0", "p1", "p2"]
    assert pool.waited == ["p0"]
    assert busy[0] < 0.2


def in_lockstep(monkeypatch, count: int, work: Callable[[int], object]) -> list:
    """What `work` gives in each of so many processes, which here are threads that exchange values as processes do."""
    here, barrier, values = threading.local(), threading.Barrier(count, timeout=60), [""] * count

    def exchange(value):
        values[here.index] = json.dumps(value)
        barrier.wait()
        found = [json.loads(text) for text in values]
        barrier.wait()
        return found

    def run(index: int):
        here.index = index
        return work(index)

    with monkeypatch.context() as context, ThreadPoolExecutor(count) as threads:
        context.setattr("jaxgrpo.rollout.exchange", exchange)
        context.setattr("jax.process_count", lambda: count)
        context.setattr("jax.process_index", lambda: here.index)
        return list(threads.map(run, range(count)))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("slow", [("p0",), ("p1", "p4"), ("p6",)], ids="".join)
def test_several_processes_share_the_judging_and_come_to_the_same_decisions(
    monkeypatch, count, slow
):
    """A verdict is slow in the process whose share it is; all take the same groups at the same call of the device."""
    worlds = [
        World(SCRIPT, ahead=3, delay=lambda name: 0.03 * (name in slow), problems=30)
        for _ in range(count)
    ]
    results = in_lockstep(monkeypatch, count, lambda process: worlds[process].collect())
    for groups, metrics, asked in results:
        assert names(groups) == ["p1", "p4", "p6"]
        assert names(asked) == [f"p{place}" for place in range(7)]
        assert metrics == results[0][1]
    assert len({len(world.taken) for world in worlds}) == 1
    for process, world in enumerate(worlds):
        assert (
            world.pool.submitted
            == [f"p{place}" for place in range(len(world.taken)) if place % count == process][
                : len(world.pool.submitted)
            ]
        )
        assert set(world.pool.waited) <= set(slow)


def test_missing_verdicts_and_numbers_travel_between_processes_as_they_are(monkeypatch):
    """Rows 2 and 0 of p0 end, then p1, then row 1 of p0."""
    third = 1 / 3
    verdicts = lambda problem, texts: [
        {"accuracy": third} if "1" in text[2:] else {"accuracy": Missing("crash")} for text in texts
    ]

    def work(process: int):
        groups = [make_group(f"p{index}", [math.nan] * 3) for index in range(2)]
        ended = lambda index, row: FinishedCompletion(
            index, groups[index].problem, row, Completion(groups[index].texts[row], 1)
        )
        wave = [
            ended(0, 2),
            ended(0, 0),
            None,
            *(ended(1, row) for row in range(3)),
            (1, groups[1]),
            ended(0, 1),
            (0, groups[0]),
        ]
        return list(
            judged_in_order(
                iter(wave), Judge(Verdicts(verdicts), {"accuracy": Weighted(len, 1.0)}, "accuracy")
            )
        )

    for found in in_lockstep(monkeypatch, 2, work):
        assert names(found) == ["p0", "p1"]
        for group in found:
            np.testing.assert_array_equal(group.rewards, [math.nan, third, math.nan])
            assert group.missing == {(0, "accuracy"): "crash", (2, "accuracy"): "crash"}


def test_a_ticket_is_noted_when_its_verdicts_are_there():
    pool = Verdicts(scripted([3]), delay=lambda _: 0.02)
    judge, group = (
        Judge(pool, {"accuracy": Weighted(len, 2.0)}, "accuracy"),
        make_group("p0", [math.nan] * 4),
    )
    ticket = judge.submit(group)
    assert isinstance(ticket.verdicts, Future)
    judge.note(group, judge.verdicts([ticket]))
    assert (group.solved, group.judged) == (3, 4)
    np.testing.assert_array_equal(group.rewards, [2, 2, 2, 0])


def test_the_refill_is_bounded():
    world = World(script=[0] * 50)
    groups, metrics, asked = world.collect(most=5)
    assert groups == []
    assert len(asked) == len(world.taken) == 5
    assert metrics["filter/kept"] == metrics["filter/groups"] == 0
    assert metrics["filter/too_hard"] == 1


def test_at_the_bound_the_most_informative_of_the_others_fill_the_batch():
    """Outside a band of exactly 1/2: 1 and 3 of 4 have a variance; 0 and 4 have none, unless something else was rewarded."""
    script = [0, 1, 4, 2, 3, 0]
    groups, metrics, _ = World(script).collect(low=0.5, high=0.5, most=6)
    assert names(groups) == ["p3", "p1", "p4"]
    assert metrics["filter/kept"] == 1 / 6
    assert metrics["filter/fallback"] == 2
    groups, metrics, _ = World(script).collect(groups=6, low=0.5, high=0.5, most=6)
    assert names(groups) == ["p3", "p1", "p4"]
    assert metrics["filter/groups"] == 3
    groups, _, _ = World(script, shaped=0.01).collect(groups=6, low=0.5, high=0.5, most=6)
    assert names(groups)[:3] == [
        "p3",
        "p4",
        "p1",
    ]  # of equal verdicts, the greater variance of the reward
    assert set(names(groups)) == {f"p{place}" for place in range(6)}


def test_equal_rewards_are_never_informative():
    """Eight times 0.1 may have a mean that is not 0.1, and sums of the same parts may differ in their last bit."""
    same = make_group("same", [0] * 8, [0.1] * 8)
    rounded = make_group("rounded", [0] * 8, [0.1 + 0.2, 0.3] * 4)
    absent = make_group("absent", [math.nan] * 8)
    one = make_group("one", [0, *[math.nan] * 7], [1.0, *[math.nan] * 7])
    different = make_group("different", [0] * 8, [0.1] * 7 + [0.2])
    assert names(most_informative([same, rounded, absent, one, different], 5)) == ["different"]
    assert most_informative([different], 0) == most_informative([different], -1) == []


def test_the_filter_sees_the_verdict_and_not_the_shaped_reward():
    plain, shaped = World([2, 0, 4, 1, 3, 2]), World([2, 0, 4, 1, 3, 2], shaped=-0.7)
    assert names(plain.collect()[0]) == names(shaped.collect()[0]) == ["p0", "p3", "p4"]


def test_dapo_and_off():
    script = [0, 1, 4, 3, 0, 2]
    assert names(World(script).collect(rule="dapo", low=0.5, high=0.5)[0]) == ["p1", "p3", "p5"]
    groups, metrics, _ = World(script).collect(rule="off", most=3)
    assert names(groups) == ["p0", "p1", "p2"]
    assert metrics["filter/kept"] == 1


def judge_all(judging: Judge, groups: Sequence[Group]) -> None:
    for group in groups:
        judging.note(group, judging.verdicts([judging.submit(group)]))


def judge(solved_by: str = "accuracy", **weights: float) -> tuple[Judge, list[Group]]:
    """A judge whose pool knows the verdicts beforehand, and two groups for it."""
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
    return judge, [make_group("a", [0] * 3), make_group("b", [0] * 3)]


def test_rewards_of_length_see_the_tokens_that_the_mask_counts():
    group = make_group("a", [0] * 4)
    rewards = {"short": Weighted(SoftOverlong(max_tokens=NEW, buffer=NEW))}
    with Pool(rewards, 1, deadline=10.0) as pool:
        judge_all(Judge(pool, rewards, "short"), [group])
    np.testing.assert_array_equal(group.rewards, -group.completion_mask.sum(axis=1) / NEW)


def test_rewards_are_weighted_sums_and_pass_rates_are_not():
    judging, (a, b) = judge(accuracy=2.0, format=0.1)
    judge_all(judging, [a, b])
    np.testing.assert_allclose(a.rewards, [2.05, math.nan, 2.098])
    np.testing.assert_allclose(b.rewards, [math.nan, 2.0, 0.0])
    assert (a.solved, a.judged) == (1, 3)  # 0.999 is not solved
    assert (b.solved, b.judged) == (1, 2)  # the missing verdict is neither right nor wrong
    assert [list(group.missing.values()) for group in (a, b)] == [["timeout"], ["crash"]]


def test_a_missing_verdict_of_no_weight_costs_no_reward():
    judging, (a, b) = judge(accuracy=1.0, format=0.0)
    judge_all(judging, [a, b])
    np.testing.assert_allclose(a.rewards, [1.0, 0.0, 0.999])
    means = summarise([a, b])
    assert means["verdict/missing"] == 2 / 12
    assert means["verdict/missing/timeout"] == means["verdict/missing/crash"] == 1


def test_solved_by_another_reward():
    judging, (a, b) = judge(solved_by="format", accuracy=1.0, format=0.0)
    judge_all(judging, [a, b])
    assert [(group.solved, group.judged) for group in (a, b)] == [(1, 2), (1, 3)]


def test_missing_rewards_train_nothing_and_an_underfull_batch_is_padded():
    groups = [
        make_group("a", [1, 0, 1, 0], [1.0, math.nan, 0.5, 0.0]),
        make_group("b", [1, 0, 0, 0]),
    ]
    batch = make_batch(groups, count=3)
    assert {array.shape[0] for array in batch} == {12}
    assert [array.dtype for array in batch] == [
        np.int32,
        np.int32,
        bool,
        np.float32,
        np.float32,
        bool,
    ]
    np.testing.assert_array_equal(
        batch.completion_mask.sum(axis=1), [1, 0, 3, 4, 1, 2, 3, 4, 0, 0, 0, 0]
    )
    np.testing.assert_array_equal(
        batch.rewards, [1, math.nan, 0.5, 0, *groups[1].rewards, *[math.nan] * 4]
    )
    np.testing.assert_array_equal(
        batch.tokens[:8], np.concatenate([group.tokens for group in groups])
    )
    np.testing.assert_array_equal(batch.segments[:4], groups[0].attention_mask)
    assert not batch.segments[8:].any()
    full = make_batch(groups, count=2)
    assert full.tokens.shape == (8, WIDTH + NEW)


def test_truncated_completions_train_nothing_where_they_are_masked():
    group = make_group("a", [1, 0, 1, 0])
    group.finished = np.array([True, False, True, False])
    batch, masked = make_batch([group], 1), make_batch([group], 1, mask_truncated=True)
    assert batch.trained.all()
    np.testing.assert_array_equal(masked.trained, group.finished)
    # The others are still compared with them: with what they chose, too.
    for whole, same in zip(batch[:-1], masked[:-1], strict=True):
        np.testing.assert_array_equal(whole, same)


def test_means_leave_out_what_is_missing_and_tell_languages_apart():
    ratio = {"language/target_word_ratio": [1.0, math.nan, 0.5]}
    groups = [
        make_group("a", [1, math.nan, 0], [1.0, math.nan, 0.2], "en", **ratio),
        make_group(
            "b",
            [0, 0, 0],
            [0.0, 0.0, 0.0],
            "ko",
            **{"language/target_word_ratio": [0.0] * 3},
            format=[1, 0, 0.5],
        ),
        make_group(
            "c", [math.nan] * 3, language="uk", **{"language/target_word_ratio": [math.nan] * 3}
        ),
    ]
    means = summarise(groups)
    assert means["reward/mean"] == pytest.approx(1.2 / 5)
    assert means["reward/accuracy"] == 0.25  # a mean over problems: 1/2 and 0
    assert (means["accuracy/en"], means["accuracy/ko"]) == (0.5, 0.0)
    assert math.isnan(means["accuracy/uk"])
    assert means["language/target_word_ratio"] == pytest.approx(1.5 / 5)
    assert means["language/en/target_word_ratio"] == 0.75
    assert means["language/ko/target_word_ratio"] == 0.0
    assert math.isnan(means["language/uk/target_word_ratio"])
    assert means["reward/format"] == 0.5
    assert means["completion/tokens"] == 2
    assert means["verdict/missing"] == 0


@pytest.fixture(scope="module")
def kept():
    """What a step keeps of a random network's texts, judged at once: a text is right if it has an even number of letters."""
    return collect_texts(4, 1)


def collect_texts(slots: int, chunk: int, delay: Callable[[str], float] = lambda _: 0.0):
    """Ids, tokens and rewards of the groups that a step keeps, and how many were asked."""
    problems = (problem for problem in tiny_engines.make_problems(40))
    verdicts = lambda problem, texts: [{"accuracy": float(len(text) % 2 == 0)} for text in texts]
    judge = Judge(Verdicts(verdicts, delay), {"accuracy": Weighted(len, 1.0)}, "accuracy")
    wanted = CollectSpec(groups=6, group_size=4, rule="band", low=0.5, high=0.5, most=30)
    engine, params = tiny_engines.make_engine(slots, chunk), tiny_engines.make_params()
    groups, metrics, asked = collect_groups(
        RolloutStream(engine, judge, Handed(problems), Draw()), params, wanted, 2
    )
    assert metrics["rollout/tokens_per_s"] > 0
    assert 0 < metrics["rollout/utilisation"] <= 1
    assert 0 <= metrics["rollout/idle"] <= 1
    assert metrics["time/rollout"] > 0
    assert metrics["rollout/in_flight"] >= 0
    same = {
        name: value for name, value in metrics.items() if not name.startswith(("rollout/", "time/"))
    }
    texts = [(group.problem.id, group.texts, group.rewards.tolist()) for group in groups]
    return texts, names(asked), same


@pytest.mark.parametrize(("slots", "chunk"), [(4, 8), (16, 1), (16, 8), (64, 32)])
@pytest.mark.parametrize("slow", [(), ("p0", "p5"), ("p3",)], ids=["none", "p0 p5", "p3"])
def test_the_groups_of_a_step_do_not_depend_on_slots_chunk_or_slow_verdicts(
    kept, slots, chunk, slow
):
    found = collect_texts(slots, chunk, lambda name: 0.1 * (name in slow))
    assert len(found[0]) == 6
    assert 6 < len(found[1]) < 30
    assert found == kept


def is_even(text: str) -> bool:
    return len(text) % 2 == 0


def stream_of(keep: bool) -> RolloutStream:
    """Endless problems, asked of a random network whose texts are right if they have an even number of letters."""
    verdicts = lambda problem, texts: [{"accuracy": float(len(text) % 2 == 0)} for text in texts]
    judge = Judge(Verdicts(verdicts), {"accuracy": Weighted(len, 1.0)}, "accuracy")
    order = ProblemOrder(tiny_engines.make_problems(40), seed=0)
    return RolloutStream(
        tiny_engines.make_engine(16, 8),
        judge,
        ProblemStream(order, lambda problem: problem.id != "p3"),
        Draw(),
        keep,
    )


def order_after(used: int) -> int:
    """Where an order stands when so many problems that fit were taken from it, from its beginning."""
    order = ProblemOrder(tiny_engines.make_problems(40), seed=0)
    while used:
        used -= order.take(1)[0].id != "p3"
    return order.position


def test_what_is_in_flight_goes_on_at_the_next_step_or_is_asked_again():
    wanted, params = (
        CollectSpec(groups=2, group_size=4, rule="off", low=0.0, high=1.0, most=2),
        tiny_engines.make_params(),
    )
    for keep in (False, True):
        stream, found, ages = stream_of(keep), [], []
        for step in (1, 2, 3, 4):
            groups, metrics, asked = collect_groups(stream, params, wanted, step)
            assert groups == asked
            found += asked
            ages.append(metrics["rollout/age_max"])
            assert (metrics["rollout/age"] > 0) == (ages[-1] > 0)
            assert all(group.written[group.completion_mask].min() >= 1 for group in groups)
            assert all(group.written.max() <= step for group in groups)
            assert not any(group.written[~group.completion_mask].any() for group in groups)
            # Either way a checkpoint would go on after the last problem that was used: p3 alone is passed over.
            assert order_after(2 * step) == stream.problems._order.position
        asked_for = list(
            islice(
                ProblemStream(
                    ProblemOrder(tiny_engines.make_problems(40), 0),
                    lambda problem: problem.id != "p3",
                ),
                8,
            )
        )
        assert names(found) == [problem.id for problem in asked_for]
        assert ages[0] == 0
        assert (max(ages) > 0) == keep


def test_kept_rows_are_what_one_policy_would_have_written_if_it_does_not_change():
    """Four steps of two groups are one of eight, where the policy and what randomness is made of stay the same."""
    params = tiny_engines.make_params()
    whole = collect_groups(stream_of(True), params, CollectSpec(8, 4, "off", 0.0, 1.0, 8), 1)[0]
    stream, wanted = stream_of(True), CollectSpec(2, 4, "off", 0.0, 1.0, 2)
    parts = [group for _ in range(4) for group in collect_groups(stream, params, wanted, 1)[0]]
    assert names(parts) == names(whole)
    for part, group in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part.tokens, group.tokens)
        np.testing.assert_allclose(part.logprobs, group.logprobs, atol=1e-6)


def keep_in_flight(
    max_age: int,
    delay: Callable[[str], float] = lambda _: 0.0,
    solved: Callable[[str], bool] = is_even,
    **wanted,
):
    """What seven steps hold that keep what is in flight: groups, tokens and their steps, figures.

    delay: seconds that a problem's verdicts take. solved: whether a text is right
    """
    verdicts = lambda problem, texts: [{"accuracy": float(solved(text))} for text in texts]
    judge = Judge(Verdicts(verdicts, delay), {"accuracy": Weighted(len, 1.0)}, "accuracy")
    stream = replace(stream_of(True), judge=judge, max_age=max_age)
    params, found = tiny_engines.make_params(), []
    for step in range(1, 8):
        groups, metrics, asked = collect_groups(stream, params, replace(KEPT, **wanted), step)
        texts = [
            (group.problem.id, group.tokens.tolist(), group.written.tolist(), group.solved)
            for group in asked
        ]
        timeless = {name: value for name, value in metrics.items() if name not in CLOCKED}
        timeless["tokens"] = round(metrics["rollout/tokens_per_s"] * metrics["time/rollout"])
        found.append((names(groups), texts, timeless))
    return found


KEPT = CollectSpec(groups=2, group_size=4, rule="dapo", low=0.0, high=1.0, most=6)
CLOCKED = {"rollout/tokens_per_s", "rollout/idle", "time/rollout"}


@pytest.mark.parametrize("max_age", [1, 2, 3])
def test_what_is_kept_in_flight_does_not_depend_on_how_long_verdicts_take(max_age):
    """Texts, the step of each token, and all figures but times depend on the seed alone."""
    at_once = keep_in_flight(max_age)
    random = np.random.default_rng(0)
    assert keep_in_flight(max_age, lambda _: 0.03) == at_once
    assert keep_in_flight(max_age, lambda name: 0.1 * (name in ("p0", "p7", "p11"))) == at_once
    assert keep_in_flight(max_age, lambda _: random.choice([0.0, 0.002, 0.05])) == at_once


@pytest.mark.parametrize("max_age", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rule": "off", "most": 2},
        {"solved": lambda text: False},
        {"most": 3},
        {"rule": "band", "low": 0.5, "high": 0.5},
    ],
    ids=["dapo", "off", "underfull", "most", "band"],
)
def test_tokens_that_are_trained_on_are_no_older_than_they_may_be(max_age, changes):
    """Whether batches are filled or `most` problems are asked in vain. All tokens are looked at."""
    in_flight, ages = [], []
    for step, (_, asked, metrics) in enumerate(keep_in_flight(max_age, **changes), start=1):
        in_flight.append(metrics["rollout/in_flight"])
        ages += [step - n for _, _, written, _ in asked for row in written for n in row if n]
    assert max(ages) <= max_age
    assert max(ages) > 0
    assert 0 < max(in_flight) <= max_age * KEPT.groups


def test_the_figures_of_a_step_are_those_of_its_own_tokens():
    steps = keep_in_flight(2)
    arrays = [np.array(tokens) for _, asked, _ in steps for *_, tokens, _ in asked]
    written = np.concatenate(arrays, axis=None)
    for step, (chosen, asked, metrics) in enumerate(steps[:-2], start=1):
        # All rows of a step's tokens have been handed out two steps later.
        assert metrics["tokens"] == np.sum(written == step)
        trained = [np.array(token) for name, _, token, _ in asked if name in chosen]
        ages = np.concatenate([step - token[token > 0] for token in trained]) if trained else []
        if len(ages):
            assert metrics["rollout/age"] == pytest.approx(np.mean(ages), abs=1e-9)
            assert metrics["rollout/age_max"] == np.max(ages)


def test_time_that_verdicts_take_after_the_last_call_is_no_time_of_sampling():
    verdicts = lambda _, texts: [{"accuracy": 1.0} for _ in texts]
    judge = Judge(Verdicts(verdicts, lambda _: 0.5), {"accuracy": Weighted(len, 1.0)}, "accuracy")
    stream = replace(stream_of(True), judge=judge)
    wanted, params = CollectSpec(2, 4, "off", 0.0, 1.0, 2), tiny_engines.make_params()
    began = time.perf_counter()
    metrics = collect_groups(stream, params, wanted, 1)[1]
    assert metrics["time/rollout"] < time.perf_counter() - began - 0.2


def test_what_is_in_flight_when_a_run_ends_is_not_judged():
    stream = stream_of(True)
    cancelled: list[Ticket] = []
    stream.judge.pool.cancel = cancelled.append
    collect_groups(stream, tiny_engines.make_params(), CollectSpec(2, 4, "off", 0.0, 1.0, 2), 1)
    assert not cancelled
    stream.close()
    assert len(cancelled) > 0


def test_a_batch_of_no_tokens_has_no_age():
    metrics = World(script=[0] * 50).collect(most=5)[1]
    assert math.isnan(metrics["rollout/age"])
    assert math.isnan(metrics["rollout/age_max"])


def test_the_age_is_that_of_the_tokens_that_an_update_counts():
    """The row that was cut off counts unless it is masked, the one without a reward never."""
    group = make_group("a", [1, 0, 1, 0], [1.0, 0.0, math.nan, 0.0])
    group.written[0] = 5
    group.written[1] = 3
    for masked in (False, True):
        ages = ages_of_trained_tokens([group], 7, masked)
        assert ages.tolist() == [2, 4, 4] + [0] * 4 * (not masked)
        batch = make_batch([group], 1, masked)
        assert len(ages) == (batch.completion_mask & batch.trained[:, None]).sum()


def test_a_problem_that_is_asked_twice_in_a_step_is_another_group():
    """Four problems fill a batch of eight groups: no two are alike, in a step or in two."""
    verdicts = lambda problem, texts: [{"accuracy": 1.0} for _ in texts]
    judge = Judge(Verdicts(verdicts), {"accuracy": Weighted(len, 1.0)}, "accuracy")
    for keep in (False, True):
        problems = ProblemStream(
            ProblemOrder(tiny_engines.make_problems(4), seed=0), lambda problem: True
        )
        stream = RolloutStream(tiny_engines.make_engine(16, 8), judge, problems, Draw(), keep)
        wanted = CollectSpec(groups=8, group_size=4, rule="off", low=0.0, high=1.0, most=8)
        steps = [
            collect_groups(stream, tiny_engines.make_params(), wanted, step)[0] for step in (1, 2)
        ]
        groups = [group for groups in steps for group in groups]
        assert len({(group.problem.id, group.tokens.tobytes()) for group in groups}) == 16


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_keep_the_same_in_flight(monkeypatch, count):
    """A third of the verdicts is late, in the process whose share it is."""
    late = lambda name: 0.03 * (int(name[1:]) % 3 == 0)
    results = in_lockstep(monkeypatch, count, lambda process: keep_in_flight(2, late))
    assert results == [keep_in_flight(2)] * count


@pytest.mark.parametrize("most", [0.0, 0.2, 0.3])
def test_more_missing_verdicts_than_are_allowed_stop_the_run_and_leave_their_texts(tmp_path, most):
    """Three of twelve: two of one reward for one reason, which come first."""
    verdicts = [
        {"accuracy": 1.0, "format": Missing("timeout")},
        {"accuracy": Missing("crash"), "format": 1.0},
    ]
    pool = Verdicts(
        lambda problem, texts: [verdicts[problem.id == "b"], {"accuracy": 0.0, "format": 0.0}]
    )
    groups = [make_group(name, [math.nan] * 2) for name in ("b", "a", "c")]
    judge_all(Judge(pool, {"accuracy": Weighted(len), "format": Weighted(len)}, "accuracy"), groups)
    path = tmp_path / "out" / "missing.jsonl"
    if most > 3 / 12:
        check_missing_verdicts(groups, most, path)
        assert not path.exists()
        return
    with pytest.raises(
        MissingVerdictsError,
        match=r"3 of 12 verdicts are missing.*'format' for 'timeout', 2 times: .*jsonl",
    ):
        check_missing_verdicts(groups, most, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["reward"], line["missing"], line["id"], line["text"]) for line in lines] == [
        ("format", "timeout", "a", "a 0"),
        ("format", "timeout", "c", "c 0"),
        ("accuracy", "crash", "b", "b 0"),
    ]
