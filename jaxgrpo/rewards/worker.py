"""A reward worker's process: JSON lines in, a JSON line out for every call. `pool` starts it and watches the clock.

in   {"rewards": {name: "module:qualname"}, "memory": bytes}   once; see find_reward
out  null, or one line of text: which reward is wrong           once
in   [skip, [problem, texts]]                                   a job: all its `calls` but the first so many; a text is
                                                                a string, or [text, tokens, finished]
out  [verdict, ...], each a number or why there is none         one a call, as soon as they are known
"""

import contextlib
import ctypes
import importlib
import json
import math
import numbers
import operator
import os
import queue
import resource
import signal
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
        raise UserError(f"reward {name} is a {type(found).__name__}, not a function of (problem, text)")
    return found


def _setting(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_setting, value))
    return find_reward(value["reward"]) if isinstance(value, dict) and value.keys() == {"reward"} else value


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
    except BaseException as error:  # SystemExit and MemoryError are verdicts that could not be had, like any other
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
    """Serve until the parent closes the pipe, or dies."""
    requests, reports = _take_pipes()
    _die_with_parent()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    setup = json.loads(lines.get())
    try:
        rewards = [find_reward(name) for name in setup["rewards"].values()]
    except UserError as error:
        _report(reports, str(error))
        return
    _limit_memory(setup["memory"])
    _report(reports, None)
    while True:
        skip, (problem, texts) = json.loads(lines.get())
        problem = Problem(**problem)
        completions = [Completion(*text) if isinstance(text, list) else text for text in texts]
        for which, on in calls(rewards, len(texts))[skip:]:
            _report(reports, verdicts(rewards[which], problem, [completions[text] for text in on]))


def _take_pipes() -> tuple[int, int]:
    """The two pipes to the parent, on descriptors of their own: a reward that prints or reads must not meet them."""
    requests, reports = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, reports


def _die_with_parent() -> None:
    """Let Linux kill this process when its parent dies. Elsewhere `_read` does, unless a reward holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SEND_WHEN_PARENT_DIES, signal.SIGKILL)


def _read(requests: int, lines: queue.SimpleQueue) -> None:
    """Queue what the parent writes, and end the process when it has gone, in the middle of a verdict if need be."""
    with os.fdopen(requests, "rb") as stream:
        for line in stream:
            lines.put(line)
    os._exit(0)


def _limit_memory(limit: int) -> None:
    """Make an allocation past `limit` bytes of address space a MemoryError. Not every system lets a process do so."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _report(reports: int, what: list[float | str] | str | None) -> None:
    os.write(reports, json.dumps(what).encode() + b"\n")
