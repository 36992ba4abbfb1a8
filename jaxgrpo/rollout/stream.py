"""Judged groups for one step after another, from a session that may go on across steps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import jax

from jaxgrpo.data.order import ProblemStream
from jaxgrpo.rollout.groups import JudgedGroup, SamplingRequest
from jaxgrpo.rollout.judge import Judge, JudgingQueue, RewardWeights, judged_groups
from jaxgrpo.rollout.protocols import Event, SamplingEngine, Session
from jaxgrpo.rollout.screening import EarlyStop
from jaxgrpo.types import Params


@dataclass
class RolloutStream:
    """Judged groups in the order of their launch, for one step after another.

    keep_in_flight: unfinished completions go on in the next step, under its policy. If False they
        are dropped, and their problems are asked again.
    max_age: with keep_in_flight, the greatest age in steps of a token that is trained on, from 1 up
    in_launch_order: whether groups come in the order of launch; else, without keep_in_flight, in
        the order in which they finish. Problems launched before the last of them that had not
        finished are then passed over: the longest ones.

    What a step trains on is a function of the seed and of the verdicts, never of the time that a
    verdict takes. Without keep_in_flight the order of launch suffices for that. With it the moment
    matters, too: how far each row is when the policy changes, and how many problems were launched
    by then. So verdicts are looked at in moments that sampling alone decides: while a call of the
    device runs, once all groups are complete without which the step cannot end. Then they are
    waited for.

    With keep_in_flight, at most max_age * groups problems are in flight when a step ends. Each step
    uses at least `groups` problems, so the last of these is used at most max_age steps later. It is
    the bound of AReaL (arXiv 2505.24298), and like there it is held when problems are launched.

    A checkpoint keeps the place of the last problem that was used. A run that is resumed samples
    what was in flight again, from the first token, under the policy and with the random keys of the
    step that it resumes at: with keep_in_flight it does not go on as without the stop.
    """

    engine: SamplingEngine
    judge: Judge
    problems: ProblemStream
    request: SamplingRequest
    keep_in_flight: bool = False
    max_age: int = 2
    in_launch_order: bool = True
    _session: Session | None = None
    _weights: RewardWeights = field(default_factory=dict)
    """The reward weights of this step."""
    # Without keep_in_flight: the step's groups.
    _groups: Iterator[JudgedGroup] = field(default_factory=lambda: iter(()))
    # With keep_in_flight: the session's events, and its groups that are not handed out.
    _events: Iterator[Event | None] = field(default_factory=lambda: iter(()))
    _queue: JudgingQueue = field(init=False)
    _spare: int = 0
    """With keep_in_flight: problems that may be in flight besides those that the step needs."""
    _max_in_flight: int = 0

    def begin(
        self,
        params: Params,
        step: int,
        weights: RewardWeights,
        groups: int,
        max_prompts: int,
        early_stop: EarlyStop | None = None,
        in_flight: int = 0,
    ) -> Session:
        """Begins a step, whose groups `take` returns. With keep_in_flight the device is then busy.

        weights: of the rewards in this step
        groups: groups that the step needs at least, unless there are fewer prompts
        max_prompts: problems that the step may ask
        early_stop: says which groups go on by their first verdicts, on `request.screened` rows
        in_flight: without keep_in_flight, the problems in flight at first, at most; 0: at any time
            as many as there are slots for
        """
        self._weights = weights
        self._max_in_flight = in_flight
        if not self._in_rounds:
            problems = islice(self.problems, max_prompts)
            session = self.engine.session(params, problems, self.request, step)
            self._queue = self._new_queue(early_stop)
            self._groups = judged_groups(session, self._queue, weights)
            self._session = session
            return session
        if self._session is None:
            problems = islice(
                self.problems, None if self.keep_in_flight else max_prompts
            )
            session = self.engine.session(params, problems, self.request, step)
            self._session = session
            self._events = iter(session)
            self._queue = self._new_queue(early_stop)
        else:
            session = self._session
            session.set_policy(params, step)
            self._queue.early_stop = early_stop
        self._spare = self.max_age * groups
        self._advance(session, min(groups, max_prompts))
        return session

    @property
    def _in_rounds(self) -> bool:
        """Returns whether groups are asked in rounds, of those that the step needs at least.

        Verdicts are then waited for at the end of a round, so that no clock says how many are
        launched.
        """
        return self.keep_in_flight or self._max_in_flight > 0

    def _new_queue(self, early_stop: EarlyStop | None) -> JudgingQueue:
        return JudgingQueue(
            self.judge,
            jax.process_index(),
            jax.process_count(),
            self.in_launch_order,
            early_stop=early_stop,
        )

    def take(self, needed: int, in_flight: int = 0) -> list[JudgedGroup]:
        """Returns the next judged groups, at least one unless no problem is left.

        needed: the step cannot end with fewer; at most so many are returned, or 1 where they are
            not asked in rounds
        in_flight: as of `begin`, from now on; at least `needed`
        """
        self._max_in_flight = in_flight
        if not self._in_rounds:
            return list(islice(self._groups, 1))
        assert self._session is not None
        while self._queue.num_complete < needed and self._advance(
            self._session, needed
        ):
            pass
        # Verdicts are computed while the call runs, and what comes next must wait for both. The
        # call is waited for first: so its end is known, and the device's idle time after it.
        self._session.wait_for_call()
        count = min(needed, self._queue.num_complete)
        return list(islice(self._queue.judged(self._weights, wait=count), count))

    def _advance(self, session: Session, needed: int) -> bool:
        """Goes on until the device is busy with its next call; returns whether there is one.

        The step will use at least `needed` groups more. So when it ends with keep_in_flight, at
        most `_spare` of those launched are in flight.
        """
        in_flight = self._max_in_flight
        if self.keep_in_flight:
            in_flight = needed + self._spare
        session.max_launched = self._queue.head + in_flight
        for event in self._events:
            if event is None:
                self._queue.decide(session)
                return True
            self._queue.add_event(event)
        return False

    def end(self, used: int) -> None:
        """Ends the step, which has made use of so many groups.

        With keep_in_flight, what has ended in its last call is judged during the update.
        """
        self.problems.mark_used(used if self.in_launch_order else self._queue.used)
        if not self.keep_in_flight:
            if self._in_rounds:
                self._queue.cancel()
            # The session's slots, and its copy of the policy, make room for the update.
            self._session = None
            self._groups = iter(())
            self.problems.rewind()
            return
        assert self._session is not None
        for event in self._session.take_events():
            self._queue.add_event(event)

    def close(self) -> None:
        """Gives up what is in flight; no further step can begin."""
        if self.keep_in_flight and self._session is not None:
            self._queue.cancel()
