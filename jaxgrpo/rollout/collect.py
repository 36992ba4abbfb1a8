"""From problems to the groups of a batch: ask, judge and keep until a step's batch is full.

    problems -> engine -> verifier pool -> difficulty filter -> groups -> batch

What is kept depends neither on the number of slots nor on how long a verdict takes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jaxgrpo.errors import check_choice
from jaxgrpo.rollout import difficulty
from jaxgrpo.rollout.batch import ALL_ROWS, TrainedRows, ages_of_trained_tokens
from jaxgrpo.rollout.difficulty import DifficultyFilter
from jaxgrpo.rollout.filter_metrics import filter_metrics
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.judge import RewardWeights
from jaxgrpo.rollout.protocols import SamplingUsage
from jaxgrpo.rollout.report import summarise
from jaxgrpo.rollout.screening import EarlyStop, early_stop_metrics
from jaxgrpo.rollout.stream import RolloutStream
from jaxgrpo.types import Params

SELECTIONS = ("launch", "finish", "variance")
"""Which of the groups that passed are trained on.

    "launch": the first in the order of launch.
    "finish": the first whose completions have all ended: a bias to short answers. The stream's
        order decides (RolloutStream.in_launch_order).
    "variance": of all problems that may be asked, those with the greatest variance of the verdict,
        then of the reward.
"""


@dataclass(frozen=True)
class CollectSpec:
    """The size and the rules of a step's collection.

    groups: groups that the batch has places for
    max_prompts: problems that may be asked for them
    refill: whether further problems are asked for those whose groups did not pass, and the most
        informative of these fill the batch at the bound; else such groups just leave the batch
    select: one of SELECTIONS, which of the groups that passed are trained on
    trained_rows: completions that the update may count
    beta: of the optimal policy that filter/divergence speaks of
    ahead: problems in flight, at most, as a multiple of those that are likely to be needed still;
        0: as many as there are slots for
    expected: share of the groups that was likely to pass before the step, which counts as much as a
        batch of groups that are judged in it
    early_stop: says which groups are not sampled further, by their first verdicts; None: all are
    """

    groups: int
    max_prompts: int
    filter: DifficultyFilter
    refill: bool = True
    select: str = "launch"
    trained_rows: TrainedRows = ALL_ROWS
    beta: float = 1.0
    ahead: float = 0.0
    expected: float = 0.5
    early_stop: EarlyStop | None = None

    def __post_init__(self) -> None:
        check_choice("filter.select", self.select, SELECTIONS)

    def needed(self, kept: int, asked: int) -> int:
        """Returns the groups that the step must still ask, at least."""
        to_ask = self.max_prompts - asked
        if not self.refill:
            return min(self.groups - asked, to_ask)
        # The groups of most variance are known once all are.
        return to_ask if self.select == "variance" else min(self.groups - kept, to_ask)

    def in_flight(self, kept: int, asked: int) -> int:
        """Returns how many problems may be in flight; 0: as many as there are slots for."""
        if not self.ahead:
            return 0
        needed = self.needed(kept, asked)
        share = (self.expected * self.groups + kept) / (self.groups + asked)
        likely = needed / share if self.refill and share else needed
        return min(
            max(needed, math.ceil(self.ahead * likely)), self.max_prompts - asked
        )

    def accepts(self, group: JudgedGroup) -> bool:
        """Returns whether a group may train the policy."""
        return self.is_whole(group) and self.filter.accepts(
            group.solved, group.judged, group.rewards
        )

    def is_whole(self, group: JudgedGroup) -> bool:
        """Returns whether all rows of a group were sampled."""
        return not self.early_stop or len(group.texts) == self.early_stop.group_size


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
    equal. It may still hold fewer, or none. Without `spec.refill`, `spec.groups` are judged, and
    those that passed are the batch.

    The metrics of `summarise` are of all groups that were judged. Those of `filter_metrics` and:
        filter/fallback: groups that fill the batch without having passed
        rollout/trained: tokens that are trained on, over those that were chosen in the step
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
    session = stream.begin(
        params,
        step,
        weights,
        spec.groups,
        spec.max_prompts,
        spec.early_stop,
        spec.in_flight(0, 0),
    )
    asked: list[JudgedGroup] = []
    kept: list[JudgedGroup] = []
    while True:
        needed = spec.needed(len(kept), len(asked))
        in_flight = spec.in_flight(len(kept), len(asked))
        groups = stream.take(needed, in_flight) if needed else []
        if not groups:  # the batch is full, the bound is reached, or no problem is left
            break
        asked += groups
        kept += filter(spec.accepts, groups)
    # Both count from the session's beginning.
    left_in_flight = session.launched - stream.problems.used - len(asked)
    stream.end(len(asked))

    # 2. Take the batch of those that passed, and fill what is left with the others.
    chosen = kept[: spec.groups]
    if spec.select == "variance":
        chosen = sorted(kept, key=_informativeness, reverse=True)[: spec.groups]
    fallback = []
    if spec.refill:
        others = filter(spec.is_whole, _others(asked, kept))
        fallback = most_informative(others, spec.groups - len(kept))
    trained = chosen + fallback

    # 3. Say how it went.
    ages = ages_of_trained_tokens(trained, step, spec.trained_rows)
    usage = session.usage
    metrics = summarise(asked)
    metrics |= filter_metrics(asked, kept, trained, spec.filter, spec.beta)
    metrics |= {
        "filter/fallback": len(fallback),
        "rollout/trained": ages.size / usage.tokens,
        "rollout/age": ages.mean() if ages.size else math.nan,
        "rollout/age_max": ages.max() if ages.size else math.nan,
        "rollout/in_flight": left_in_flight,
        "rollout/tokens_per_s": usage.tokens / usage.seconds,
        "rollout/utilisation": usage.tokens / usage.slot_steps,
        "rollout/idle": usage.idle_seconds / usage.seconds,
        "time/rollout": usage.seconds,
    }
    if spec.early_stop:
        metrics |= early_stop_metrics(asked, spec.early_stop, stream.judge.solved_by)
    if stream.keep_in_flight:
        for age in range(stream.max_age + 1):
            metrics[f"rollout/age_{age}"] = np.mean(ages == age) if ages.size else 0.0
    floats = {name: float(value) for name, value in metrics.items()}
    return Collection(trained, asked, floats, usage)


def most_informative(groups: Iterable[JudgedGroup], count: int) -> list[JudgedGroup]:
    """Returns the `count` groups with the greatest variance of the verdict, then of the reward.

    It returns none whose rewards are all equal.
    """
    # What differs by less than advantages are made in trains nothing.
    informative = [
        group for group in groups if difficulty.reward_variance(group.rewards) > 0
    ]
    return sorted(informative, key=_informativeness, reverse=True)[: max(count, 0)]


def _others(
    groups: Sequence[JudgedGroup], chosen: Sequence[JudgedGroup]
) -> list[JudgedGroup]:
    """Returns the groups that were not chosen."""
    # By identity: groups hold arrays, which have no plain equality.
    ids = {id(group) for group in chosen}
    return [group for group in groups if id(group) not in ids]


def _informativeness(group: JudgedGroup) -> tuple[Fraction, float]:
    return difficulty.variance(group.solved, group.judged), float(
        np.nanvar(group.rewards)
    )
