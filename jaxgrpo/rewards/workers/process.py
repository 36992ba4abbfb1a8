"""The trainer's side of the fork server, the templates and the workers: starts, kills, replaces.

The drawing of these processes is at the head of `pool`; what they do inside is in `worker`.

Why a fork server. A worker is killed at any moment, and its replacement must not cost a second of
imports: a fork takes milliseconds. The trainer itself cannot be forked, for a fork would inherit
its hold on the accelerator. `multiprocessing` has a fork server, too, but it imports the trainer's
main program, and with it jax, and it unpickles what the other side sends. So a fresh process
imports the rewards, once for all workers, and forks from there.

Why templates. A reward can kill or stop its own parent process. That costs one worker its template,
and no other: each worker has its own, and the fork server is never a worker's parent. (A fork
server that dies takes its templates and their workers with it.)

Why sockets. Each process has a socketpair of its own, so what a killed process has left half
written is never read. The fork server gets its end as stdin; a child's end is sent to the parent
that forks it, over that parent's own socket (SCM_RIGHTS).

Who waits for whom. A dead child is a zombie, and its process id is not used again, until its parent
waits for it. The trainer decides when the parent does (`_reap`), after it has killed the child. So
it never kills an unrelated process that was given the same id, as long as the parent lives.

Fork-unsafe rewards. Where an imported module has started threads, or holds files or shared memory,
a fork would not be as good as a fresh process (`worker.is_fork_safe`). The fork server then becomes
a worker itself when it is asked for a fork, and the next worker gets a fresh fork server.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass

from jaxgrpo.errors import UserError
from jaxgrpo.rewards.workers.channel import Channel, ProcessLostError

_START_SECONDS = 120.0
"""Longest wait for the fork server's imports, and for a fork."""

_REAP_SECONDS = 20.0
"""A template that takes longer to wait for its dead child has been stopped by a reward."""

# The path is set before anything is imported, so that each module is found where the trainer found
# it.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from jaxgrpo.rewards.workers.worker import main; main()"
)


@dataclass(frozen=True)
class Process:
    """A process and the channel to it.

    pid: its process id, and that of its process group
    channel: the trainer's end of its socketpair
    popen: its handle if the trainer started it; None for a fork of another process
    """

    pid: int
    channel: Channel
    popen: subprocess.Popen | None = None


class ForkServer:
    """The process that imports the rewards, once for all workers, and forks their templates.

    It is shared by the supervisor threads, and started again when it dies. All of these threads
    must live until `close`: the process asks to be killed when its parent dies, and for Linux its
    parent is the thread that started it.

    setup: the line that the process reads first, see `worker`
    stop_fd: a file descriptor that can be read as soon as the pool is being closed
    """

    def __init__(self, setup: bytes, stop_fd: int):
        self._setup = setup
        self._stop_fd = stop_fd
        self._lock = threading.Lock()
        self._command = [
            sys.executable,
            "-c",
            _PROGRAM,
            *map(os.path.abspath, sys.path),
        ]
        self._server: Process | None = None

    def start(self) -> None:
        """Starts the process if there is none. Raises UserError if it cannot import the rewards."""
        with self._lock:
            self._running_server()

    def fork(self) -> Process:
        """Returns a new template.

        Where forks are not safe it returns a worker instead, which has a `popen`: the fork server
        has become that worker, and the next call starts another fork server.

        Raises UserError if the process does not start.
        """
        with self._lock:
            for _ in range(2):  # once more, with a new fork server
                server = self._running_server()
                try:
                    child = _request_fork(server.channel)
                except (
                    ProcessLostError
                ):  # a reward has killed the fork server, or stopped it
                    self._kill_server()
                    continue
                became_worker = child.pid == server.pid  # where forks are not safe
                if not became_worker:
                    return child
                self._server = None
                server.channel.close()
                return dataclasses.replace(child, popen=server.popen)
        raise UserError(
            "a worker process imported the rewards and then ended by itself; "
            "see what it printed above"
        )

    def reap(self, template: int) -> None:
        """Has the fork server wait for a template, by its id, that has been killed."""
        with self._lock:
            if self._server and not _reap(self._server.channel, template):
                self._kill_server()

    def close(self) -> None:
        """Kills the process and waits until it is gone."""
        with self._lock:
            self._kill_server()

    def _running_server(self) -> Process:
        """Returns the process, after its imports. The caller holds the lock."""
        if self._server:
            return self._server
        channel, child_socket = _make_channel(self._stop_fd)
        with child_socket:
            popen = subprocess.Popen(
                self._command,
                stdin=child_socket.fileno(),
                stdout=subprocess.DEVNULL,  # the process itself sends its stdout to stderr
                # A process group that can be killed as a whole. Ctrl-C then goes to the trainer
                # alone, which closes the pool.
                start_new_session=True,
                env=_environment(),
            )
        server = Process(popen.pid, channel, popen)
        self._server = server  # before anything can raise, so that `close` kills it
        try:
            channel.send(self._setup, _START_SECONDS)
            import_error = channel.receive(_START_SECONDS)
        except ProcessLostError as lost:
            import_error = (
                f"a worker process did not get through importing the rewards ({lost}); "
                "see what it printed above"
            )
        if import_error:
            self._kill_server()
            raise UserError(import_error)
        return server

    def _kill_server(self) -> None:
        server = self._server
        if server and server.popen:
            _kill_group(server.pid)
            server.popen.wait()
            server.channel.close()
            self._server = None


