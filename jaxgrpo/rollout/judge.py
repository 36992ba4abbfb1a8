"""JsonVerdicts on groups: texts go to the verifier pool as they end, groups come back judged.

Groups come back in the order in which their problems were launched. The order in which they finish
can be asked for, too: to take the first to finish favours short answers.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.problems import Completion, Problem, Weighted
from jaxgrpo.rewards.workers.pool import Missing, Pool, Ticket
from jaxgrpo.rollout.groups import (
    FinishedCompletion,
    Group,
    JudgedGroup,
    JudgedTexts,
)
from jaxgrpo.rollout.protocols import Event, Session
from jaxgrpo.rollout.screening import EarlyStop

RewardWeights = Mapping[str, float]
"""The weight of each reward, by its name, in the sum that advantages are made of."""

JsonVerdicts = dict[str, float | str]
"""One text's verdicts as JSON: each reward's number, or the reason why there is none."""


@dataclass(frozen=True)
class Judge:
    """Has groups judged by the pool.

    pool: it may compute values beyond `rewards`; those are only reported
    rewards: they are summed by their weights
    solved_by: the reward whose value 1.0 means that a completion is right
    """

    pool: Pool
    rewards: dict[str, Weighted]
    solved_by: str

    def initial_weights(self) -> dict[str, float]:
        """Returns the weights that the rewards begin with."""
        return {name: reward.weight for name, reward in self.rewards.items()}

    def submit(self, group: Group) -> Ticket:
        """Sends a group to the pool, without waiting."""
        return self.pool.submit(group.problem, group.texts)

    def submit_early(self, finished: FinishedCompletion) -> Ticket | None:
        """Sends one of a group's texts to the pool, without waiting for the others.

        Returns None where a reward must see all of them together.
        """
        if self.pool.batched:
            return None
        return self.pool.submit(finished.problem, [finished.text])

    def verdicts(self, tickets: Sequence[Ticket]) -> list[JsonVerdicts]:
        """Waits for the verdicts of a group's texts, and returns them in order."""
        verdicts = []
        for ticket in tickets:
            for row in self.pool.result(ticket):
                verdicts.append(
                    {name: _to_json(verdict) for name, verdict in row.items()}
                )
        return verdicts

    def judge(
        self, group: Group, verdicts: Sequence[JsonVerdicts], weights: RewardWeights
    ) -> JudgedGroup:
        """Returns a group with its verdicts, its rewards and its counts."""
        return JudgedGroup(**vars(group), **self._judgement(verdicts, weights))

    def judge_texts(
        self, texts: Sequence[tuple[Problem, list[Completion]]], weights: RewardWeights
    ) -> list[JudgedTexts]:
        """Returns the completions of several problems, judged; it waits for the verdicts.

        Of n processes each judges every n-th problem, and all get the same.
        """
        share = range(jax.process_index(), len(texts), jax.process_count())
        tickets = {index: self.pool.submit(*texts[index]) for index in share}
        own = [[index, self.verdicts([ticket])] for index, ticket in tickets.items()]
        verdicts = dict(pair for part in gather_json(own) for pair in part)
        return [
            JudgedTexts(
                problem, completions, **self._judgement(verdicts[index], weights)
            )
            for index, (problem, completions) in enumerate(texts)
        ]

    def _judgement(
        self, verdicts: Sequence[JsonVerdicts], weights: RewardWeights
    ) -> dict[str, Any]:
        """Returns the fields of JudgedTexts that verdicts decide."""
        # 1. A column of numbers for each reward, and why numbers are missing.
        names = verdicts[0].keys()
        values = {
            name: np.array([_to_number(row[name]) for row in verdicts])
            for name in names
        }
        missing = {}
        for row, row_verdicts in enumerate(verdicts):
            for name, verdict in row_verdicts.items():
                if isinstance(verdict, str):
                    missing[row, name] = verdict
        # 2. The sum that advantages are made of. A reward of weight 0 is left out, so that its
        # missing verdicts do not make the sum NaN.
        parts = [weight * values[name] for name, weight in weights.items() if weight]
        # 3. Counts for the difficulty filter: of right and wrong alone, whatever else is rewarded.
        solved, judged = self.count(verdicts)
        return {
            "values": values,
            "missing": missing,
            "rewards": np.sum(parts, axis=0) if parts else np.zeros(len(verdicts)),
            "solved": solved,
            "judged": judged,
        }

    def count(self, verdicts: Sequence[JsonVerdicts]) -> tuple[int, int]:
        """Returns how many texts are right, and of how many it is known."""
        known = [_to_number(row[self.solved_by]) for row in verdicts]
        known = [value for value in known if not math.isnan(value)]
        return known.count(1.0), len(known)


