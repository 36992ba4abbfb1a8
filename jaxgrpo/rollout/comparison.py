"""Compares the answers of each problem's completions, while others are still being sampled.

Plain whole numbers are compared at once. Other answers are algebra on what a model wrote, done in
worker processes, as rewards are. These are started at the first such answer, and nobody waits.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.problems import Weighted
from jaxgrpo.rewards.maths.votes import Votes
from jaxgrpo.rewards.workers.pool import Missing, Pool, Ticket
from jaxgrpo.rollout.evaluated import Evaluated, right_or_wrong
from jaxgrpo.rollout.groups import JudgedTexts

VOTE = "vote"
"""The name of the votes among a pool's rewards."""


class AnswerComparison:
    """Which completions of a problem give the same answer. A context manager.

    Of n processes each compares every n-th problem's answers, and all get the same.

    solved_by: the reward that says whether a completion is right
    reads: what that reward reads as the answer; None: it reads none
    samples: completions of each problem; of one there is nothing to compare
    workers: processes that compare
    deadline: seconds that a completion's comparisons may take
    """

    def __init__(
        self,
        solved_by: str,
        reads: Votes | None,
        samples: int,
        workers: int,
        deadline: float,
    ):
        self._solved_by = solved_by
        self._reads = reads
        self._compares = reads is not None and samples > 1
        self._workers = workers
        self._deadline = deadline * samples
        self._pool: Pool | None = None
        # Its one thread starts the pool, which takes a second, and then hands over what waits.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._added = 0
        # All by the problem's id.
        self._answers: dict[str, list[str | None]] = {}
        self._votes: dict[str, np.ndarray] = {}
        self._asked: dict[str, Future[Ticket]] = {}

    def add(self, judged: JudgedTexts) -> None:
        """Begins with a problem, without waiting. All processes add the same in the same order."""
        name = judged.problem.id
        reads = self._reads
        self._answers[name] = [
            reads.read(text) if reads else None for text in judged.texts
        ]
        if reads is None or not self._compares:
            return
        index = self._added
        self._added += 1
        plain = reads.plain(judged.texts)
        if plain is not None:
            self._votes[name] = np.array(plain)
        elif index % jax.process_count() == jax.process_index():
            self._asked[name] = self._thread.submit(self._submit, judged, reads)

    def _submit(self, judged: JudgedTexts, reads: Votes) -> Ticket:
        if self._pool is None:
            rewards = {VOTE: Weighted(reads, 0.0)}
            self._pool = Pool(rewards, self._workers, self._deadline)
        return self._pool.submit(judged.problem, judged.texts)

    def results(self, judged: Sequence[JudgedTexts]) -> list[Evaluated]:
        """Returns what was found about problems that were added; it waits for all of them."""
        own = [[name, self._wait(asked)] for name, asked in self._asked.items()]
        for part in gather_json(own):
            for name, votes in part:
                self._votes[name] = np.array(votes, float)  # NaN for None
        return [
            Evaluated(
                judged=one,
                is_right=right_or_wrong(one.values[self._solved_by]),
                answers=self._answers[one.problem.id],
                votes=self._votes.get(one.problem.id),
            )
            for one in judged
        ]

    def _wait(self, asked: Future[Ticket]) -> list[float | None]:
        """Returns a problem's votes; None for those that could not be had."""
        ticket = asked.result()
        assert self._pool is not None, "it has given the ticket"
        verdicts = [verdict[VOTE] for verdict in self._pool.result(ticket)]
        return [None if isinstance(vote, Missing) else vote for vote in verdicts]

    def __enter__(self) -> "AnswerComparison":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.close()
