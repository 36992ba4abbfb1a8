"""From problems to a batch: what is asked, judged and kept, until a step's batch is full.

    problems -> engine -> verifier pool -> difficulty filter -> groups -> batch

Groups are judged in the order in which they were launched, not in the order in which they finish: taking the first to finish
would favour short answers. So what is kept depends neither on the number of slots nor on how long a verdict takes.
"""

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgrpo.data.order import ProblemStream
from jaxgrpo.distributed.mesh import gather_json
from jaxgrpo.errors import UserError
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards.workers.pool import Missing, Pool, Ticket
from jaxgrpo.rollout import difficulty
from jaxgrpo.rollout.engine import Draw, Engine, FinishedCompletion, Group, SamplingSession
from jaxgrpo.types import Params, TrainBatch

SAVED = 100
"""How many texts are saved, at most, whose verdicts are missing."""


class MissingVerdictsError(UserError):
    """So many verdicts cannot be had that what is trained is not what was asked for."""


@dataclass(frozen=True)
class Judge:
    """Has groups judged by the pool. `rewards` are summed; the pool may compute further figures, which are only measured."""

    pool: Pool
    rewards: dict[str, Weighted]
    solved_by: str
    weights: dict[str, float] = field(init=False, default_factory=dict)
    """The rewards' weights of this step; at first those that they begin with."""

    def __post_init__(self) -> None:
        self.weights.update({name: reward.weight for name, reward in self.rewards.items()})

    def submit(self, group: Group) -> Ticket:
        """Has the group judged, without waiting."""
        return self.pool.submit(group.problem, group.texts)

    def submit_early(self, ended: FinishedCompletion) -> Ticket | None:
        """Has one of a group's texts judged, without waiting for the others; None where a reward must see them together."""
        return None if self.pool.batched else self.pool.submit(ended.problem, [ended.text])

    def verdicts(self, tickets: Sequence[Ticket]) -> list[dict[str, float | str]]:
        """Waits for the verdicts of a group's texts, in order: of each a number, or why there is none."""
        plain = lambda verdict: verdict.reason if isinstance(verdict, Missing) else verdict
        rows = [row for ticket in tickets for row in self.pool.result(ticket)]
        return [{name: plain(verdict) for name, verdict in row.items()} for row in rows]

    def note(self, group: Group, verdicts: Sequence[Mapping[str, float | str]]) -> None:
        """Fills in the group's values, rewards and counts."""
        number = lambda verdict: math.nan if isinstance(verdict, str) else verdict
        group.values = {
            name: np.array([number(row[name]) for row in verdicts]) for name in verdicts[0]
        }
        each = (
            (row, name, verdict)
            for row, values in enumerate(verdicts)
            for name, verdict in values.items()
        )
        group.missing = {
            (row, name): verdict for row, name, verdict in each if isinstance(verdict, str)
        }
        parts = [weight * group.values[name] for name, weight in self.weights.items() if weight]
        group.rewards = np.sum(parts, axis=0) if parts else np.zeros(len(group.texts))
        correct = group.values[self.solved_by]
        group.judged = int(np.sum(~np.isnan(correct)))
        group.solved = int(np.sum(correct == 1.0))


@dataclass(frozen=True)
class CollectSpec:
    """What a step's collection should hold: `groups` groups of group_size completions, by the filter's rule, from at most
    `most` problems.

    mask_truncated: whether completions that were cut off train nothing
    """

    groups: int
    group_size: int
    rule: str
    low: float
    high: float
    most: int
    mask_truncated: bool = False

    def takes(self, group: Group) -> bool:
        passes = difficulty.DifficultyFilter(self.rule, self.low, self.high)
        return passes.accepts(group.solved, group.judged)


