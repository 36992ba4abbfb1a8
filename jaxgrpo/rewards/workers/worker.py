"""The worker side: what runs in the fork server, the templates and the workers.

The drawing of these processes is at the head of `pool`. One program, `main`, is all three of them:
the fork server is started with it, a template is a fork of the fork server, and a worker is a fork
of a template. `process` starts them and `pool` watches the clock. jax is never imported here.

The fork server and the templates read requests on their socket to the trainer:

    request                                         reply
    {"rewards": {name: "module:qualname"},          null, or one line of text that says which reward
     "memory": bytes, "parent": process id}         is wrong; only the fork server reads this one
    one byte, with a socket attached                the id of the process that has the socket now:
                                                    a new child, or the process itself
    the id of a child that has been killed,         null, once the child has been waited for
    without the end of a line

A worker reads jobs on the socket that it was handed:

    job                                             reply
    [skip, [problem, texts]]                        [verdict, ...] for each call, when it is done;
                                                    a verdict is a number or the reason why there
                                                    is none

A job's calls are those of `list_calls`, without the first `skip`, which another worker has done. A
text is a string, or [text, tokens, finished]. Every reply is one line of JSON.
"""

import contextlib
import ctypes
import gc
import json
import math
import numbers
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, is_batched
from jaxgrpo.rewards.workers.reward_names import find_reward

_PR_SET_PDEATHSIG = 1
"""prctl's "send me this signal when my parent dies", from <linux/prctl.h>."""

_RECEIVE_BYTES = 1 << 16


# --- Calls and verdicts ---


class Call(NamedTuple):
    """One call of a reward.

    reward: index of the reward
    texts: indices of the texts that it is called on: one, or all of them for a batched reward
    """

    reward: int
    texts: list[int]


def list_calls(rewards: Sequence[Callable], num_texts: int) -> list[Call]:
    """Lists the calls that judge so many texts, in the order in which they are made.

    The trainer and the worker both make this list: a reply's place in it says what it is about.
    """
    batched = [index for index, reward in enumerate(rewards) if is_batched(reward)]
    single = [index for index, reward in enumerate(rewards) if not is_batched(reward)]
    calls = []
    # Text by text: the rewards of one text may share what they compute, in a cache.
    for text in range(num_texts):
        calls += [Call(index, [text]) for index in single]
    if num_texts:
        calls += [Call(index, list(range(num_texts))) for index in batched]
    return calls


def compute_verdicts(
    reward: Callable, problem: Problem, texts: list[str]
) -> list[float | str]:
    """Calls a reward and returns one verdict a text.

    A verdict is a finite float, or the reason why there is none: the name of the exception that the
    reward raised, "not a number", "not finite" or "wrong number of results".
    """
    try:
        result = (
            reward(problem, texts) if is_batched(reward) else [reward(problem, *texts)]
        )
        values = list(result)
        if len(values) != len(texts):
            return ["wrong number of results"] * len(texts)
        return [_to_verdict(value) for value in values]
    except BaseException as error:
        # SystemExit and MemoryError too: the reward has no verdict, and the worker goes on.
        _print_first_error(reward, error)
        return [type(error).__name__] * len(texts)


def _to_verdict(value: object) -> float | str:
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if not isinstance(value, numbers.Real):
        return "not a number"
    return float(value) if math.isfinite(value) else "not finite"


_printed_errors: set[tuple[int, type[BaseException]]] = set()


def _print_first_error(reward: Callable, error: BaseException) -> None:
    """Prints the traceback of a reward's first error of each type.

    The pool only counts the errors' names, and the reward's author needs more to repair it.
    """
    # By id: a reward that is an instance of a dataclass that is not frozen has no hash.
    key = (id(reward), type(error))
    if key not in _printed_errors:
        _printed_errors.add(key)
        traceback.print_exception(error)


# --- The program ---


def main() -> None:
    """Runs the fork server, and in its forks the templates and the workers.

    Ends when the trainer closes the socket or dies.
    """
    # 1. The fork server reads what it has to import, from the trainer.
    control = _take_over_stdin()
    setup = json.loads(_receive_line(control))
    _die_with_parent(setup["parent"])
    # 2. It imports the rewards, and says whether that went well.
    try:
        rewards = [find_reward(name) for name in setup["rewards"].values()]
    except UserError as error:
        _write_line(control.fileno(), str(error))
        return
    _write_line(control.fileno(), None)
    _warm_up()
    # 3. It forks templates, which fork workers. Only a worker comes out of this statement.
    if is_fork_safe({0, 1, 2, control.fileno()}):
        job_socket = _fork_templates_and_workers(control)
    else:
        job_socket = _become_worker(control)
    # 4. The worker answers jobs until it is killed.
    control.close()
    _limit_memory(setup["memory"])
    _answer_jobs(job_socket, rewards)


def _fork_templates_and_workers(control: socket.socket) -> int:
    """Serves requests for forks, in the fork server and in every template.

    Returns in the workers only: the file descriptor of the socket that the worker gets jobs on.
    """
    template_fd = _serve_forks(
        control
    )  # the fork server stays in here, a template goes on
    with socket.socket(fileno=template_fd) as template_socket:
        template_socket.setblocking(
            True
        )  # an imported module may have set another default
        return _serve_forks(
            template_socket
        )  # a template stays in here, a worker goes on


def _become_worker(control: socket.socket) -> int:
    """Makes this process a worker itself, where a fork of it would not be safe.

    Returns the file descriptor of the socket that it gets jobs on.
    """
    _, job_socket = _receive_request(control)
    assert (
        job_socket is not None
    )  # a process without children is asked for nothing else
    _write_line(control.fileno(), os.getpid())
    return job_socket


