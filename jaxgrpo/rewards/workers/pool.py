r"""A pool of worker processes that compute rewards, with a deadline for every call.

A reward is somebody's code run on a model's text. It may hang, hold the GIL, crash, print or eat
memory. So it runs in a process that can be killed from outside. An alarm inside the process would
not do: it works in the main thread only, and not while C code runs.

The processes, on Linux. An arrow from A to B: A has forked B, or started it.

    trainer                  Pool: a queue of tickets, and a supervisor thread for each worker
       |
       | starts
       v
    fork server              imports the rewards, once; never runs one
       |         \
       | forks    \ forks
       v           v
    template 1  template 2   one for each supervisor; never runs a reward
       |           |
       | forks     | forks
       v           v
    worker 1    worker 2     runs the rewards; is killed, and replaced by another fork

The trainer talks to every one of these processes directly, over a socketpair of its own.

Fork-unsafe rewards. Elsewhere than on Linux, and where a module that a reward imports makes forks
unsafe, with threads for example (`worker.is_fork_safe`), there are no templates: the fork server
becomes the worker itself, and each worker, and each replacement, is a fresh process with imports of
its own.

The files. This one holds the trainer's queue and its threads. `process` starts and kills the
processes, `channel` is the trainer's end of a socketpair, `worker` is what runs in the processes,
and `reward_names` tells them what to import.

The life of one job:

1. `Pool.submit` writes a problem and its completions as JSON, and puts them on the queue in a
   `Ticket`, with a future for the verdicts.
2. A supervisor thread takes the ticket, unless it has been cancelled (`_Supervisor._serve`).
3. If its worker is not running, it starts one: fork server, template and worker, as far as they are
   missing (`WorkerProcess.start`, and on the other side `worker.main`).
4. It sends the job, `[skip, [problem, texts]]`: skip is 0, or the number of calls that are done.
5. The worker makes the calls of `worker.list_calls` that are left, one after the other: every
   reward of the first text, of the second, ..., then every batched reward on all texts. It writes a
   line with the verdicts after each call (`worker._answer_jobs`).
6. The supervisor waits for each line, for `deadline` seconds at most, and collects the verdicts
   (`_Supervisor._compute_verdicts`).
7. If a line does not come in time ("timeout"), or if the worker dies or writes something else
   ("crash"), the supervisor kills the worker. The verdicts of the call that it was at are missing,
   for that reason. Steps 3 to 6 are repeated for the calls that are left.
8. When all calls are done, the verdicts are the result of the ticket's future. `Pool.result`
   returns them by text and by name of the reward, with `Missing` where there is none.

A reward that raises an exception costs its own verdict and no process. A worker that dies between
two jobs costs nothing: step 3 replaces it. If no worker can be started, the ticket's future gets
the UserError, and the supervisor goes on to the next ticket.

Who ends whom:

- A supervisor kills its worker's process group, so what a reward has started dies with it, unless
  that left the group. The template then waits for the dead worker. If it does not, the reward has
  stopped or killed it, and it is replaced, too.
- `Pool.close` makes all supervisors stop at once, whatever they wait for. Each kills its worker and
  its template; the last of them kills the fork server. Tickets that are left are cancelled.
- If the trainer dies, Linux kills the fork server, and with it templates and workers, each when its
  parent dies. Elsewhere each process ends when its socket to the trainer is closed.
"""

import contextlib
import json
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

from jaxgrpo.errors import UserError
from jaxgrpo.problems import (
    BatchedReward,
    Completion,
    Problem,
    Reward,
    Weighted,
    is_batched,
)
from jaxgrpo.rewards.workers.channel import PoolClosedError, ProcessLostError
from jaxgrpo.rewards.workers.process import ForkServer, WorkerProcess
from jaxgrpo.rewards.workers.reward_names import reward_name
from jaxgrpo.rewards.workers.worker import list_calls

_MAX_DEADLINE = 1e6
"""Seconds. poll(2) takes milliseconds in 32 bits, which end at about twice as many."""


@dataclass(frozen=True)
class Missing:
    """A verdict that could not be had.

    It is not a number, so that nobody takes it for 0: leave it out, and count it.

    reason: "timeout", "crash", "not finite", "not a number", the name of the exception that the
      reward raised, or, for a batched reward, "wrong number of results"
    """

    reason: str


