"""A reward worker's process: JSON lines in, a JSON line out for every call. `process` starts it, `pool` watches the clock.

On its stdin, a socket:

in   {"rewards": {name: "module:qualname"}, "memory": bytes, "parent": process id}     see find_reward
out  null, or one line of text: which reward is wrong
in   a socket
out  the id of the process that has it: a child's, or its own, which then answers on it
in   a child's id                                               when it has been killed; without the end of a line
out  null                                                       it is no more

A child of the first process is a template: on its socket it is asked for children in the same way. Theirs are to answer on.

There:

in   [skip, [problem, texts]]                                   a job: all its `calls` but the first so many; a text is
                                                                a string, or [text, tokens, finished]
out  [verdict, ...], each a number or why there is none         one a call, as soon as they are known
"""

import contextlib
import ctypes
import gc
import importlib
import json
import math
import numbers
import operator
import os
import queue
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Completion, Problem, is_batched

_SEND_WHEN_PARENT_DIES = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def find_reward(name: str) -> Callable:
    """The reward called "module:qualname", or the one of a class and its settings, 'module:qualname{"tolerance": 0.01}'.

    Raises UserError if there is no such thing. Settings are JSON, of which nothing is executed: lists become tuples, for
    settings have no lists, and {"reward": name} is the reward of that name, for a reward may be made of others.
    """
    path, brace, settings = name.partition("{")
    module, _, qualname = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except BaseException as error:  # importing somebody's module can raise anything, SystemExit too
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"reward {name}: importing {module} failed with {reason}") from error
    try:
        found = operator.attrgetter(qualname)(imported)
    except AttributeError:
        raise UserError(f"reward {name}: {module} has no {qualname} at its top level") from None
    if brace:
        values = json.loads(brace + settings)
        try:
            found = found(**{field: _setting(value) for field, value in values.items()})
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"reward {name} cannot be made from its settings: {reason}") from error
    if not callable(found):
        raise UserError(
            f"reward {name} is a {type(found).__name__}, not a function of (problem, text)"
        )
    return found


def _setting(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_setting, value))
    return (
        find_reward(value["reward"])
        if isinstance(value, dict) and value.keys() == {"reward"}
        else value
    )


def calls(rewards: Sequence[Callable], texts: int) -> list[tuple[int, list[int]]]:
    """What has to be called to judge so many texts: (which reward, on which texts).

    Text by text, for a text's rewards may share what they find out; then the batched rewards, each on all texts.
    """
    alone = [which for which, reward in enumerate(rewards) if not is_batched(reward)]
    at_once = [which for which, reward in enumerate(rewards) if is_batched(reward)]
    singly = [(which, [text]) for text in range(texts) for which in alone]
    return singly + [(which, list(range(texts))) for which in at_once if texts]


def verdicts(reward: Callable, problem: Problem, texts: list[str]) -> list[float | str]:
    """What one call gives for its texts: finite floats, or why there is none: an exception's name, "not a number",
    "not finite", "wrong number of results"."""
    try:
        values = list(reward(problem, texts)) if is_batched(reward) else [reward(problem, *texts)]
        if len(values) != len(texts):
            return ["wrong number of results"] * len(texts)
        return [_finite(value) for value in values]
    except (
        BaseException
    ) as error:  # SystemExit and MemoryError are verdicts that could not be had, like any other
        _explain_once(reward, error)
        return [type(error).__name__] * len(texts)


def _finite(value: Any) -> float | str:
    value = value.item() if hasattr(value, "item") else value  # NumPy's scalars
    if not isinstance(value, numbers.Real):
        return "not a number"
    return float(value) if math.isfinite(value) else "not finite"


_explained: set[tuple[int, type[BaseException]]] = set()


def _explain_once(reward: Callable, error: BaseException) -> None:
    """Print a reward's first error of a kind: the pool only counts their names, and somebody has to mend the reward."""
    kind = (id(reward), type(error))  # a dataclass that is not frozen has no hash
    if kind not in _explained:
        _explained.add(kind)
        traceback.print_exception(error)


def main() -> None:
    """Import the rewards; then fork those who answer, or answer. Until the parent closes the socket, or dies."""
    control = _take_stdin()
    setup = json.loads(_first_line(control))
    _die_with(setup["parent"])
    try:
        rewards = [find_reward(name) for name in setup["rewards"].values()]
    except UserError as error:
        _report(control.fileno(), str(error))
        return
    _report(control.fileno(), None)
    _warm_up()
    line = (
        _of_a_template(control) if may_fork({0, 1, 2, control.fileno()}) else _serve_alone(control)
    )
    control.close()
    _limit_memory(setup["memory"])
    _answer(line, rewards)