@dataclass
class RolloutStream:
    """Judged groups in the order of their launch, for one step after another.

    keep: whether what is in flight when a step has its batch goes on at the next one, under that one's policy. Else it is
        stopped, and its problems are as if they had not been asked.
    max_age: with keep, the greatest age in steps of a token that is trained on, at least 1

    What a step trains on is a function of the seed and of the verdicts, never of the time that a
    verdict takes. Without keep the order of launch suffices for that. With keep the moment matters,
    too: how far each row is when the policy changes, and how many problems were launched by then.
    So verdicts are looked at in moments that sampling alone decides: while a call of the device
    runs, once all groups are whole without which the step cannot end. Then they are waited for.

    With keep, at most max_age * groups problems are in flight when a step ends. Each step uses at
    least `groups` problems, so the last of these is used at most max_age steps later. It is the
    bound of AReaL (arXiv 2505.24298), and like there it is held when problems are launched.

    A checkpoint keeps the place of the last problem that was used. A run that is resumed asks what
    was in flight anew, from the first token, under the policy and with the random keys of the step
    that it resumes at: with keep it does not go on as it would have without the stop.
    """

    engine: Engine
    judge: Judge
    problems: ProblemStream
    draw: Draw
    keep: bool = False
    max_age: int = 2
    wave: SamplingSession | None = None
    groups: Iterator[Group] = field(default_factory=lambda: iter(()))
    """Without keep, the step's."""
    _items: Iterator[FinishedCompletion | tuple[int, Group] | None] = field(
        default_factory=lambda: iter(())
    )
    """With keep, what happens in the wave."""
    _share: "_Share" = field(init=False)
    """With keep, its groups that have not been handed out."""
    _spare: int = 0
    """With keep, problems that may be in flight besides those that the step needs."""

    def begin(self, params: Params, wanted: CollectSpec, step: int) -> SamplingSession:
        """Begins a step, whose groups `take` gives. With keep the device is then at work."""
        if self.keep and self.wave is not None:
            self.wave.renew(params, step)
        else:
            problems = self.problems if self.keep else islice(self.problems, wanted.most)
            size = wanted.group_size
            self.wave = self.engine.wave(params, problems, size, self.draw, step, "training")
            if self.keep:
                self._items = iter(self.wave)
                self._share = _JudgingQueue(self.judge, jax.process_index(), jax.process_count())
            else:
                self.groups = judged_in_order(self.wave, self.judge)
        if self.keep:
            self._spare = self.max_age * wanted.groups
            self._go_on(min(wanted.groups, wanted.most))
        return self.wave

    def take(self, needed: int) -> list[Group]:
        """Returns the next judged groups, at least one unless no problem is left.

        needed: how many the step has to take at least before it can end; it gets no more
        """
        if not self.keep:
            return list(islice(self.groups, 1))
        assert self.wave is not None
        while self._share.whole < needed and self._go_on(needed):
            pass
        # Verdicts are computed while the call runs, and what comes next must wait for both. The
        # call is waited for first: so its end is known, and the device's idle time after it.
        self.wave.finish_call()
        count = min(needed, self._share.whole)
        return list(islice(self._share.judged(wait=count), count))

    def _go_on(self, needed: int) -> bool:
        """Goes on until the device is busy with its next call; returns whether there is one.

        The step will use at least `needed` groups more. So when it ends, at most `_spare` of those
        launched are in flight.
        """
        assert self.wave is not None
        self.wave.max_launched = self._share.head + needed + self._spare
        for item in self._items:
            if item is None:
                return True
            self._share.hear(item)
        return False

    def end(self, used: int) -> None:
        """Ends the step, which has made use of so many groups.

        With keep, what has ended in its last call is judged during the update.
        """
        self.problems.mark_used(used)
        if not self.keep:
            self.wave, self.groups = (
                None,
                iter(()),
            )  # its slots, and its copy of the policy, make room for the update
            self.problems.rewind()
            return
        assert self.wave is not None
        for item in self.wave.news():
            self._share.hear(item)

    def close(self) -> None:
        """Gives up what is in flight; no further step can begin."""
        if self.keep and self.wave is not None:
            self._share.cancel()