class WorkerProcess:
    """One worker, from each `start` until `kill` or the next start, and its template.

    It belongs to one supervisor thread.
    """

    def __init__(self, fork_server: ForkServer):
        self._fork_server = fork_server
        self._template: Process | None = None
        self._worker: Process | None = None

    @property
    def channel(self) -> Channel:
        """The channel to the worker, which must have been started."""
        assert self._worker is not None
        return self._worker.channel

    def is_running(self) -> bool:
        """Returns True if there is a worker, as far as is known."""
        return self._worker is not None and self._worker.channel.is_connected()

    def start(self) -> None:
        """Replaces the worker by a new one. Raises UserError if none can be started."""
        self.kill()
        while self._worker is None:
            # 1. A template, unless the last worker has left one.
            if self._template is None:
                process = self._fork_server.fork()
                if process.popen:  # forks are not safe: this is a worker already
                    self._worker = process
                    return
                self._template = process
            # 2. A worker, forked by the template.
            try:
                self._worker = _request_fork(self._template.channel)
            except (
                ProcessLostError
            ):  # the last worker has killed the template, or stopped it
                self._kill_template()

    def kill(self) -> None:
        """Kills the worker and all that it has started, and waits until it is gone."""
        worker = self._worker
        self._worker = None
        if worker is None:
            return
        _kill_group(worker.pid)
        worker.channel.close()
        if worker.popen:
            worker.popen.wait()
        elif self._template and not _reap(self._template.channel, worker.pid):
            self._kill_template()

    def close(self) -> None:
        """Kills the worker and its template, and waits until they are gone."""
        self.kill()
        self._kill_template()

    def _kill_template(self) -> None:
        template = self._template
        if template:
            _kill_group(template.pid)
            template.channel.close()
            self._fork_server.reap(template.pid)
            self._template = None


def _request_fork(parent: Channel) -> Process:
    """Has the fork server or a template fork, and returns the child.

    The child has the id of its parent where the fork server becomes a worker itself. Raises
    ProcessLostError.
    """
    channel, child_socket = _make_channel(parent.stop_fd)
    try:
        with child_socket:
            parent.send_socket(child_socket)
        return Process(parent.receive(_START_SECONDS), channel)
    except BaseException:
        channel.close()
        raise


def _reap(parent: Channel, child: int) -> bool:
    """Has the fork server or a template wait for a child, by its id, that has been killed.

    Returns False if the parent does not say that it has done so.
    """
    try:
        # Not `Channel.send`: it would not wait when the pool is being closed, and a closed pool is
        # to leave no zombie.
        parent.socket.settimeout(_REAP_SECONDS)
        parent.socket.sendall(b"%d" % child)
        has_reaped = parent.socket.recv(16) == b"null\n"
        parent.socket.setblocking(False)
        return has_reaped
    except OSError:
        return False


def _make_channel(stop_fd: int) -> tuple[Channel, socket.socket]:
    """Returns a channel, and the socket that is its other end."""
    trainer_socket, child_socket = socket.socketpair()
    child_socket.setblocking(True)  # this program may have set another default
    return Channel(trainer_socket, stop_fd), child_socket


def _environment() -> dict[str, str]:
    """Returns the environment variables of the fork server.

    JAX_PLATFORMS: whatever a reward imports, the accelerator is the trainer's.
    *_NUM_THREADS: workers share the cores already, and a library that starts threads when it is
      imported makes forks unsafe. A user who wants threads sets the variable.
    """
    return {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "JAX_PLATFORMS": "cpu",
    }


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
