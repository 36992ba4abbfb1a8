"""The host's half of sampling: problems in, judged groups out, until the batch is full.

    order -> prompts -> steps.sample -> texts -> verifier pool -> difficulty filter -> groups -> batch

Groups are judged in the order in which they were asked, so what is kept does not depend on which finished first.
"""

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxgrpo import difficulty
from jaxgrpo.mesh import to_device, to_host
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.rewards.pool import Missing, Pool
from jaxgrpo.tokenizer import Tokenizer, left_padded
from jaxgrpo.types import Batch, Params, Prompts, Rollout


@dataclass
class Group:
    """The G completions of one problem. Arrays are [G, T] on the host, fields as in types.Rollout."""

    problem: Problem
    texts: list[str]
    tokens: np.ndarray
    attention_mask: np.ndarray
    completion_mask: np.ndarray
    logprobs: np.ndarray
    finished: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Each reward's verdicts, float64 [G]; NaN where one could not be had."""
    missing: list[str] = field(default_factory=list)
    """Why, for each verdict that could not be had."""
    rewards: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The weighted sum [G] that advantages are made of; NaN where a part of it is missing."""
    solved: int = 0
    judged: int = 0


@runtime_checkable
class Programs(Protocol):
    """What sampling needs of steps.Steps."""

    @property
    def sample(self) -> Callable[[Params, Prompts, float], Rollout]: ...

    @property
    def rows(self) -> Any: ...


@dataclass(frozen=True)
class Sampler:
    """Asks a policy: problems in, groups of texts out, a launch of `rows` rows at a time so that one program serves all."""

    steps: Programs
    tokenizer: Tokenizer
    prompt_width: int
    rows: int
    seed: int
    system: str = ""

    def __call__(
        self, params: Params, problems: Sequence[Problem], group_size: int, temperature: float, step: int, purpose: str
    ) -> list[Group]:
        """group_size completions of each problem, in one launch: at most rows // group_size problems."""
        places = self.rows // group_size
        if len(problems) > places:
            raise ValueError(f"{len(problems)} problems, but a launch has places for {places}")
        ids = [self.tokenizer.prompt(problem.prompt, self.system) for problem in problems]
        filler: list[list[int]] = [[]] * (places - len(problems))
        tokens, mask = left_padded(ids + filler, self.prompt_width, self.tokenizer.pad)
        keys = np.zeros((places, group_size, 2), np.uint32)
        for i, problem in enumerate(problems):
            keys[i] = [completion_key(self.seed, step, purpose, problem.id, sample) for sample in range(group_size)]
        prompts = to_device(Prompts(tokens, mask, keys), self.steps.rows)
        rollout = to_host(self.steps.sample(params, prompts, temperature))
        arrays = [array.reshape(places, group_size, *array.shape[1:]) for array in rollout]
        groups = [Group(problem, [], *(array[i] for array in arrays)) for i, problem in enumerate(problems)]
        for group in groups:
            pairs = zip(group.tokens, group.completion_mask, strict=True)
            group.texts = [self.tokenizer.decode(row[chosen]) for row, chosen in pairs]
        return groups


@dataclass(frozen=True)
class Judge:
    """Has groups judged by the pool. `rewards` are summed; the pool may compute further figures, which are only measured."""

    pool: Pool
    rewards: dict[str, Weighted]
    solved_by: str

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fills in every group's values, rewards and counts; the verdicts of all groups are computed side by side."""
        tickets = [self.pool.submit(group.problem, group.texts) for group in groups]
        for group, ticket in zip(groups, tickets, strict=True):
            self._note(group, self.pool.result(ticket))

    def _note(self, group: Group, verdicts: list[dict]) -> None:
        number = lambda verdict: math.nan if isinstance(verdict, Missing) else verdict
        group.values = {name: np.array([number(row[name]) for row in verdicts]) for name in verdicts[0]}
        group.missing = [value.reason for row in verdicts for value in row.values() if isinstance(value, Missing)]
        parts = [reward.weight * group.values[name] for name, reward in self.rewards.items() if reward.weight]
        group.rewards = np.sum(parts, axis=0) if parts else np.zeros(len(group.texts))
        correct = group.values[self.solved_by]
        group.judged = int(np.sum(~np.isnan(correct)))
        group.solved = int(np.sum(correct == 1.0))


@dataclass(frozen=True)
class Wanted:
    """What a step's collection should hold: `groups` groups of group_size completions, by the filter's rule, from at most
    `most` problems, of which `launch` are sampled at once."""

    groups: int
    group_size: int
    temperature: float
    rule: str
    low: float
    high: float
    most: int
    launch: int