def collect_groups(
    stream: RolloutStream, params: Params, wanted: CollectSpec, step: int
) -> tuple[list[Group], dict[str, float], list[Group]]:
    """Returns the groups that a step trains on, its metrics, and every group that was judged.

    Groups are judged until `wanted.groups` of them passed the filter or `wanted.most` were judged. At that bound the batch is
    filled with the most informative of the others: those with the greatest variance of the verdict, then of the reward, never
    one in which all rewards are equal. It may still hold fewer, or none.

    The metrics of `summarise` and filter/ are of all groups that were judged. The others:
        rollout/age: steps from a token's choice to this one, the mean over the tokens trained on
        rollout/age_max: the greatest of these; both are NaN where no token is trained on
        rollout/in_flight: problems that were launched and not used when the step had its batch
        rollout/tokens_per_s: tokens that were chosen in the step, over time/rollout
        rollout/utilisation: these tokens, over slots times steps of the calls that chose them
        rollout/waited: the share of time/rollout in which no call was under way
        time/rollout: seconds from the step's beginning to the end of its last call; what verdicts
            take beyond that is no part of it
    Without keep_in_flight, a call that the step's end stopped counts nowhere.
    """
    wave = stream.begin(params, wanted, step)
    asked: list[Group] = []
    chosen: list[Group] = []
    while needed := min(wanted.groups - len(chosen), wanted.most - len(asked)):
        groups = stream.take(needed)
        if not groups:
            break
        asked += groups
        chosen += filter(wanted.takes, groups)
    in_flight = wave.launched - stream.problems.used - len(asked)
    stream.end(len(asked))
    passes = difficulty.DifficultyFilter(wanted.rule, wanted.low, wanted.high)
    sides = [passes.side(g.solved, g.judged) for g in asked if g.judged]
    fallback = most_informative(
        [g for g in asked if all(g is not c for c in chosen)], wanted.groups - len(chosen)
    )
    usage = wave.usage
    ages = ages_of_trained_tokens(chosen + fallback, step, wanted.mask_truncated)
    metrics = summarise(asked) | {
        "filter/kept": len(chosen) / len(asked),
        "filter/asked": len(asked),
        "filter/fallback": len(fallback),
        "filter/groups": len(chosen) + len(fallback),
        "filter/too_hard": sides.count(-1) / len(asked),
        "filter/too_easy": sides.count(1) / len(asked),
        "rollout/age": ages.mean() if ages.size else math.nan,
        "rollout/age_max": ages.max() if ages.size else math.nan,
        "rollout/in_flight": in_flight,
        "rollout/tokens_per_s": usage.tokens / usage.seconds,
        "rollout/utilisation": usage.tokens / usage.computed,
        "rollout/waited": usage.waited / usage.seconds,
        "time/rollout": usage.seconds,
    }
    return chosen + fallback, {name: float(value) for name, value in metrics.items()}, asked


def ages_of_trained_tokens(groups: Sequence[Group], step: int, mask_truncated: bool) -> np.ndarray:
    """Returns the ages in steps of the tokens that an update on the groups counts (make_batch)."""
    ages = [np.zeros(0, int)]
    for group in groups:
        counted = compared_tokens(group) & trained_rows(group, mask_truncated)[:, None]
        ages.append(step - group.written[counted])
    return np.concatenate(ages)


def compared_tokens(group: Group) -> np.ndarray:
    """Returns Bool[G T]: the chosen tokens of the rows that have a reward, which advantages are made of."""
    return group.completion_mask & ~np.isnan(group.rewards)[:, None]


def trained_rows(group: Group, mask_truncated: bool) -> np.ndarray:
    """Returns Bool[G]: the rows that the loss may count. mask_truncated: not those that were cut off."""
    return group.finished | (not mask_truncated)


