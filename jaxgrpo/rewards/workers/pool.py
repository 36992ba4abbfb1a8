"""Rewards in worker processes, with a deadline for every call that is enforced from outside.

A reward is somebody's code run on a model's text: it may hang, hold the GIL, crash, print, eat memory. So it runs in a
process that can be killed, and never by an alarm inside it, which works in the main thread only and not in C code.
"""

import contextlib
import dataclasses
import json
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.problems import BatchedReward, Completion, Problem, Reward, Weighted, is_batched
from jaxgrpo.rewards.workers.process import LostError, Process, StoppedError, Supply
from jaxgrpo.rewards.workers.worker import calls, find_reward


@dataclass(frozen=True)
class Missing:
    """A verdict that could not be had. Not a number, so that nobody takes it for 0: leave it out, and count it.

    reason: "timeout", "crash", "not finite", "not a number", of a batched reward "wrong number of results", or the name of
    the exception that the reward raised.
    """

    reason: str


Verdicts = dict[str, float | Missing]
"""One text's rewards, by name."""


def reward_name(function: Reward | BatchedReward) -> str:
    """The "module:qualname" by which another process can import `function`; of a dataclass's instance, its class's and
    its settings, rewards among them by their names: see worker.find_reward. Raises UserError if none can."""
    has_settings = dataclasses.is_dataclass(function) and not isinstance(function, type)
    named = type(function) if has_settings else function
    module, qualname = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if not module or not qualname or module == "__main__" or "<" in qualname:
        raise UserError(
            f"reward {function!r} cannot be imported by a worker process: make it a function at the top level of a "
            "module that is not the main program (no lambda, no nested function, no partial)"
        )
    name = f"{module}:{qualname}" + (
        json.dumps(vars(function), default=_reward_setting) if has_settings else ""
    )
    if find_reward(name) != function:
        raise UserError(
            f"reward {name}: importing that name finds another object than the one given"
        )
    return name


def _reward_setting(value: Any) -> dict[str, str]:
    if not callable(value):
        raise UserError(
            f"a reward's setting is {value!r}: it must be a JSON value, a tuple of them, or another reward"
        )
    return {"reward": reward_name(value)}


@dataclass(frozen=True)
class Ticket:
    """What `submit` gives for `result`. `request` is the problem and the texts in JSON; `size` counts the texts."""

    request: bytes
    size: int
    verdicts: Future = field(default_factory=Future)


