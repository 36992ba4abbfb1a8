"""Processes that answer in JSON lines, as their parent sees them: killed at any moment, and replaced in milliseconds.

    parent -> process that imports -> template of each worker -> child, which answers

What imports is started afresh: a fork of the parent would inherit the hold on the accelerator; `multiprocessing` would import
the parent's main program, and jax with it, and unpickle what the other side sends. But a fresh process takes a second to
import what rewards need. So one imports, for all workers, and forks. A child that is killed is replaced by another fork. A
reward that kills its child's parent, too, has met a template: that of the other workers is another.

Where a fork would not be as good as a fresh process (`worker.may_fork`), every worker has one of its own, which answers
itself, and what replaces it is fresh.

Whoever answers does so on a socket of its own: what somebody killed has left behind is never read. A dead child stays a
zombie until the parent has it buried, so that whom the parent kills is never another process of the same id.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from jaxgrpo.errors import UserError

_START_SECONDS = 120.0
_BURY_SECONDS = 20.0
"""A template that takes longer to see that its child is dead has been stopped, by a reward: it is replaced."""

# The path is set before anything is imported, so that the process finds each module where the parent found it.
_START = "import sys; sys.path[:] = sys.argv[1:]; from jaxgrpo.rewards.workers.worker import main; main()"


class LostError(Exception):
    """The process died ("crash") or was too slow ("timeout")."""


class StoppedError(Exception):
    """The pool is being closed."""


class Line:
    """JSON lines over a socket, with a time limit for each; StoppedError as soon as the descriptor `stop` can be read."""

    def __init__(self, ours: socket.socket, stop: int):
        self.socket, self.stop, self._heard = ours, stop, b""
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def is_open(self) -> bool:
        """Whether somebody is at the other end."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, line: bytes, seconds: float) -> None:
        """Raises LostError."""
        until = time.monotonic() + seconds
        while line:
            self._wait(select.POLLOUT, until)
            try:
                line = line[self.socket.send(line) :]
            except ConnectionError:
                raise LostError("crash") from None

    def hand_over(self, theirs: socket.socket) -> None:
        """Give the other end a descriptor of its own. Raises LostError."""
        try:
            socket.send_fds(self.socket, [b"s"], [theirs.fileno()])
        except OSError:
            raise LostError("crash") from None

    def receive(self, seconds: float) -> Any:
        """The next line's JSON value. Raises LostError, also if it is none: a reward wrote to descriptors it does not own."""
        until = time.monotonic() + seconds
        try:
            while b"\n" not in self._heard:
                self._wait(select.POLLIN, until)
                heard = self.socket.recv(1 << 16)
                if not heard:
                    raise LostError("crash")
                self._heard += heard
            line, _, self._heard = self._heard.partition(b"\n")
            return json.loads(line)
        except (ConnectionError, ValueError):
            raise LostError("crash") from None

    def _wait(self, event: int, until: float) -> None:
        """Return when the socket is ready. What is ready by now is never late, however long this thread was held up."""
        poll = select.poll()
        poll.register(self.socket, event)
        poll.register(self.stop, select.POLLIN)
        ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
        if self.stop in ready:
            raise StoppedError
        if not ready:
            raise LostError("timeout")


