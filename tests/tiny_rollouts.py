"""Stand-ins for rollouts: judged groups, verdicts that are known beforehand, a scripted engine."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from jaxgrpo.data.order import ProblemStream
from jaxgrpo.problems import Completion, Problem, Weighted
from jaxgrpo.rewards.workers.pool import Missing, Pool, Ticket
from jaxgrpo.rollout.collect import Collection, CollectSpec, collect_groups
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.groups import Group, JudgedGroup, SamplingRequest
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.protocols import Event, SamplingUsage
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.types import SamplingParams

WIDTH = 3
NEW = 4
REQUEST = SamplingRequest(4, SamplingParams(), "training")
BY_ACCURACY = {"accuracy": Weighted(len, 1.0)}
"""A single reward; its function is never called."""


def no_delay(problem_id: str) -> float:
    return 0.0


def make_sampled_group(problem_id: str, size: int = 4, language: str = "en") -> Group:
    """Returns a group that is not judged, with completions of 1, 2, ... tokens."""
    chosen = np.zeros((size, WIDTH + NEW), bool)
    for row in range(size):
        chosen[row, WIDTH : WIDTH + 1 + row % NEW] = True
    return Group(
        problem=Problem(problem_id, f"prompt {problem_id}", "1", language),
        texts=[
            Completion(f"{problem_id} {row}", 1 + row % NEW, row % NEW != NEW - 1)
            for row in range(size)
        ],
        tokens=np.arange(1, size * (WIDTH + NEW) + 1, dtype=np.int32).reshape(size, -1),
        attention_mask=chosen | (np.arange(WIDTH + NEW) < WIDTH),
        completion_mask=chosen,
        logprobs=np.where(chosen, -1.0, 0.0).astype(np.float32),
        policy_steps=np.where(chosen, 7, 0),
        finished=np.arange(size) % NEW != NEW - 1,
    )


def make_group(
    problem_id: str,
    solved: Sequence[float],
    rewards: Sequence[float] = (),
    language: str = "en",
    missing: dict[tuple[int, str], str] | None = None,
    **values: Sequence[float],
) -> JudgedGroup:
    """Returns a group with the verdicts `solved`.

    rewards: by default the verdicts
    values: further values by their reward's name
    """
    accuracy = np.array(solved, float)
    other_values = {name: np.array(column, float) for name, column in values.items()}
    return JudgedGroup(
        **vars(make_sampled_group(problem_id, len(accuracy), language)),
        values={"accuracy": accuracy} | other_values,
        missing=missing or {},
        rewards=np.array(rewards if len(rewards) else accuracy, float),
        solved=int((accuracy == 1).sum()),
        judged=int((~np.isnan(accuracy)).sum()),
    )


def ids(groups: Sequence[Group]) -> list[str]:
    """Returns the groups' problem ids."""
    return [group.problem.id for group in groups]


class Verdicts(Pool):
    """A pool whose verdicts are a function of the problem and its texts.

    delay: seconds that a problem's verdicts take, by its id
    """

    batched = False

    def __init__(
        self,
        verdicts: Callable[[Problem, list[str]], list[dict[str, float | Missing]]],
        delay: Callable[[str], float] = no_delay,
    ):
        self._verdicts = verdicts
        self._delay = delay
        self.submitted: list[str] = []
        self.waited: list[str] = []
        self._id_of_ticket: dict[int, str] = {}

    def submit(self, problem, texts):
        self.submitted.append(problem.id)
        ticket = Ticket(b"", len(texts))
        self._id_of_ticket[id(ticket)] = problem.id
        delay = self._delay(problem.id)
        verdicts = self._verdicts(problem, texts)
        if delay:
            threading.Timer(delay, _answer, [ticket, verdicts]).start()
        else:
            ticket.verdicts.set_result(verdicts)
        return ticket

    def result(self, ticket):
        if not ticket.verdicts.done():
            self.waited.append(self._id_of_ticket[id(ticket)])
        return ticket.verdicts.result()


def _answer(ticket: Ticket, verdicts: list) -> None:
    """Gives the verdicts of a ticket, unless it was given up."""
    if ticket.verdicts.set_running_or_notify_cancel():
        ticket.verdicts.set_result(verdicts)


def judge_all(judge: Judge, groups: Sequence[Group]) -> list[JudgedGroup]:
    """Returns the groups with their verdicts, by the weights that the rewards begin with."""
    weights = judge.initial_weights()
    return [
        judge.judge(group, judge.verdicts([judge.submit(group)]), weights)
        for group in groups
    ]


def scripted(script: Sequence[int], shaped: float = 0.0):
    """Returns verdicts for problems p0, p1, ...: script[i] of pi's 4 completions are right.

    shaped: a reward besides the verdict is this, times the completion's place in its group
    """

    def verdicts(problem: Problem, texts: list[str]) -> list[dict[str, float]]:
        right = script[int(problem.id[1:])]
        return [
            {"accuracy": float(row < right), "shape": shaped * row}
            for row in range(len(texts))
        ]

    return verdicts


