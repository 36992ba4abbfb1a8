"""A process that answers in JSON lines, as its parent sees it: killed at any moment, and replaced in milliseconds.

    parent -> template -> child

Workers are started afresh: a fork of the parent would inherit the hold on the accelerator; `multiprocessing` would import
the parent's main program, and jax with it, and unpickle what the other side sends. But a fresh process takes a second to
import what rewards need. So it only imports, and becomes a template: it forks a child, which answers, and another once that
one has been killed. Where a fork would not be as good as a fresh process (`worker.may_fork`), the process answers itself,
and what replaces it is fresh.

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
import time
from typing import Any

from jaxgrpo.errors import UserError

_START_SECONDS = 120.0
_BURY_SECONDS = 20.0
"""A template that takes longer to see that its child is dead has been stopped, by a reward: it is replaced."""

# The path is set before anything is imported, so that the process finds each module where the parent found it.
_START = "import sys; sys.path[:] = sys.argv[1:]; from jaxgrpo.rewards.worker import main; main()"


class LostError(Exception):
    """The process died ("crash") or was too slow ("timeout")."""


class StoppedError(Exception):
    """The pool is being closed."""


class Line:
    """JSON lines over a socket, with a time limit for each; StoppedError as soon as the descriptor `stop` can be read."""

    def __init__(self, ours: socket.socket, stop: int):
        self.socket, self._stop, self._heard = ours, stop, b""
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
        poll.register(self._stop, select.POLLIN)
        ready = dict(poll.poll(max(0.0, until - time.monotonic()) * 1000))
        if self._stop in ready:
            raise StoppedError
        if not ready:
            raise LostError("timeout")


class Process:
    """A process, and what answers in its stead: from `start`, on `line`, until `kill` or the next start.

    setup: the line that it is told first. stop: a descriptor that can be read once nobody needs the process any more.
    It belongs to the thread that starts it: Linux takes that thread's end for the parent's death.
    """

    line: Line

    def __init__(self, setup: bytes, stop: int):
        self._setup, self._stop = setup, stop
        self._command = [sys.executable, "-c", _START, *map(os.path.abspath, sys.path)]
        self._process: subprocess.Popen[bytes] | None = None
        self._answering: int | None = None

    def load(self) -> None:
        """Start the process and wait until it has imported the rewards. Raises UserError if it cannot."""
        self._control, theirs = _pair(self._stop)
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
            self.close()
            raise UserError(problem)

    def start(self) -> None:
        """Have somebody new answer. Raises UserError if that cannot be."""
        self.kill()
        for _ in range(2):
            if self._process is None:
                self.load()
            try:
                return self._ask_for_one()
            except LostError:  # what was killed has killed the template, or stopped it
                self.close()
        raise UserError("a worker process imported the rewards and then ended by itself; see what it printed above")

    def _ask_for_one(self) -> None:
        """Hand the process a socket, on which a child will answer, or it itself."""
        self.line, theirs = _pair(self._stop)
        try:
            with theirs:
                self._control.hand_over(theirs)
            self._answering = self._control.receive(_START_SECONDS)
        except BaseException:
            self.line.close()
            raise

    def answers(self) -> bool:
        """Whether somebody does, as far as is known."""
        return self._answering is not None and self.line.is_open()

    def kill(self) -> None:
        """Kill what answers, and whatever it started, and wait until it is gone."""
        answering, self._answering = self._answering, None
        if answering is None or self._process is None:
            return
        _kill_group(answering)
        self.line.close()
        if answering == self._process.pid or not self._bury():
            self.close()

    def _bury(self) -> bool:
        """Whether the template has seen its dead child's end."""
        template = self._control.socket
        try:
            template.settimeout(_BURY_SECONDS)  # even when `stop` can be read: a closed pool leaves no zombie
            template.sendall(b"b")
            buried = template.recv(16) == b"null\n"
            template.setblocking(False)
            return buried
        except OSError:
            return False

    def close(self) -> None:
        """Kill all there is, and wait until it is gone."""
        self.kill()
        if self._process:
            _kill_group(self._process.pid)
            self._process.wait()
            self._control.close()
            self._process = None


def _pair(stop: int) -> tuple[Line, socket.socket]:
    """Our end and theirs."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # whatever the default in this program
    return Line(ours, stop), theirs


def _environment() -> dict[str, str]:
    """Whatever a reward imports, the accelerator is the trainer's. Workers share the cores already, and a library that starts
    threads when it is imported keeps a process from being a template; who wants them says so."""
    return {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **os.environ, "JAX_PLATFORMS": "cpu"}


def _kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
