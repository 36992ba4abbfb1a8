"""JSON lines between the trainer and one of its processes, with a time limit for each."""

import json
import select
import socket
import time
from typing import Any

_RECEIVE_BYTES = 1 << 16


class ProcessLostError(Exception):
    """The process at the other end is of no more use.

    The message is "timeout" if it was too slow, and "crash" if it died or wrote what is no JSON.
    """


class PoolClosedError(Exception):
    """The pool is being closed."""


class Channel:
    """JSON lines over one end of a socketpair, with a time limit for each.

    sock: the trainer's end
    stop_fd: a file descriptor that can be read as soon as the pool is being closed; from then on
      `send` and `receive` raise PoolClosedError instead of waiting
    """

    def __init__(self, sock: socket.socket, stop_fd: int):
        self.socket = sock
        self.stop_fd = stop_fd
        self._received = b""
        self.socket.setblocking(False)

    def close(self) -> None:
        """Closes the trainer's end."""
        self.socket.close()

    def is_connected(self) -> bool:
        """Returns True if a process holds the other end."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True  # nothing to read, and the other end is open
        except OSError:
            return False

    def send(self, line: bytes, seconds: float) -> None:
        """Sends a line. Raises ProcessLostError if it is not taken within so many seconds."""
        end_time = time.monotonic() + seconds
        while line:
            self._wait(select.POLLOUT, end_time)
            try:
                num_sent = self.socket.send(line)
            except ConnectionError:
                raise ProcessLostError("crash") from None
            line = line[num_sent:]

    def send_socket(self, other: socket.socket) -> None:
        """Gives the other process a file descriptor of a socket. Raises ProcessLostError."""
        try:
            socket.send_fds(self.socket, [b"s"], [other.fileno()])
        except OSError:
            raise ProcessLostError("crash") from None

    def receive(self, seconds: float) -> Any:
        """Returns the JSON value of the next line.

        Raises ProcessLostError if no line comes within so many seconds, or if it is no JSON: then a
        reward has written to file descriptors that it does not own.
        """
        end_time = time.monotonic() + seconds
        try:
            while b"\n" not in self._received:
                self._wait(select.POLLIN, end_time)
                received = self.socket.recv(_RECEIVE_BYTES)
                if not received:
                    raise ProcessLostError("crash")
                self._received += received
            line, _, self._received = self._received.partition(b"\n")
            return json.loads(line)
        except (ConnectionError, ValueError):
            raise ProcessLostError("crash") from None

    def _wait(self, event: int, end_time: float) -> None:
        """Returns when the socket is ready for the event.

        The socket is polled even if the time is over: what is ready by now is not late, however
        long this thread did not get to run.
        """
        poll = select.poll()
        poll.register(self.socket, event)
        poll.register(self.stop_fd, select.POLLIN)
        milliseconds = max(0.0, end_time - time.monotonic()) * 1000
        ready = dict(poll.poll(milliseconds))
        if self.stop_fd in ready:
            raise PoolClosedError
        if not ready:
            raise ProcessLostError("timeout")