def _to_json(verdict: float | Missing) -> float | str:
    return verdict.reason if isinstance(verdict, Missing) else verdict


def _to_number(verdict: float | str) -> float:
    return math.nan if isinstance(verdict, str) else verdict


def judged_in_order(
    session: Iterable[Event | None], judge: Judge, weights: RewardWeights
) -> Iterator[JudgedGroup]:
    """Yields the groups of a session in the order of their launch.

    Each comes as soon as it and all before it are judged. Texts are submitted as they end, and
    verdicts are computed while the device decodes. Of n processes each judges every n-th group. All
    of them must come to the same decisions: they tell each other their verdicts once a call of the
    device, and hand out what all of them know.
    """
    queue = JudgingQueue(judge, jax.process_index(), jax.process_count())
    return judged_groups(session, queue, weights)


def judged_groups(
    session: Any, queue: "JudgingQueue", weights: RewardWeights
) -> Iterator[JudgedGroup]:
    """Yields the groups of a session as `judged_in_order`, in the order of the queue.

    session: an iterable of events; with `queue.early_stop` a Session, which is told of decisions
    """
    try:
        for event in session:
            if event is not None:
                queue.add_event(event)
            # None: the device has begun its next call, the time at which processes meet. A process
            # that is alone hands out at every complete group, too.
            if event is None and queue.early_stop:
                queue.decide(session)
            is_alone = queue.processes == 1
            if event is None or (
                is_alone and not isinstance(event, FinishedCompletion)
            ):
                yield from queue.judged(weights)
        while queue.groups:
            yield from queue.judged(weights, wait=1)
    finally:
        queue.cancel()