class Supply:
    """Gives each of several threads a process that has imported the rewards: a fork of one that all of them share, or,
    where that cannot be, a fresh one.

    setup: the line that a process is told first. stop: a descriptor that can be read once nobody needs any more.
    All the threads must live until `close`: Linux takes the end of the one that started a process for its parent's death.
    """

    def __init__(self, setup: bytes, stop: int):
        self.stop, self._setup, self._lock = stop, setup, threading.Lock()
        self._command = [sys.executable, "-c", _START, *map(os.path.abspath, sys.path)]
        self._process: subprocess.Popen[bytes] | None = None

    def load(self) -> None:
        """Have a process that has imported the rewards. Raises UserError if it cannot."""
        with self._lock:
            self._load()

    def _load(self) -> None:
        if self._process:
            return
        self._control, theirs = _pair(self.stop)
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # until the process makes it its stderr
                start_new_session=True,  # a process group to kill as a whole; and Ctrl-C is for the parent to handle
                env=_environment(),
            )
        try:
            self._control.send(self._setup, _START_SECONDS)
            problem = self._control.receive(_START_SECONDS)
        except LostError as lost:
            problem = f"a worker process did not get through importing the rewards ({lost}); see what it printed above"
        if problem:
            self._end()
            raise UserError(problem)

    def take(self) -> tuple[int, Line, subprocess.Popen | None]:
        """A process's id and the line to it: a template's, or, with its handle, one that answers itself. Raises UserError."""
        with self._lock:
            for _ in range(2):
                self._load()
                try:
                    taken, line = _ask(self._control)
                except LostError:  # somebody has killed it, or stopped it
                    self._end()
                    continue
                if not self._process or taken != self._process.pid:
                    return taken, line, None
                alone, self._process = self._process, None
                self._control.close()
                return taken, line, alone
        raise UserError(
            "a worker process imported the rewards and then ended by itself; see what it printed above"
        )

    def bury(self, taken: int) -> None:
        """See the end of a template that was taken and is dead."""
        with self._lock:
            if self._process and not _bury(self._control, taken):
                self._end()

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process:
            _kill_group(self._process.pid)
            self._process.wait()
            self._control.close()
            self._process = None


class Process:
    """What answers, from `start`, on `line`, until `kill` or the next start. It belongs to one thread."""

    line: Line

    def __init__(self, supply: Supply):
        self._supply = supply
        self._template: tuple[int, Line] | None = None
        self._alone: subprocess.Popen | None = None
        self._answering: int | None = None

    def start(self) -> None:
        """Have somebody new answer. Raises UserError if that cannot be."""
        self.kill()
        while self._answering is None:
            if self._template is None:
                taken, line, self._alone = self._supply.take()
                if self._alone:
                    self._answering, self.line = taken, line
                    return
                self._template = taken, line
            try:
                self._answering, self.line = _ask(self._template[1])
            except LostError:  # what was killed has killed the template, or stopped it
                self._drop_template()

    def answers(self) -> bool:
        """Whether somebody does, as far as is known."""
        return self._answering is not None and self.line.is_open()

    def kill(self) -> None:
        """Kill what answers, and whatever it started, and wait until it is gone."""
        answering, self._answering = self._answering, None
        if answering is None:
            return
        _kill_group(answering)
        self.line.close()
        if self._alone:
            self._alone.wait()
            self._alone = None
        elif self._template and not _bury(self._template[1], answering):
            self._drop_template()

    def close(self) -> None:
        """Kill all there is, and wait until it is gone."""
        self.kill()
        self._drop_template()

    def _drop_template(self) -> None:
        if self._template:
            template, line = self._template
            _kill_group(template)
            line.close()
            self._supply.bury(template)
            self._template = None


def _ask(template: Line) -> tuple[int, Line]:
    """The id of a process that a template forks, and the line to it. Raises LostError."""
    line, theirs = _pair(template.stop)
    try:
        with theirs:
            template.hand_over(theirs)
        return template.receive(_START_SECONDS), line
    except BaseException:
        line.close()
        raise


def _bury(template: Line, process: int) -> bool:
    """Whether a template has seen the end of a process that it forked and that is dead."""
    try:
        template.socket.settimeout(
            _BURY_SECONDS
        )  # even when `stop` can be read: a closed pool leaves no zombie
        template.socket.sendall(b"%d" % process)
        buried = template.socket.recv(16) == b"null\n"
        template.socket.setblocking(False)
        return buried
    except OSError:
        return False


def _pair(stop: int) -> tuple[Line, socket.socket]:
    """Our end and theirs."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # whatever the default in this program
    return Line(ours, stop), theirs


def _environment() -> dict[str, str]:
    """Whatever a reward imports, the accelerator is the trainer's. Workers share the cores already, and a library that starts
    threads when it is imported keeps a process from being a template; who wants them says so."""
    return {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "JAX_PLATFORMS": "cpu",
    }


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
