"""Several processes that train together: how they find each other, exchange values and end.

When one of them dies, all must end, for each would wait forever for what the others compute:

    one process ends with an error       exit_process prints that it ends the run, and exits
    or: one process is killed            it cannot print anything; its exit watcher does
      |
      v
    JAX's coordination service,          misses its sign of life within HEARTBEAT_SECONDS, and tells
    a thread of process 0                the others
      |
      v
    JAX ends the other processes         in the middle of C++ code: Python runs no handler, and all
                                         that is printed is a stack trace of C++
      |
      v
    the exit watcher of each of them     prints one line: which process ended, and how to go on

    or: process 0 ends                   the service ends with it, and JAX ends the others at once

An exit watcher is a shell that each process starts. It waits on a pipe from its process. If the
process tells it to stop, it is silent; if the pipe closes without that, the process was ended, and
the shell prints a message that was handed to it at its start.
"""

import atexit
import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgrpo.errors import UserError

JOIN_TIMEOUT_SECONDS = 300
"""How long processes wait for each other at the start: machines do not start at the same time."""

HEARTBEAT_SECONDS = 30
"""A process without a sign of life for so long counts as dead."""

COORDINATOR_GRACE_SECONDS = 3.0
"""How much longer process 0 lives after an error. The others end with it, and may have an error of
their own to print."""

METADATA_URL = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
"""Where a TPU VM of Google Compute Engine learns what it is part of."""

METADATA_TIMEOUT_SECONDS = 5.0

RESTART_HINT = (
    "start all of them again with the same command to go on from the last checkpoint"
)

FIRST_GATHER_BYTES = 2048
"""Bytes of each process that gather_json exchanges in its first collective. Longer values need a
second one."""

LENGTH_BYTES = 8
"""Bytes in front of a value of gather_json that hold its length."""

_exit_watchers: list[subprocess.Popen] = []


# --- Start ----------------------------------------------------------------------------------------


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several, before JAX opens a device; does nothing if it is alone.

    coordinator: "auto": as the environment says (TPU pod, Slurm, Open MPI); "off": this process is
        alone; or host:port of process 0
    processes: the number of processes, if the coordinator is host:port
    process: the number of this one, from 0

    Raises UserError if the processes do not find each other.
    """
    if coordinator == "off" or jax.distributed.is_initialized():
        return
    if coordinator == "auto" and not _environment_has_several_processes():
        return
    # JAX would handle SIGTERM itself, which would take the signal away from train.noted_signals.
    jax.config.update("jax_enable_preemption_service", False)
    is_automatic = coordinator == "auto"
    hint = "see that all of them are started, each with its own number"
    if is_automatic:
        hint += "; --config.distributed.coordinator=off is for one alone"
    failure = (
        f"distributed.coordinator {coordinator!r}: the processes did not meet within "
        f"{JOIN_TIMEOUT_SECONDS} s; {hint}"
    )
    # JAX may end the process instead of raising, so a watcher stands by while it connects.
    _start_exit_watcher(f"error: {failure}")
    try:
        jax.distributed.initialize(
            # None: JAX finds it out from the environment.
            coordinator_address=None if is_automatic else coordinator,
            num_processes=None if is_automatic else processes,
            process_id=None if is_automatic else process,
            cluster_detection_method=None if is_automatic else "deactivate",
            initialization_timeout=JOIN_TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{failure} ({error})") from error
    finally:
        _stop_exit_watchers()
    if jax.process_count() > 1:
        _start_exit_watcher(
            f"error: {_process_name()} was ended in the middle of the run: "
            f"another is gone, or this one was killed; {RESTART_HINT}"
        )
        atexit.register(_stop_exit_watchers)


def is_alone() -> bool:
    """Returns True if join_processes has not made this process one of several."""
    return not _exit_watchers


def _environment_has_several_processes() -> bool:
    """Returns True if the environment says that this process is one of several."""
    # Slurm sets SLURM_STEP_NODELIST for the tasks of srun, and not for the batch script itself.
    if (
        "SLURM_STEP_NODELIST" in os.environ
        and _count_in_environment("SLURM_NTASKS") > 1
    ):
        return True
    if _count_in_environment("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    if _count_in_environment("MEGASCALE_NUM_SLICES") > 1:
        return True
    # JAX sets jax_platforms to "tpu,cpu" where it finds TPUs.
    platforms = getattr(jax.config, "jax_platforms", None) or ""
    if not platforms.startswith("tpu"):
        return False
    workers = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get(
        "TPU_WORKER_HOSTNAMES"
    )
    if workers:
        return "," in workers
    if "," in _tpu_metadata("worker-network-endpoints"):
        return True
    return "MEGASCALE_NUM_SLICES" in _tpu_metadata("tpu-env")


def _count_in_environment(name: str) -> int:
    """Returns the number in an environment variable; 1 if it is not set."""
    return int(os.environ.get(name, "1"))


def _tpu_metadata(name: str) -> str:
    """Returns an attribute of this TPU VM; "" if there is no metadata server."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    request = urllib.request.Request(
        METADATA_URL + name, headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(
            request, timeout=METADATA_TIMEOUT_SECONDS
        ) as response:
            return response.read().decode()
    except OSError:
        return ""