def judged_in_order(
    wave: Iterable[FinishedCompletion | tuple[int, Group] | None], judge: Judge
) -> Iterator[Group]:
    """The groups of a wave in the order of their launch, each as soon as it and all before it are judged.

    Texts are submitted as they end, and verdicts computed while the device decodes. Of n processes each judges every n-th
    group. All of them must come to the same decisions: they tell each other what they have found once a call of the device,
    and hand out what all of them know.
    """
    share = _JudgingQueue(judge, jax.process_index(), jax.process_count())
    try:
        for item in wave:
            if item is not None:
                share.hear(item)
            if item is None or (share.processes == 1 and not isinstance(item, FinishedCompletion)):
                yield from share.judged()
        while share.groups:
            yield from share.judged(wait=1)
    finally:
        share.cancel()


@dataclass
class _JudgingQueue:
    """What one of several processes knows of a wave's groups: those that are whole, its own share's tickets, and verdicts."""

    judge: Judge
    process: int
    processes: int
    head: int = 0
    """The next group in the order of launch."""
    groups: dict[int, Group] = field(default_factory=dict)
    early: dict[int, dict[int, Ticket]] = field(default_factory=lambda: defaultdict(dict))
    tickets: dict[int, list[Ticket]] = field(default_factory=dict)
    known: dict[int, list[dict[str, float | str]]] = field(default_factory=dict)
    """Verdicts of groups that are not handed out yet: the same in all processes."""

    @property
    def whole(self) -> int:
        """How many of the next groups are whole, with none between them that is not."""
        return next(count for count in itertools.count() if self.head + count not in self.groups)

    def hear(self, item: FinishedCompletion | tuple[int, Group]) -> None:
        """Takes note of what has happened in the wave."""
        if isinstance(item, FinishedCompletion):
            self.submit(item)
        else:
            self.add(*item)

    def submit(self, ended: FinishedCompletion) -> None:
        """A text that has ended is judged, if it is this process's to judge."""
        if self._is_mine(ended.index) and (ticket := self.judge.submit_early(ended)):
            self.early[ended.index][ended.sample] = ticket

    def add(self, index: int, group: Group) -> None:
        """A group is whole."""
        self.groups[index] = group
        if self._is_mine(index):
            tickets = self.early.pop(index, {})
            self.tickets[index] = [tickets[sample] for sample in sorted(tickets)] or [
                self.judge.submit(group)
            ]

    def judged(self, wait: int = 0) -> Iterator[Group]:
        """Hands out the next groups, as far as all processes know their verdicts.

        wait: how many of them are waited for; they must be whole
        """
        done = lambda index: all(ticket.verdicts.done() for ticket in self.tickets[index])
        ready = [index for index in self.tickets if index < self.head + wait or done(index)]
        found = [[index, self.judge.verdicts(self.tickets.pop(index))] for index in ready]
        for part in gather_json(found):
            self.known.update(part)
        while self.head in self.known:
            group = self.groups.pop(self.head)
            self.judge.note(group, self.known.pop(self.head))
            self.head += 1
            yield group

    def cancel(self) -> None:
        """What has not been handed out is not wanted any more."""
        for ticket in itertools.chain(
            *self.tickets.values(), *(tickets.values() for tickets in self.early.values())
        ):
            self.judge.pool.cancel(ticket)

    def _is_mine(self, index: int) -> bool:
        return index % self.processes == self.process


def most_informative(groups: Iterable[Group], count: int) -> list[Group]:
    """The `count` groups with the greatest variance of the verdict, then of the reward; none whose rewards are all equal."""
    # In float32, as advantages are made: what differs less than that trains nothing.
    distinct = lambda group: (
        np.unique(group.rewards[~np.isnan(group.rewards)].astype(np.float32)).size
    )
    useful = [group for group in groups if distinct(group) > 1]
    rank = lambda g: (difficulty.variance(g.solved, g.judged), float(np.nanvar(g.rewards)))
    return sorted(useful, key=rank, reverse=True)[: max(count, 0)]