def _of_a_template(control: socket.socket) -> int:
    """Fork templates, and children of them, in which alone this comes back, with the socket to answer on."""
    template = _fork_children(control)
    with socket.socket(fileno=template) as own:
        own.setblocking(True)  # whatever default a module has set
        return _fork_children(own)


def _serve_alone(control: socket.socket) -> int:
    """The socket to answer on, in this process."""
    _, line = _accept(control)
    assert line is not None  # nothing else is said to a process without children
    _report(control.fileno(), os.getpid())
    return line


def _answer(line: int, rewards: list[Callable]) -> None:
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(line, jobs), daemon=True).start()
    while True:
        skip, (problem, texts) = json.loads(jobs.get())
        problem = Problem(**problem)
        completions = [Completion(*text) if isinstance(text, list) else text for text in texts]
        for which, on in calls(rewards, len(texts))[skip:]:
            _report(line, verdicts(rewards[which], problem, [completions[text] for text in on]))


def _warm_up() -> None:
    """Load what these rewards need when they are first called: no deadline, and no replacement, is to pay for it."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("jaxgrpo.rewards.") and hasattr(module, "warm_up"):
            module.warm_up()


def may_fork(files: set[int]) -> bool:
    """Whether a fork of this process is as good as a fresh one: it has one thread, no child, no open file besides `files`,
    and no memory that others can write. A fork would have the threads' locks without the threads, and would go on in the
    middle of what a killed one was saying to a server. False where the system does not tell."""
    if sys.platform != "linux":
        return False
    try:
        opened = {int(name) for name in os.listdir("/proc/self/fd")}
        threads = len(os.listdir("/proc/self/task"))
        with open("/proc/self/maps") as maps:
            shared = any({"w", "s"} <= set(line.split()[1]) for line in maps)
    except OSError:
        return False
    return threads == 1 and not (shared or _has_child() or any(map(_is_open, opened - files)))


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


def _fork_children(control: socket.socket) -> int:
    """Fork a child whenever the parent asks for one. Comes back in the children alone, with the socket handed over."""
    parent = os.getpid()
    sys.stdout.flush()  # or every child would print it again
    sys.stderr.flush()
    gc.freeze()  # a collection would write to the pages that are shared
    while True:
        what, line = _accept(control)
        if line is None:
            with contextlib.suppress(
                ChildProcessError
            ):  # another process's, or a module has SIGCHLD ignored
                os.waitpid(int(what), 0)
            _report(control.fileno(), None)
            continue
        child = os.fork()
        if not child:
            os.setsid()  # a process group to kill as a whole; and Linux shares out the cores among sessions
            _die_with(parent)
            _report(control.fileno(), os.getpid())
            return line
        os.close(line)


def _take_stdin() -> socket.socket:
    """The socket to the parent, on a descriptor of its own: a reward that prints or reads must not meet it."""
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return control


def _first_line(control: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _heard(control.recv(1 << 16))
    return line


def _heard(something: bytes) -> bytes:
    """End this process if there is nothing: the parent is gone."""
    return something or os._exit(0)


def _accept(control: socket.socket) -> tuple[bytes, int | None]:
    """What the parent says, and the descriptor of the socket that it hands over, if it does."""
    what, lines, _, _ = socket.recv_fds(control, 16, 1)
    for line in lines:
        os.set_inheritable(line, False)
    return _heard(what), lines[0] if lines else None


def _die_with(parent: int) -> None:
    """Let Linux kill this process when its parent dies. Elsewhere `_read` does, unless a reward holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SEND_WHEN_PARENT_DIES, signal.SIGKILL)
    if os.getppid() != parent:  # it was too early
        os._exit(0)


def _read(line: int, jobs: queue.SimpleQueue) -> None:
    """Queue what the parent writes, and end the process when it has gone, in the middle of a verdict if need be."""
    with os.fdopen(line, "rb") as stream:
        for job in stream:
            jobs.put(job)
    os._exit(0)


def _limit_memory(limit: int) -> None:
    """Make an allocation past `limit` bytes of address space a MemoryError. Not every system lets a process do so."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard),
        )


def _report(line: int, what: list[float | str] | int | str | None) -> None:
    os.write(line, json.dumps(what).encode() + b"\n")