# --- End ------------------------------------------------------------------------------------------


def exit_process(code: int) -> None:
    """Exits after an error that has been printed.

    One of several processes neither cleans up nor waits for the others, because they must end too.
    """
    if is_alone():
        sys.exit(code)
    print(
        f"error: {_process_name()} ends the run after the error above (one about a connection "
        f"means that another process is gone); {RESTART_HINT}",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    _stop_exit_watchers()
    if jax.process_index() == 0:
        time.sleep(COORDINATOR_GRACE_SECONDS)
    # sys.exit would run JAX's own shutdown, which waits for all processes.
    os._exit(code)


def _start_exit_watcher(message: str) -> None:
    """Starts a shell that prints the message when this process ends, whatever ends it."""
    # `read` fails when the pipe closes without a line. $0 is the message.
    command = ["sh", "-c", 'read -r line || echo "$0" >&2', message]
    watcher = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is meant for the run alone
    )
    _exit_watchers.append(watcher)


def _stop_exit_watchers() -> None:
    """Ends the exit watchers without their message."""
    while _exit_watchers:
        _exit_watchers.pop().communicate(b"done\n")


def _process_name() -> str:
    """Returns `process 1 of 4`."""
    return f"process {jax.process_index()} of {jax.process_count()}"


# --- Communication --------------------------------------------------------------------------------


def print0(*values: object, end: str = "\n", flush: bool = False) -> None:
    """Prints on process 0 only, for what all processes would say alike."""
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(*values, end=end, flush=flush)


def print_nothing(*values: object, end: str = "\n", flush: bool = False) -> None:
    """Prints nothing, in the place of `print0`."""


def gather_json(value: object) -> list[Any]:
    """Returns the JSON values of all processes, in the order of the processes.

    All processes must call it at the same point of the program, as everything that uses devices.
    A process that is alone gets its own value.
    """
    # process_count() would open the devices, too early for a run that has not divided its CPU yet.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return [value]
    content = json.dumps(value).encode()
    # 1. All processes exchange the lengths of their values, and the beginnings.
    first_part_bytes = FIRST_GATHER_BYTES - LENGTH_BYTES
    header = len(content).to_bytes(LENGTH_BYTES, "little")
    gathered = _gather_bytes(header + content[:first_part_bytes], FIRST_GATHER_BYTES)
    lengths = [int.from_bytes(row[:LENGTH_BYTES], "little") for row in gathered]
    contents = [row[LENGTH_BYTES:] for row in gathered]
    # 2. If one did not fit, all exchange the whole. A power of two as the width: each width is
    # compiled anew.
    longest = max(lengths)
    if longest > first_part_bytes:
        contents = _gather_bytes(content, 1 << longest.bit_length())
    return [
        json.loads(row[:length]) for row, length in zip(contents, lengths, strict=True)
    ]


def _gather_bytes(content: bytes, width: int) -> list[bytes]:
    """Returns the bytes of all processes, each padded to the width."""
    padded = np.frombuffer(content.ljust(width, b"\0"), np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(padded)]