def make_batch(groups: Sequence[Group], count: int, mask_truncated: bool = False) -> TrainBatch:
    """`count` groups' rows as one batch of numpy arrays; there is at least one group.

    Rows whose reward is missing, and the places that no group fills, have an empty completion_mask and count nothing.
    mask_truncated: rows that were cut off are not trained on (arXiv 2503.14476, section 3.4),
    though their rewards, lengths and KL are compared with.
    """
    empty = (count - len(groups)) * len(groups[0].texts)

    def rows(arrays: Iterable[np.ndarray], filler: float = 0) -> np.ndarray:
        array = np.concatenate(list(arrays))
        return np.concatenate([array, np.full((empty, *array.shape[1:]), filler, array.dtype)])

    return TrainBatch(
        tokens=rows(group.tokens for group in groups),
        segments=rows(group.attention_mask.astype(np.int32) for group in groups),
        completion_mask=rows(map(compared_tokens, groups)),
        rewards=rows((group.rewards.astype(np.float32) for group in groups), np.nan),
        sampler_logprobs=rows(group.logprobs for group in groups),
        trained=rows(trained_rows(group, mask_truncated) for group in groups),
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
    reasons = Counter(reason for group in groups for reason in group.missing.values())
    wanted = sum(len(column) for group in groups for column in group.values.values())
    means["verdict/missing"] = sum(reasons.values()) / max(wanted, 1)
    return means | {f"verdict/missing/{reason}": float(count) for reason, count in reasons.items()}


def verdict_means(groups: Sequence[Group]) -> dict[str, float]:
    """Returns each reward's mean over all completions of the groups, missing verdicts left out;
    NaN where all are missing."""
    verdicts: dict[str, list] = defaultdict(list)
    for group in groups:
        for name, values in group.values.items():
            verdicts[name].extend(values)
    return {name: _mean(numbers) for name, numbers in verdicts.items()}


def record(group: Group) -> dict[str, Any]:
    """A problem and its first completion as JSON values; None for a verdict that is missing."""
    problem = group.problem
    return {
        "id": problem.id,
        "language": problem.language,
        "level": problem.level,
        "prompt": problem.prompt,
        "completion": group.texts[0],
        "answer": problem.answer,
        "rewards": {
            name: None if np.isnan(values[0]) else float(values[0])
            for name, values in group.values.items()
        },
        "solved": group.solved,
        "judged": group.judged,
    }


def check_missing_verdicts(groups: Sequence[Group], most: float, path: Path) -> None:
    """Raises MissingVerdictsError if a greater share of verdicts is missing than `most`. The texts are then in a JSON Lines
    file at `path`, those that the most frequent reason stands for first."""
    wanted = sum(len(column) for group in groups for column in group.values.values())
    missing = [
        (name, reason, group, row)
        for group in groups
        for (row, name), reason in group.missing.items()
    ]
    if len(missing) <= most * wanted:
        return
    counts = Counter((name, reason) for name, reason, _, _ in missing)
    missing.sort(key=lambda item: counts[item[:2]], reverse=True)
    lines = [
        {
            "reward": name,
            "missing": reason,
            "id": group.problem.id,
            "answer": group.problem.answer,
            "text": group.texts[row],
        }
        for name, reason, group, row in missing[:SAVED]
    ]
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    (name, reason), count = counts.most_common(1)[0]
    raise MissingVerdictsError(
        f"{len(missing):,} of {wanted:,} verdicts are missing, more than verifier.max_missing={most:g}; most of all "
        f"{name!r} for {reason!r}, {count:,} times: the texts are in {path}; mend the reward, or raise verifier.max_missing"
    )


def _mean(numbers: Iterable[Any]) -> float:
    present = [float(number) for number in numbers if not math.isnan(number)]
    return math.fsum(present) / len(present) if present else math.nan
