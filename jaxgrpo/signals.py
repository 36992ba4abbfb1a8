"""Ctrl-C and SIGTERM that let a run finish its step."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yields a list that the first Ctrl-C or SIGTERM is put into.

    So the step can be finished and saved. A second one ends the program at once.
    """
    noted: list[int] = []
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        noted.append(number)
        restore()
        # print is not safe in a signal handler.
        os.write(2, b"stopping after this step; once more stops at once\n")

    for number in handlers:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