def judge_even_lengths(problem: Problem, texts: list[str]) -> list[dict[str, float]]:
    """Returns verdicts by which a text is right if it has an even number of letters."""
    return [{"accuracy": float(len(text) % 2 == 0)} for text in texts]


class FixedProblems(ProblemStream):
    """Problems that come from an iterator and cannot be handed back."""

    def __init__(self, problems: Iterator[Problem]):
        self.used = 0
        self._problems = problems

    def __next__(self) -> Problem:
        return next(self._problems)

    def mark_used(self, count: int) -> None:
        self.used += count

    def rewind(self) -> None:
        pass


@dataclass
class World:
    """A whole rollout by script: an engine, and a judge whose verdicts take a while.

    script: of each problem, how many of its 4 completions are right
    shaped: as of `scripted`
    ahead: problems that are sampled side by side
    pick: which of them is complete next
    delay: seconds that a problem's verdicts take
    num_problems: problems that there are; None: there is no end
    """

    script: Sequence[int]
    shaped: float = 0.0
    ahead: int = 2
    pick: Callable[[list[int]], int] = min
    delay: Callable[[str], float] = no_delay
    num_problems: int | None = None
    taken: list[str] = field(default_factory=list)
    """Ids of the problems that the session has taken."""
    used: int = 0
    """How many of them a step has used or passed over."""
    pool: Verdicts = field(init=False)

    def __post_init__(self):
        self.pool = Verdicts(scripted(self.script, self.shaped), self.delay)

    def problems(self) -> Iterator[Problem]:
        places = count() if self.num_problems is None else range(self.num_problems)
        for place in places:
            self.taken.append(f"p{place}")
            yield Problem(f"p{place}", f"p{place}", "1")

    def session(
        self,
        params: object,
        problems: Iterable[Problem],
        request: SamplingRequest,
        step: int,
    ) -> "ScriptedSession":
        """Stands in for Engine.session."""
        assert params == "params"
        assert request == REQUEST
        assert step == 7
        return ScriptedSession(iter(problems), self.ahead, self.pick)

    def collect(
        self,
        groups: int = 3,
        max_prompts: int = 12,
        rule: str = "band",
        low: float = 0.2,
        high: float = 0.8,
        refill: bool = True,
        select: str = "launch",
    ) -> Collection:
        """Returns what step 7 collects."""
        rewards = {"accuracy": Weighted(len, 1.0), "shape": Weighted(len, 1.0)}
        judge = Judge(self.pool, rewards, "accuracy")
        problems = FixedProblems(self.problems())
        stream = RolloutStream(
            self, judge, problems, REQUEST, in_launch_order=select != "finish"
        )
        rule_of_groups = DifficultyFilter(rule, low, high)
        spec = CollectSpec(groups, max_prompts, rule_of_groups, refill, select)
        collection = collect_groups(stream, "params", spec, 7, judge.initial_weights())
        self.used = problems.used
        return collection


class ScriptedSession:
    """Stands in for a SamplingSession: groups are complete in a scripted order."""

    def __init__(
        self, problems: Iterator[Problem], ahead: int, pick: Callable[[list[int]], int]
    ):
        self.launched = 0
        self.max_launched: int | None = None
        self.usage = SamplingUsage(tokens=1, slot_steps=2, seconds=1.0)
        self._problems = problems
        self._ahead = ahead
        self._pick = pick

    def __iter__(self) -> Iterator[Event | None]:
        pending: dict[int, Problem] = {}
        while True:
            while len(pending) < self._ahead and (
                problem := next(self._problems, None)
            ):
                pending[self.launched] = problem
                self.launched += 1
            if not pending:
                return
            index = self._pick(sorted(pending))
            yield None
            yield index, make_sampled_group(pending.pop(index).id)

    def set_policy(self, params: object, step: int) -> None:
        raise AssertionError("each step has a session of its own here")

    def take_events(self) -> Iterator[Event]:
        return iter(())

    def wait_for_call(self) -> None:
        pass

    is_idle = True

    def decide(self, index: int, goes_on: bool) -> None:
        raise AssertionError("all rows of a group start at once here")


def in_lockstep(monkeypatch, num_processes: int, work: Callable[[int], object]) -> list:
    """Returns what `work(process)` returns in each of so many processes.

    Here they are threads that exchange values as processes do.
    """
    this_thread = threading.local()
    barrier = threading.Barrier(num_processes, timeout=60)
    texts = [""] * num_processes

    def gather_json(value):
        texts[this_thread.process] = json.dumps(value)
        barrier.wait()
        values = [json.loads(text) for text in texts]
        barrier.wait()  # nobody writes its next value before all have read this one
        return values

    def run(process: int):
        this_thread.process = process
        return work(process)

    with monkeypatch.context() as context, ThreadPoolExecutor(num_processes) as threads:
        for module in ("judge", "comparison"):
            context.setattr(f"jaxgrpo.rollout.{module}.gather_json", gather_json)
        context.setattr("jax.process_count", lambda: num_processes)
        context.setattr("jax.process_index", lambda: this_thread.process)
        return list(threads.map(run, range(num_processes)))