class Pool:
    """Worker processes that compute every reward of every text. A context manager; use `close` otherwise.

    rewards: by name; each must be importable by `reward_name`, in the workers too. workers: how many processes.
    deadline: seconds that one call may take, of a batched reward on all texts as of another on one: more texts would be
    no excuse for a hang; a worker's imports do not count. memory: bytes of address space that a worker may use; past them
    a reward gets a MemoryError.

    Raises UserError, before any reward is computed, if one of these is wrong.
    """

    def __init__(
        self, rewards: dict[str, Weighted], workers: int, deadline: float, memory: int = 8 * 2**30
    ):
        if not rewards:
            raise UserError("the reward pool has no reward to compute")
        if workers < 1:
            raise UserError(f"the reward pool needs at least 1 worker, got {workers}")
        if not 0 < deadline <= 1e6:
            raise UserError(
                f"a reward's deadline must be above 0 and at most 1,000,000 seconds, got {deadline}"
            )
        self._names, self._rewards = list(rewards), [reward.function for reward in rewards.values()]
        names = {name: reward_name(rewards[name].function) for name in rewards}
        setup = {"rewards": names, "memory": memory, "parent": os.getpid()}
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._stop, self._stopper = os.pipe()
        self._closed = False
        supply = Supply(json.dumps(setup).encode() + b"\n", self._stop)
        self._end = threading.Barrier(workers, supply.close)
        self._workers = [
            _Worker(supply, self._rewards, deadline, self._tickets, self._end)
            for _ in range(workers)
        ]
        try:
            for worker in self._workers:
                worker.thread.start()
            for worker in self._workers:
                worker.ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def batched(self) -> bool:
        """Whether a reward has to see all completions of a group at once."""
        return any(map(is_batched, self._rewards))

    def submit(self, problem: Problem, texts: Sequence[str]) -> Ticket:
        """Queue the rewards of a group of completions, without waiting. TypeError: problem.meta holds more than JSON can.

        A text that is no `Completion` will do for rewards that ask neither for its tokens nor whether it finished.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        ticket = Ticket(
            json.dumps([vars(problem), [_to_json(text) for text in texts]]).encode(), len(texts)
        )
        self._tickets.put(ticket)
        return ticket

    def result(self, ticket: Ticket) -> list[Verdicts]:
        """Wait for a ticket's verdicts: one dict a text, in the order of the texts.

        Raises UserError if a worker had to be replaced and the new one did not start, CancelledError after `close`.
        """
        found: list[Verdicts] = [{} for _ in range(ticket.size)]
        for (which, texts), values in zip(
            calls(self._rewards, ticket.size), ticket.verdicts.result(), strict=True
        ):
            for text, value in zip(texts, values, strict=True):
                found[text][self._names[which]] = (
                    value if isinstance(value, float) else Missing(value)
                )
        return found

    def cancel(self, ticket: Ticket) -> None:
        """Nobody will ask for this ticket's verdicts: they are not computed, unless a worker is already at it."""
        ticket.verdicts.cancel()

    def close(self) -> None:
        """Kill the workers, whatever they are doing, and cancel what is queued. May be called again."""
        if self._closed:
            return
        self._closed = True
        os.write(
            self._stopper, b"stop"
        )  # never read: from now on every wait of every thread finds it
        for _ in self._workers:
            self._tickets.put(None)
        threads = [worker.thread for worker in self._workers if worker.thread.ident]
        if len(threads) < len(self._workers):  # the system did not let all of them start
            self._end.abort()
        for thread in threads:
            thread.join()
        while not self._tickets.empty():
            if ticket := self._tickets.get():
                ticket.verdicts.cancel()
        os.close(self._stop)
        os.close(self._stopper)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _to_json(text: str) -> str | tuple[str, int, bool]:
    return (text, text.tokens, text.finished) if isinstance(text, Completion) else text


class _Worker:
    """A worker process, and the thread that feeds it, watches the clock, and has it replaced."""

    def __init__(
        self,
        supply: Supply,
        rewards: list,
        deadline: float,
        tickets: queue.SimpleQueue,
        end: threading.Barrier,
    ):
        self.ready: Future[None] = Future()
        self.thread = threading.Thread(target=self._run, name="reward worker", daemon=True)
        self._rewards, self._deadline, self._tickets = rewards, deadline, tickets
        self._supply, self._process, self._end = supply, Process(supply), end

    def _run(self) -> None:
        try:
            self._supply.load()
            self.ready.set_result(None)
            for ticket in iter(self._tickets.get, None):
                self._serve(ticket)
        except StoppedError:
            pass
        except Exception as error:
            self.ready.set_exception(error)
        finally:
            self._process.close()
            with contextlib.suppress(threading.BrokenBarrierError):
                self._end.wait()  # what one thread has started may serve the others

    def _serve(self, ticket: Ticket) -> None:
        if not ticket.verdicts.set_running_or_notify_cancel():
            return
        try:
            ticket.verdicts.set_result(self._judge(ticket))
        except StoppedError:
            ticket.verdicts.set_exception(CancelledError())
            raise
        except Exception as error:  # for whoever waits for the result; the next ticket gets a process in a known state
            self._process.close()
            ticket.verdicts.set_exception(error)

    def _judge(self, ticket: Ticket) -> list[list[float | str]]:
        """The verdicts of a ticket's calls. A lost process costs the call it was at; another goes on with the next."""
        todo, found = calls(self._rewards, ticket.size), list[list[float | str]]()
        while len(found) < len(todo):
            if not self._process.answers():
                self._process.start()
            try:
                self._process.line.send(
                    b"[%d, %b]\n" % (len(found), ticket.request), self._deadline
                )
                while len(found) < len(todo):
                    found.append(self._process.line.receive(self._deadline))
            except LostError as lost:
                self._process.kill()
                found.append([str(lost)] * len(todo[len(found)][1]))
        return found