@dataclass
class JudgingQueue:
    """The groups of a session that are not handed out yet, and the verdicts that are known.

    Every process has one and knows all groups; it has the pool judge only its own share.
    """

    judge: Judge
    process: int
    processes: int
    in_launch_order: bool = True
    """Whether groups are handed out as they were launched; else as their last completions ended."""
    head: int = 0
    """Groups that have been handed out: the place of the next one in the order."""
    used: int = 0
    """The greatest index of those, and 1: so many problems are used or passed over."""
    arrived: list[int] = field(default_factory=list)
    """The index of each complete group, as they ended."""
    groups: dict[int, Group] = field(default_factory=dict)
    """Complete groups, by index."""
    early_tickets: dict[int, dict[int, Ticket]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """Tickets of this process's texts whose groups are not complete, by index and sample."""
    tickets: dict[int, list[Ticket]] = field(default_factory=dict)
    """Tickets of this process's complete groups."""
    verdicts: dict[int, list[JsonVerdicts]] = field(default_factory=dict)
    """JsonVerdicts of groups that are not handed out yet: the same in all processes."""
    early_stop: EarlyStop | None = None
    """Says which groups go on, by their first verdicts; None: all rows start at once."""
    screened: dict[int, list[FinishedCompletion]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """The first texts that have ended of each group that is not decided on, by index."""
    due: list[int] = field(default_factory=list)
    """Those of these groups that are decided on next."""

    @property
    def num_complete(self) -> int:
        """The number of complete groups from `head` on, up to the first gap."""
        return next(n for n in itertools.count() if self.head + n not in self.groups)

    def add_event(self, event: Event) -> None:
        """Takes in a completion that has ended, or a group that is complete."""
        if isinstance(event, FinishedCompletion):
            self._add_completion(event)
        else:
            index, group = event
            self._add_group(index, group)

    def _add_completion(self, finished: FinishedCompletion) -> None:
        if self.early_stop and finished.sample < self.early_stop.verdicts:
            self.screened[finished.index].append(finished)
        if not self._is_mine(finished.index):
            return
        ticket = self.judge.submit_early(finished)
        if ticket is not None:
            self.early_tickets[finished.index][finished.sample] = ticket

    def _add_group(self, index: int, group: Group) -> None:
        self.groups[index] = group
        self.arrived.append(index)
        if not self._is_mine(index):
            return
        # Its texts were submitted one by one, unless a reward must see them together.
        early = self.early_tickets.pop(index, {})
        in_order = [early[sample] for sample in sorted(early)]
        self.tickets[index] = in_order or [self.judge.submit(group)]

    def judged(self, weights: RewardWeights, wait: int = 0) -> Iterator[JudgedGroup]:
        """Hands out the next groups, as far as all processes know their verdicts.

        wait: how many of them are waited for; they must be complete
        """
        # A collective: all processes iterate this at the same point of the program. Each brings the
        # verdicts that it knows, and afterwards all know the same. Pairs, because JSON has no
        # integer keys.
        waited = {self._index_at(self.head + place) for place in range(wait)}
        ready = [
            index for index in self.tickets if index in waited or self._done(index)
        ]
        own = [[index, self.judge.verdicts(self.tickets.pop(index))] for index in ready]
        for part in gather_json(own):
            self.verdicts.update(part)
        # Only the next groups in the order, without a gap.
        while (index := self._index_at(self.head)) in self.verdicts:
            group = self.groups.pop(index)
            verdicts = self.verdicts.pop(index)
            self.head += 1
            self.used = max(self.used, index + 1)
            yield self.judge.judge(group, verdicts, weights)

    def decide(self, session: Session) -> None:
        """Tells the session which groups go on, whose first texts have been judged meanwhile.

        Verdicts are waited for, so that sampling alone, and no clock, says when other rows start:
        those of texts that had ended before the call that has just begun. They were computed while
        the call before it ran. Where none runs, those of all texts.
        """
        if self.early_stop is None:
            return
        own = []
        for index in self._screened_whole() if session.is_idle else self.due:
            if self._is_mine(index):
                tickets = list(self.early_tickets[index].values())
                counts = self.judge.count(self.judge.verdicts(tickets))
                problem = self.screened[index][0].problem
                own.append([index, self.early_stop.goes_on(problem, *counts)])
        # A collective, as `judged`.
        for index, goes_on in sorted(itertools.chain(*gather_json(own))):
            del self.screened[index]
            session.decide(index, goes_on)
        self.due = self._screened_whole()

    def _screened_whole(self) -> list[int]:
        """Returns the indices of groups whose first texts have all ended."""
        assert self.early_stop is not None
        return [
            index
            for index, texts in self.screened.items()
            if len(texts) == self.early_stop.verdicts
        ]

    def cancel(self) -> None:
        """Tells the pool that what has not been handed out is not wanted any more."""
        by_group = [
            *self.tickets.values(),
            *(t.values() for t in self.early_tickets.values()),
        ]
        for ticket in itertools.chain(*by_group):
            self.judge.pool.cancel(ticket)

    def _index_at(self, place: int) -> int:
        """Returns the index of the group at a place of the order; -1 where none has come yet."""
        if self.in_launch_order:
            return place
        return self.arrived[place] if place < len(self.arrived) else -1

    def _done(self, index: int) -> bool:
        return all(ticket.verdicts.done() for ticket in self.tickets[index])

    def _is_mine(self, index: int) -> bool:
        return index % self.processes == self.process
