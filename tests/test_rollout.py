"""Laws of collecting, with a policy and verifiers that are plain functions: no device, no worker processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from jaxgrpo.mesh import make_mesh, rows_sharding
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.pool import Missing
from jaxgrpo.rollout import Group, Judge, Sampler, Wanted, collect, completion_key, make_batch, most_informative, summarise
from jaxgrpo.types import Rollout

WIDTH, NEW = 3, 4
WANTED = Wanted(groups=3, group_size=4, temperature=1.0, rule="band", low=0.2, high=0.8, most=12)


def make_group(name: str, solved: Sequence[float], rewards: Sequence[float] = (), language: str = "en", **values) -> Group:
    """A judged group with the verdicts `solved` and completions of 1, 2, ... tokens."""
    correct = np.array(solved, float)
    size = len(correct)
    chosen = np.zeros((size, WIDTH + NEW), bool)
    for row in range(size):
        chosen[row, WIDTH : WIDTH + 1 + row % NEW] = True
    verdicts = {"accuracy": correct} | {name: np.array(column, float) for name, column in values.items()}
    return Group(
        problem=Problem(name, f"prompt {name}", "1", language),
        texts=[f"{name} {row}" for row in range(size)],
        tokens=np.arange(1, size * (WIDTH + NEW) + 1, dtype=np.int32).reshape(size, -1),
        attention_mask=chosen | (np.arange(WIDTH + NEW) < WIDTH),
        completion_mask=chosen,
        logprobs=np.where(chosen, -1.0, 0.0).astype(np.float32),
        finished=np.arange(size) % NEW != NEW - 1,
        values=verdicts,
        rewards=np.array(rewards if len(rewards) else correct, float),
        solved=int((correct == 1).sum()),
        judged=int((~np.isnan(correct)).sum()),
    )


@dataclass
class World:
    """Problems p0, p1, ... asked in order; `script` says for each how many of its 4 completions are right."""

    script: Sequence[int]
    launch: int = 2
    shaped: float = 0.0
    asked: list[str] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.launch * WANTED.group_size

    def ask(self, count: int) -> list[Problem]:
        names = [f"p{place}" for place in range(len(self.asked), len(self.asked) + count)]
        self.asked += names
        return [Problem(name, name, "1") for name in names]

    def __call__(self, params, problems, group_size, temperature, step, purpose) -> list[Group]:
        assert (params, group_size, temperature, step, purpose) == ("params", 4, 1.0, 7, "training")
        self.launches.append(len(problems))
        return [make_group(problem.id, [math.nan] * group_size) for problem in problems]

    def judge(self, groups: Sequence[Group]) -> None:
        for group in reversed(groups):  # the last one's verdicts come first
            right = self.script[int(group.problem.id[1:])]
            verdicts = [1.0] * right + [0.0] * (4 - right)
            judged = make_group(group.problem.id, verdicts, [verdict + self.shaped * row for row, verdict in enumerate(verdicts)])
            vars(group).update(vars(judged))

    def collect(self, **changes):
        return collect(self, self.judge, "params", self.ask, replace(WANTED, **changes), 7)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """`World` stands for a Sampler and a Judge: what counts is what they do."""
    monkeypatch.setattr("jaxgrpo.rollout.collect", collect)


def names(groups: Sequence[Group]) -> list[str]:
    return [group.problem.id for group in groups]
