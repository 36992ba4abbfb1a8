"""From problems to the groups of a batch: ask, judge and keep until a step's batch is full.

    problems -> engine -> verifier pool -> difficulty filter -> groups -> batch

What is kept depends neither on the number of slots nor on how long a verdict takes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxgrpo.rollout import difficulty
from jaxgrpo.rollout.batch import ALL_ROWS, TrainedRows, ages_of_trained_tokens
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.judge import RewardWeights
from jaxgrpo.rollout.protocols import SamplingUsage
from jaxgrpo.rollout.report import summarise
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.types import Params


@dataclass(frozen=True)
class CollectSpec:
    """The size and the rules of a step's collection.

    groups: groups that the batch has places for
    max_prompts: problems that may be asked for them
    trained_rows: completions that the update may count
    """

    groups: int
    max_prompts: int
    filter: DifficultyFilter
    trained_rows: TrainedRows = ALL_ROWS


@dataclass(frozen=True)
class Collection:
    """The groups that a step has collected, and how it went.

    groups: those that the step trains on
    asked: every group that was judged
    usage: what sampling took
    """

    groups: list[JudgedGroup]
    asked: list[JudgedGroup]
    metrics: dict[str, float]
    usage: SamplingUsage


def collect_groups(
    stream: RolloutStream,
    params: Params,
    spec: CollectSpec,
    step: int,
    weights: RewardWeights,
) -> Collection:
    """Collects the groups that a step trains on.

    Groups are judged until `spec.groups` of them passed the filter or `spec.max_prompts` were
    judged. At that bound the batch is filled with the most informative of the others: those with
    the greatest variance of the verdict, then of the reward, never one in which all rewards are
    equal. It may still hold fewer, or none.

    The metrics of `summarise` and filter/ are of all groups that were judged. The others:
        rollout/age: steps from a token's choice to this one, the mean over the tokens trained on
        rollout/age_max: the greatest of these; both are NaN where no token is trained on
        rollout/age_N: with keep_in_flight, the share of these tokens that is N steps old
        rollout/in_flight: problems that were launched and not used when the step had its batch
        rollout/tokens_per_s: tokens that were chosen in the step, over time/rollout
        rollout/utilisation: these tokens, over slots times steps of the calls that chose them
        rollout/idle: the share of time/rollout in which no call was under way
        time/rollout: seconds from the step's beginning to the end of its last call; what verdicts
            take beyond that is no part of it
    Without keep_in_flight, a call that the step's end stopped is in no metric.

    weights: of the rewards in this step
    """
    # 1. Ask and judge until the batch is full, or the bound on prompts is reached.
    session = stream.begin(params, step, weights, spec.groups, spec.max_prompts)
    asked: list[JudgedGroup] = []
    kept: list[JudgedGroup] = []
    while True:
        needed = min(spec.groups - len(kept), spec.max_prompts - len(asked))
        groups = stream.take(needed) if needed else []
        if not groups:  # the batch is full, the bound is reached, or no problem is left
            break
        asked += groups
        kept += [
            group for group in groups if spec.filter.accepts(group.solved, group.judged)
        ]
    # Both count from the session's beginning.
    in_flight = session.launched - stream.problems.used - len(asked)
    stream.end(len(asked))

    # 2. Fill what is left with the most informative of the others.
    # By identity: groups hold arrays, which have no plain equality.
    kept_ids = {id(group) for group in kept}
    others = [group for group in asked if id(group) not in kept_ids]
    fallback = most_informative(others, spec.groups - len(kept))

    # 3. Say how it went.
    sides = [
        spec.filter.side(group.solved, group.judged) for group in asked if group.judged
    ]
    ages = ages_of_trained_tokens(kept + fallback, step, spec.trained_rows)
    usage = session.usage
    metrics = summarise(asked) | {
        "filter/kept": len(kept) / len(asked),
        "filter/asked": len(asked),
        "filter/fallback": len(fallback),
        "filter/groups": len(kept) + len(fallback),
        "filter/too_hard": sides.count(-1) / len(asked),
        "filter/too_easy": sides.count(1) / len(asked),
        "rollout/age": ages.mean() if ages.size else math.nan,
        "rollout/age_max": ages.max() if ages.size else math.nan,
        "rollout/in_flight": in_flight,
        "rollout/tokens_per_s": usage.tokens / usage.seconds,
        "rollout/utilisation": usage.tokens / usage.slot_steps,
        "rollout/idle": usage.idle_seconds / usage.seconds,
        "time/rollout": usage.seconds,
    }
    if stream.keep_in_flight:
        for age in range(stream.max_age + 1):
            metrics[f"rollout/age_{age}"] = np.mean(ages == age) if ages.size else 0.0
    floats = {name: float(value) for name, value in metrics.items()}
    return Collection(kept + fallback, asked, floats, usage)


def most_informative(groups: Iterable[JudgedGroup], count: int) -> list[JudgedGroup]:
    """Returns the `count` groups with the greatest variance of the verdict, then of the reward.

    It returns none whose rewards are all equal.
    """
    informative = [group for group in groups if _has_different_rewards(group)]
    return sorted(informative, key=_informativeness, reverse=True)[: max(count, 0)]


def _has_different_rewards(group: JudgedGroup) -> bool:
    # In float32, as advantages are made: what differs by less than that trains nothing.
    rewards = group.rewards[~np.isnan(group.rewards)].astype(np.float32)
    return np.unique(rewards).size > 1


def _informativeness(group: JudgedGroup) -> tuple[Fraction, float]:
    return difficulty.variance(group.solved, group.judged), float(
        np.nanvar(group.rewards)
    )
