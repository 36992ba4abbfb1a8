"""Rewards in worker processes, with a deadline for every call that is enforced from outside.

A reward is somebody's code run on a model's text: it may hang, hold the GIL, crash, print, eat memory. So it runs in a
process that can be killed, and never by an alarm inside it, which works in the main thread only and not in C code.

Workers are started afresh and spoken to in JSON lines. A fork would inherit the hold on the accelerator;
`multiprocessing` would import the parent's main program, and jax with it, and unpickle what the other side sends.
"""

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.problems import BatchedReward, Completion, Problem, Reward, Weighted, is_batched
from jaxgrpo.rewards.worker import calls, find_reward

_START_SECONDS = 120.0
# The path is set before anything is imported, so that the worker finds each module where the parent found it.
_START = "import sys; sys.path[:] = sys.argv[1:]; from jaxgrpo.rewards.worker import main; main()"


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
    name = f"{module}:{qualname}" + (json.dumps(vars(function), default=_reward_setting) if has_settings else "")
    if find_reward(name) != function:
        raise UserError(f"reward {name}: importing that name finds another object than the one given")
    return name


def _reward_setting(value: Any) -> dict[str, str]:
    if not callable(value):
        raise UserError(f"a reward's setting is {value!r}: it must be a JSON value, a tuple of them, or another reward")
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

    def __init__(self, rewards: dict[str, Weighted], workers: int, deadline: float, memory: int = 8 * 2**30):
        if not rewards:
            raise UserError("the reward pool has no reward to compute")
        if workers < 1:
            raise UserError(f"the reward pool needs at least 1 worker, got {workers}")
        if not 0 < deadline <= 1e6:
            raise UserError(f"a reward's deadline must be above 0 and at most 1,000,000 seconds, got {deadline}")
        self._names, self._rewards = list(rewards), [reward.function for reward in rewards.values()]
        setup = {"rewards": {name: reward_name(rewards[name].function) for name in rewards}, "memory": memory}
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._stop, self._stopper = os.pipe()
        self._closed = False
        line = json.dumps(setup).encode() + b"\n"
        self._workers = [_Worker(line, self._rewards, deadline, self._tickets, self._stop) for _ in range(workers)]
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
        ticket = Ticket(json.dumps([vars(problem), [_to_json(text) for text in texts]]).encode(), len(texts))
        self._tickets.put(ticket)
        return ticket

    def result(self, ticket: Ticket) -> list[Verdicts]:
        """Wait for a ticket's verdicts: one dict a text, in the order of the texts.

        Raises UserError if a worker had to be replaced and the new one did not start, CancelledError after `close`.
        """
        found: list[Verdicts] = [{} for _ in range(ticket.size)]
        for (which, texts), values in zip(calls(self._rewards, ticket.size), ticket.verdicts.result(), strict=True):
            for text, value in zip(texts, values, strict=True):
                found[text][self._names[which]] = value if isinstance(value, float) else Missing(value)
        return found

    def cancel(self, ticket: Ticket) -> None:
        """Nobody will ask for this ticket's verdicts: they are not computed, unless a worker is already at it."""
        ticket.verdicts.cancel()

    def close(self) -> None:
        """Kill the workers, whatever they are doing, and cancel what is queued. May be called again."""
        if self._closed:
            return
        self._closed = True
        os.write(self._stopper, b"stop")  # never read: from now on every wait of every thread finds it
        for _ in self._workers:
            self._tickets.put(None)
        for worker in self._workers:
            if worker.thread.ident:
                worker.thread.join()
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


class _LostError(Exception):
    """The process died ("crash") or was too slow ("timeout")."""


class _StoppedError(Exception):
    """The pool is being closed."""


class _Worker:
    """A worker process, and the thread that feeds it, watches the clock, and replaces it.

    The thread starts the process, and lives as long: Linux takes the starting thread's end for the parent's death.
    """

    def __init__(self, setup: bytes, rewards: list, deadline: float, tickets: queue.SimpleQueue, stop: int):
        self.ready: Future[None] = Future()
        self.thread = threading.Thread(target=self._run, name="reward worker", daemon=True)
        self._setup, self._rewards, self._deadline, self._tickets, self._stop = setup, rewards, deadline, tickets, stop
        self._command = [sys.executable, "-c", _START, *map(os.path.abspath, sys.path)]
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self) -> None:
        try:
            self._start_process()
            self.ready.set_result(None)
            for ticket in iter(self._tickets.get, None):
                self._serve(ticket)
        except _StoppedError:
            pass
        except Exception as error:
            self.ready.set_exception(error)
        finally:
            self._kill()

    def _serve(self, ticket: Ticket) -> None:
        if not ticket.verdicts.set_running_or_notify_cancel():
            return
        try:
            ticket.verdicts.set_result(self._judge(ticket))
        except _StoppedError:
            ticket.verdicts.set_exception(CancelledError())
            raise
        except Exception as error:  # for whoever waits for the result; the next ticket gets a process in a known state
            self._kill()
            ticket.verdicts.set_exception(error)

    def _judge(self, ticket: Ticket) -> list[list[float | str]]:
        """The verdicts of a ticket's calls. A lost process costs the call it was at; another goes on with the next."""
        todo, found = calls(self._rewards, ticket.size), list[list[float | str]]()
        while len(found) < len(todo):
            if self._process is None or self._process.poll() is not None:
                self._start_process()
            try:
                self._send(b"[%d, %b]\n" % (len(found), ticket.request), self._deadline)
                while len(found) < len(todo):
                    found.append(self._receive(self._deadline))
            except _LostError as lost:
                self._kill()
                found.append([str(lost)] * len(todo[len(found)][1]))
        return found

    def _start_process(self) -> None:
        """Start a process and wait until it has imported the rewards. Raises UserError if it cannot."""
        self._kill()
        self._heard = b""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a process group to kill as a whole; and Ctrl-C is for the parent to handle
            env={**os.environ, "JAX_PLATFORMS": "cpu"},  # whatever a reward imports, the accelerator is the trainer's
        )
        assert self._process.stdin is not None  # both are pipes, as asked for
        assert self._process.stdout is not None
        self._requests, self._reports = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        try:
            self._send(self._setup, _START_SECONDS)
            problem = self._receive(_START_SECONDS)
        except _LostError as lost:
            problem = f"a worker process did not get through importing the rewards ({lost}); see what it printed above"
        if problem:
            self._kill()
            raise UserError(problem)

    def _send(self, line: bytes, seconds: float) -> None:
        until = time.monotonic() + seconds
        while line:
            self._wait(self._requests, select.POLLOUT, until)
            try:
                line = line[os.write(self._requests, line) :]
            except BrokenPipeError:
                raise _LostError("crash") from None

    def _receive(self, seconds: float) -> Any:
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            self._wait(self._reports, select.POLLIN, until)
            heard = os.read(self._reports, 1 << 16)
            if not heard:
                raise _LostError("crash")
            self._heard += heard
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:  # a reward wrote to descriptors it does not own
            raise _LostError("crash") from None

    def _wait(self, stream: int, event: int, until: float) -> None:
        """Return when the stream is ready. What is ready by now is never late, however long this thread was held up."""
        poll = select.poll()
        poll.register(stream, event)
        poll.register(self._stop, select.POLLIN)
        ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
        if self._stop in ready:
            raise _StoppedError
        if not ready:
            raise _LostError("timeout")

    def _kill(self) -> None:
        """Kill the process and whatever it started, and wait until it is gone."""
        if self._process is None:
            return
        with self._process, contextlib.suppress(ProcessLookupError, PermissionError):  # closes its pipes and waits for it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None