def collect(
    sampler: Callable[..., list[Group]],
    judge: Callable[[Sequence[Group]], None],
    params: Params,
    ask: Callable[[int], list[Problem]],
    wanted: Wanted,
    step: int,
) -> tuple[list[Group], dict[str, float], list[Group]]:
    """The groups that a step trains on, its metrics, and every group that was asked. sampler, judge: a Sampler and a Judge.

    Problems are asked a launch at a time until `wanted.groups` groups passed the filter or `wanted.most` problems were
    asked. At that bound the batch is filled with the most informative of the others: those with the greatest variance of the
    verdict, then of the reward, never one in which all rewards are equal. It may still hold fewer, or none.
    """
    started, sampling = time.perf_counter(), 0.0
    asked: list[Group] = []
    chosen: list[Group] = []
    while len(chosen) < wanted.groups and len(asked) < wanted.most:
        problems = ask(min(wanted.launch, wanted.most - len(asked)))
        begun = time.perf_counter()
        groups = sampler(params, problems, wanted.group_size, wanted.temperature, step, "training")
        sampling += time.perf_counter() - begun
        judge(groups)
        asked += groups
        chosen += [g for g in groups if difficulty.kept(wanted.rule, wanted.low, wanted.high, g.solved, g.judged)]
    tokens = sum(int(group.completion_mask.sum()) for group in asked)
    passed, chosen = len(chosen), chosen[: wanted.groups]
    sides = [difficulty.side(wanted.rule, wanted.low, wanted.high, g.solved, g.judged) for g in asked if g.judged]
    fallback = most_informative([g for g in asked if all(g is not c for c in chosen)], wanted.groups - len(chosen))
    metrics = summarise(asked) | {
        "filter/kept": passed / len(asked),
        "filter/asked": len(asked),
        "filter/surplus": passed - len(chosen),
        "filter/fallback": len(fallback),
        "filter/groups": len(chosen) + len(fallback),
        "filter/too_hard": sides.count(-1) / len(asked),
        "filter/too_easy": sides.count(1) / len(asked),
        "rollout/tokens_per_s": tokens / sampling,
        "time/rollout": sampling,
        "time/collect": time.perf_counter() - started,
    }
    return chosen + fallback, {name: float(value) for name, value in metrics.items()}, asked


def most_informative(groups: Iterable[Group], count: int) -> list[Group]:
    """The `count` groups with the greatest variance of the verdict, then of the reward; none whose rewards are all equal."""
    # In float32, as advantages are made: what differs less than that trains nothing.
    distinct = lambda group: np.unique(group.rewards[~np.isnan(group.rewards)].astype(np.float32)).size
    useful = [group for group in groups if distinct(group) > 1]
    rank = lambda g: (difficulty.variance(g.solved, g.judged), float(np.nanvar(g.rewards)))
    return sorted(useful, key=rank, reverse=True)[: max(count, 0)]


def make_batch(groups: Sequence[Group], count: int, mask_truncated: bool = False) -> Batch:
    """`count` groups' rows as one batch of numpy arrays; there is at least one group.

    Rows whose reward is missing, and the places that no group fills, have an empty completion_mask and count nothing.
    mask_truncated: nor do rows that were cut off (arXiv 2503.14476, section 3.4), though their rewards are compared with.
    """

    def counted(group: Group) -> np.ndarray:
        counts = ~np.isnan(group.rewards) & (group.finished | (not mask_truncated))
        return group.completion_mask & counts[:, None]

    empty = (count - len(groups)) * len(groups[0].texts)

    def rows(arrays: Iterable[np.ndarray], filler: float = 0) -> np.ndarray:
        array = np.concatenate(list(arrays))
        return np.concatenate([array, np.full((empty, *array.shape[1:]), filler, array.dtype)])

    return Batch(
        tokens=rows(group.tokens for group in groups),
        segments=rows(group.attention_mask.astype(np.int32) for group in groups),
        completion_mask=rows(map(counted, groups)),
        rewards=rows((group.rewards.astype(np.float32) for group in groups), np.nan),
        sampler_logprobs=rows(group.logprobs for group in groups),
    )


def summarise(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all completions of the groups, missing verdicts left out: rewards, lengths, language by language."""
    values: dict[str, list] = defaultdict(list)
    for group in groups:
        values["reward/mean"].extend(group.rewards)
        values["reward/accuracy"].append(group.solved / group.judged if group.judged else math.nan)
        values[f"accuracy/{group.problem.language}"].append(values["reward/accuracy"][-1])
        values["completion/tokens"].extend(group.completion_mask.sum(axis=1))
        values["completion/truncated"].extend(~group.finished)
        for name, verdicts in group.values.items():
            if name.startswith("language/"):
                values[name].extend(verdicts)
                values[name.replace("/", f"/{group.problem.language}/", 1)].extend(verdicts)
            elif f"reward/{name}" != "reward/accuracy":
                values[f"reward/{name}"].extend(verdicts)
    means = {name: _mean(numbers) for name, numbers in values.items()}
    reasons = Counter(reason for group in groups for reason in group.missing)
    wanted = sum(len(column) for group in groups for column in group.values.values())
    means["verdict/missing"] = sum(reasons.values()) / max(wanted, 1)
    return means | {f"verdict/missing/{reason}": float(count) for reason, count in reasons.items()}


def completion_key(seed: int, step: int, purpose: str, problem: str, sample: int) -> np.ndarray:
    """Random key data UInt32[2] of one completion: a function of its arguments and of nothing that happened before."""
    text = f"{seed}/{step}/{purpose}/{problem}/{sample}"
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint32)


def _mean(numbers: Iterable[Any]) -> float:
    present = [float(number) for number in numbers if not math.isnan(number)]
    return math.fsum(present) / len(present) if present else math.nan