Verdicts = dict[str, float | Missing]
"""The verdicts of one text, by the reward's name."""

CallVerdicts = list[float | str]
"""The verdicts of one call, one a text; a string is the reason of a missing one."""


@dataclass(frozen=True)
class Ticket:
    """A submitted job, for which `Pool.result` returns the verdicts.

    job: the problem and the texts, in JSON
    num_texts: how many texts there are
    verdicts: the verdicts of each call of `worker.list_calls`, a list of CallVerdicts
    """

    job: bytes
    num_texts: int
    verdicts: Future = field(default_factory=Future)


class Pool:
    """Worker processes that compute every reward of every text.

    It is a context manager; use `close` otherwise. It raises UserError, before any reward is
    computed, if one of the arguments is wrong.

    rewards: by name; each must be importable by `reward_name`, in the workers too
    workers: how many processes
    deadline: seconds that one call may take; the same for a batched reward, which is called on all
      texts at once: it is not raised for more texts; a worker's imports do not count
    memory: bytes of address space that a worker may use; past them a reward gets a MemoryError
    """

    def __init__(
        self,
        rewards: Mapping[str, Weighted],
        workers: int,
        deadline: float,
        memory: int = 8 * 2**30,
    ):
        _check_settings(rewards, workers, deadline)
        self._names = list(rewards)
        self._rewards = [reward.function for reward in rewards.values()]
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._closed = False
        setup = {
            "rewards": {name: reward_name(rewards[name].function) for name in rewards},
            "memory": memory,
            "parent": os.getpid(),
        }
        # A pipe that is written to once, by `close`, and never read: from then on every wait of
        # every thread finds it readable.
        self._stop_fd, self._stop_writer = os.pipe()
        fork_server = ForkServer(json.dumps(setup).encode() + b"\n", self._stop_fd)
        # No supervisor may end while another one is at work: see ForkServer. The last one to come
        # to the barrier closes the fork server, and then all of them end.
        self._all_done = threading.Barrier(workers, action=fork_server.close)
        self._supervisors = [
            _Supervisor(
                fork_server, self._rewards, deadline, self._tickets, self._all_done
            )
            for _ in range(workers)
        ]
        try:
            for supervisor in self._supervisors:
                supervisor.thread.start()
            for supervisor in self._supervisors:
                supervisor.imported.result()
        except BaseException:
            self.close()
            raise

    @property
    def batched(self) -> bool:
        """True if a reward has to see all completions of a group at once."""
        return any(map(is_batched, self._rewards))

    def submit(self, problem: Problem, texts: Sequence[str]) -> Ticket:
        """Queues the rewards of a group of completions, without waiting.

        texts: `Completion`s; other strings will do for rewards that ask neither for the number of
          tokens nor whether the text finished

        Raises TypeError if problem.meta holds more than JSON can.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        job = json.dumps([vars(problem), [_encode_text(text) for text in texts]])
        ticket = Ticket(job.encode(), len(texts))
        self._tickets.put(ticket)
        return ticket

    def result(self, ticket: Ticket) -> list[Verdicts]:
        """Waits for a ticket's verdicts and returns one dict a text, in the order of the texts.

        Raises UserError if a worker had to be replaced and the new one did not start, and
        CancelledError after `close`.
        """
        calls = list_calls(self._rewards, ticket.num_texts)
        verdicts: list[Verdicts] = [{} for _ in range(ticket.num_texts)]
        for call, call_verdicts in zip(calls, ticket.verdicts.result(), strict=True):
            name = self._names[call.reward]
            for text, verdict in zip(call.texts, call_verdicts, strict=True):
                verdicts[text][name] = (
                    verdict if isinstance(verdict, float) else Missing(verdict)
                )
        return verdicts

    def cancel(self, ticket: Ticket) -> None:
        """Gives up a ticket: nothing is computed for it, unless a worker is already at it."""
        ticket.verdicts.cancel()

    def close(self) -> None:
        """Kills the workers, whatever they are doing, and cancels the queued tickets.

        It may be called again.
        """
        if self._closed:
            return
        self._closed = True
        # 1. Wake every supervisor, whether it waits for a process or for a ticket.
        os.write(self._stop_writer, b"stop")
        for _ in self._supervisors:
            self._tickets.put(None)
        # 2. Wait until they have ended, and their processes with them.
        threads = [supervisor.thread for supervisor in self._supervisors]
        started_threads = [thread for thread in threads if thread.ident]
        if len(started_threads) < len(threads):
            # The system did not let all of them start, so the barrier would wait for ever.
            self._all_done.abort()
        for thread in started_threads:
            thread.join()
        # 3. Cancel the tickets that nobody took.
        while not self._tickets.empty():
            if ticket := self._tickets.get():
                ticket.verdicts.cancel()
        os.close(self._stop_fd)
        os.close(self._stop_writer)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_settings(
    rewards: Mapping[str, Weighted], workers: int, deadline: float
) -> None:
    if not rewards:
        raise UserError("the reward pool has no reward to compute")
    if workers < 1:
        raise UserError(f"the reward pool needs at least 1 worker, got {workers}")
    if not 0 < deadline <= _MAX_DEADLINE:
        raise UserError(
            f"a reward's deadline must be above 0 and at most 1,000,000 seconds, got {deadline}"
        )


def _encode_text(text: str) -> str | tuple[str, int, bool]:
    """Returns a text as a job holds it."""
    return (text, text.tokens, text.finished) if isinstance(text, Completion) else text


class _Supervisor:
    """A thread that owns one worker process: feeds it, watches the clock, and has it replaced.

    fork_server: shared by all supervisors
    rewards: in the order in which the workers have them
    deadline: seconds that one call may take
    tickets: the pool's queue; None ends the thread
    all_done: where the thread waits, at its end, for the others
    """

    def __init__(
        self,
        fork_server: ForkServer,
        rewards: Sequence[Reward | BatchedReward],
        deadline: float,
        tickets: queue.SimpleQueue,
        all_done: threading.Barrier,
    ):
        self.imported: Future[None] = Future()
        """Done when the rewards have been imported, or with the error that this gave."""
        self.thread = threading.Thread(
            target=self._run, name="reward worker", daemon=True
        )
        self._fork_server = fork_server
        self._worker = WorkerProcess(fork_server)
        self._rewards = rewards
        self._deadline = deadline
        self._tickets = tickets
        self._all_done = all_done

    def _run(self) -> None:
        try:
            self._fork_server.start()
            self.imported.set_result(None)
            for ticket in iter(self._tickets.get, None):
                self._serve(ticket)
        except PoolClosedError:
            pass
        except Exception as error:
            self.imported.set_exception(error)
        finally:
            self._worker.close()
            # Broken if not all threads were started: see `Pool.close`.
            with contextlib.suppress(threading.BrokenBarrierError):
                self._all_done.wait()

    def _serve(self, ticket: Ticket) -> None:
        """Computes a ticket's verdicts and hands them, or an error, to whoever waits for them."""
        # Was it cancelled while it was queued? If not, it cannot be from here on.
        if not ticket.verdicts.set_running_or_notify_cancel():
            return
        try:
            ticket.verdicts.set_result(self._compute_verdicts(ticket))
        except PoolClosedError:
            ticket.verdicts.set_exception(CancelledError())
            raise
        except Exception as error:
            # The next ticket gets new processes: these are in a state that nobody knows.
            self._worker.close()
            ticket.verdicts.set_exception(error)

    def _compute_verdicts(self, ticket: Ticket) -> list[CallVerdicts]:
        """Returns the verdicts of each of a ticket's calls.

        A process that is lost costs the call that it was at. Another one goes on with the next.
        """
        calls = list_calls(self._rewards, ticket.num_texts)
        verdicts: list[CallVerdicts] = []  # one a call that is done
        while len(verdicts) < len(calls):
            if not self._worker.is_running():
                self._worker.start()
            channel = self._worker.channel
            try:
                channel.send(
                    b"[%d, %b]\n" % (len(verdicts), ticket.job), self._deadline
                )
                while len(verdicts) < len(calls):
                    verdicts.append(channel.receive(self._deadline))
            except ProcessLostError as lost:
                self._worker.kill()
                reason = str(lost)
                lost_call = calls[len(verdicts)]
                verdicts.append([reason] * len(lost_call.texts))
        return verdicts