def _serve_forks(control: socket.socket) -> int:
    """Forks a child for every socket that the trainer sends, and waits for children when told to.

    Returns in the children only: the file descriptor of the child's socket.
    """
    parent = os.getpid()
    # What is buffered here would be printed again by every child.
    sys.stdout.flush()
    sys.stderr.flush()
    # A garbage collection writes to every object, and so would copy the pages that forks share.
    gc.freeze()
    while True:
        message, child_socket = _receive_request(control)
        if child_socket is None:
            # The id of a child that the trainer has killed. Until it is waited for it stays a
            # zombie and its id is not given to another process. ChildProcessError: it is a child of
            # a fork server that has been replaced, or an imported module has SIGCHLD ignored.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(message), 0)
            _write_line(control.fileno(), None)
            continue
        child = os.fork()
        if not child:
            # A session of its own: a process group that can be killed as a whole, and on Linux a
            # share of the cores of its own, for it shares them out among sessions.
            os.setsid()
            _die_with_parent(parent)
            # The child replies: the trainer learns its id once its group exists and can be killed.
            _write_line(control.fileno(), os.getpid())
            return child_socket
        os.close(child_socket)


def _answer_jobs(job_socket: int, rewards: Sequence[Callable]) -> None:
    """Computes the verdicts of every job that arrives, and writes a line for each call."""
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_jobs, args=(job_socket, jobs), daemon=True)
    reader.start()
    while True:
        skip, (problem_fields, texts) = json.loads(jobs.get())
        problem = Problem(**problem_fields)
        completions = [
            Completion(*text) if isinstance(text, list) else text for text in texts
        ]
        for call in list_calls(rewards, len(texts))[skip:]:
            call_texts = [completions[text] for text in call.texts]
            _write_line(
                job_socket, compute_verdicts(rewards[call.reward], problem, call_texts)
            )


def _read_jobs(job_socket: int, jobs: "queue.SimpleQueue[bytes]") -> None:
    """Queues the jobs that the trainer writes.

    Ends the process when the trainer is gone, in the middle of a call if need be: that is why a
    thread reads.
    """
    with os.fdopen(job_socket, "rb") as stream:
        for job in stream:
            jobs.put(job)
    os._exit(0)


def _warm_up() -> None:
    """Loads what the rewards need at their first call.

    It happens once, before any fork, so that it costs neither a deadline nor a replacement's time.
    """
    for name, module in sorted(sys.modules.items()):
        if name.startswith("jaxgrpo.rewards.") and hasattr(module, "warm_up"):
            module.warm_up()


# --- May this process be forked? ---


def is_fork_safe(known_files: set[int]) -> bool:
    """Returns True if a fork of this process is as good as a fresh process.

    It is if the process has one thread, no child, no open file besides `known_files`, and no memory
    that other processes can write to. A fork would have the locks that other threads hold, without
    the threads that release them. It would share connections with the process that it replaces, and
    go on in the middle of what that one was saying to a server.

    Returns False where the system cannot tell: everywhere but on Linux.
    """
    if sys.platform != "linux":
        return False
    try:
        files = {int(name) for name in os.listdir("/proc/self/fd")}
        num_threads = len(os.listdir("/proc/self/task"))
        with open("/proc/self/maps") as maps:
            # The second column holds permissions, such as "rw-s": writable and shared.
            has_shared_memory = any({"w", "s"} <= set(line.split()[1]) for line in maps)
    except OSError:
        return False
    if num_threads != 1 or has_shared_memory or _has_child():
        return False
    # listdir's own descriptor is among the files, and closed by now.
    return not any(map(_is_open, files - known_files))


def _has_child() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


# --- Sockets and limits ---


def _take_over_stdin() -> socket.socket:
    """Returns the socket to the trainer, which was stdin, on another file descriptor.

    A reward that reads stdin meets /dev/null, where it would disturb the socket. What it prints to
    stdout goes to stderr, where the user sees it.
    """
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return control


def _receive_line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _exit_if_closed(control.recv(_RECEIVE_BYTES))
    return line


def _receive_request(control: socket.socket) -> tuple[bytes, int | None]:
    """Returns the trainer's message, and the file descriptor attached to it, if there is one."""
    message, descriptors, _, _ = socket.recv_fds(control, 16, 1)
    for descriptor in descriptors:
        # A program that a reward starts must not hold the socket open.
        os.set_inheritable(descriptor, False)
    return _exit_if_closed(message), descriptors[0] if descriptors else None


def _exit_if_closed(received: bytes) -> bytes:
    """Returns what was received, or ends the process if that is nothing: the trainer is gone."""
    return received or os._exit(0)


def _write_line(descriptor: int, reply: list[float | str] | int | str | None) -> None:
    os.write(descriptor, json.dumps(reply).encode() + b"\n")


def _die_with_parent(parent: int) -> None:
    """Has Linux kill this process when its parent dies.

    Elsewhere a worker's `_read_jobs` ends it, unless a reward holds the GIL.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl was called
        os._exit(0)


def _limit_memory(max_bytes: int) -> None:
    """Limits the address space, so that an allocation past `max_bytes` raises a MemoryError.

    Not every system lets a process do so.
    """
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft_limit = max_bytes
    if hard_limit != resource.RLIM_INFINITY:
        soft_limit = min(max_bytes, hard_limit)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (soft_limit, hard_limit))
