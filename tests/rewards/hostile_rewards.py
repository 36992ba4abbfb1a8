"""Rewards that misbehave: a pool of workers must survive all of them.

They can be imported by name, as a user's own rewards are.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time

import numpy


def length(problem, text):
    return len(text)


def is_answer(problem, text):
    return text == problem.answer


def numpy_is_answer(problem, text):
    return numpy.bool_(text == problem.answer)


def half(problem, text):
    return numpy.float32(0.5)


def sleep_forever(problem, text):
    while True:
        time.sleep(3600)


def sleep_on_request(problem, text):
    if text == "sleep":
        sleep_forever(problem, text)
    return len(text)


def sleep_a_little(problem, text):
    time.sleep(0.1)
    return 1.0


def hold_the_gil(problem, text):
    return float(len(str(9**9**9)))


def ignore_signals(problem, text):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    sleep_forever(problem, text)


def exit_on_request(problem, text):
    if text == "exit":
        os._exit(0)
    return len(text)


def hang_on_request(problem, text):
    if text == "hold the GIL":
        hold_the_gil(problem, text)
    return sleep_on_request(problem, text)


def strike_the_parent_on_request(problem, text):
    """Sends a signal to the parent process: to the template, where workers are forks."""
    if text in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getppid(), getattr(signal, text))
        exit_on_request(problem, "exit")
    return len(text)


def start_a_process_and_hang(problem, text):
    """Starts a process, and writes its id into the file named by the text."""
    process = os.fork()
    if process:
        with open(text, "w") as file:
            file.write(str(process))
    time.sleep(3600)


def close_all_descriptors(problem, text):
    os.closerange(0, 100)
    return 1.0


def exit_after_the_verdict(problem, text):
    threading.Timer(0.02, os._exit, [1]).start()
    return 1.0


def raise_error(problem, text):
    raise ZeroDivisionError("two\nlines")


def ask_to_exit(problem, text):
    sys.exit("no more")


def not_a_number(problem, text):
    return float("nan")


def infinity(problem, text):
    return -float("inf")


def nothing(problem, text):
    return None


def words(problem, text):
    return "1.0"


def huge(problem, text):
    return 10**400


def eat_memory(problem, text):
    return len(bytearray(1 << 32))


def print_and_read(problem, text):
    print("1.0\n0.25")
    os.write(1, b"[]\n")
    os.system("echo 0.5")
    return len(sys.stdin.read()) + 7


def scribble(problem, text):
    for descriptor in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"{]\n")
    time.sleep(3600)


def process_id(problem, text):
    return os.getpid()


IMPORTED_BY = os.getpid()


def importing_process_id(problem, text):
    return IMPORTED_BY


def imports_math_verify(problem, text):
    return "math_verify" in sys.modules


def imports_jax(problem, text):
    return "jax" in sys.modules


def meta_echo(problem, text):
    return (
        problem.meta["value"]
        + (problem.language == "ko")
        + (text == "\ud800 é \u2028 \n")
    )


def length_and_end(problem, text):
    return text.tokens + 0.5 * text.finished


@dataclasses.dataclass
class NotFrozen:
    """A reward that has no hash, for it is a dataclass that is not frozen."""

    number: float = 1.0

    def __call__(self, problem, text):
        return self.number / (text == problem.answer)


not_callable = 3
