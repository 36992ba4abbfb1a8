"""Several processes that train together: how they find each other, and how all end when one does.

JAX's coordination service, in process 0, notices within HEARTBEAT seconds that a process is gone, and ends the others: in the
middle of C++ code, with a stack trace. So each process has a herald, a shell that waits for its end and says what happened.
"""

import atexit
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

import jax

from jaxgrpo.errors import UserError

MEETING = 300
"""Seconds that processes wait for each other at the start: machines do not come up together."""

HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead."""

LAST_WORDS = 3.0
"""Seconds that process 0 lives longer: the others end with it, and may have something to say of their own."""

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
"""Where a TPU VM of Google Compute Engine learns what it is part of."""

MEND = "start all of them again with the same command to go on from the last checkpoint"

_heralds: list[subprocess.Popen] = []


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several, before JAX touches a device; where there is only one, nothing happens.

    coordinator: "auto": as a TPU pod, Slurm or Open MPI says; "off": there is only one; or host:port of process 0, of so many
    processes which one this is. UserError if it cannot be done.
    """
    if (
        coordinator == "off"
        or jax.distributed.is_initialized()
        or (coordinator == "auto" and not _are_several())
    ):
        return
    # JAX's own notice of SIGTERM would take the signal away from train.noted_signals.
    jax.config.update("jax_enable_preemption_service", False)
    explicit: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    explicit["cluster_detection_method"] = "deactivate"
    mend = "see that all of them are started, each with its own number"
    if coordinator == "auto":
        mend += "; --config.distributed.coordinator=off is for one alone"
    failed = f"distributed.coordinator {coordinator!r}: the processes did not meet within {MEETING} s; {mend}"
    _heralds.append(_herald(f"error: {failed}"))
    try:
        jax.distributed.initialize(
            **({} if coordinator == "auto" else explicit),
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{failed} ({error})") from error
    finally:
        _dismiss()
    if jax.process_count() > 1:
        ended = f"{_which()} was ended in the middle of the run: another is gone, or this one was killed"
        _heralds.append(_herald(f"error: {ended}; {MEND}"))
        atexit.register(_dismiss)


def _are_several() -> bool:
    """Whether the environment says that this process is one of several."""
    count = lambda name: int(os.environ.get(name, "1"))
    if "SLURM_STEP_NODELIST" in os.environ and count("SLURM_NTASKS") > 1:
        return True
    if count("OMPI_COMM_WORLD_SIZE") > 1 or count("MEGASCALE_NUM_SLICES") > 1:
        return True
    if not (getattr(jax.config, "jax_platforms", None) or "").startswith(
        "tpu"
    ):  # JAX sets it where it finds TPUs
        return False
    if workers := os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES"):
        return "," in workers
    return "," in _metadata("worker-network-endpoints") or "MEGASCALE_NUM_SLICES" in _metadata(
        "tpu-env"
    )


def _metadata(name: str) -> str:
    """An attribute of this TPU VM; "" where there is nobody to ask."""
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return ""
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _herald(message: str) -> subprocess.Popen:
    """A process that outlives this one and then gives the message, unless told a word before: whatever ends this one."""
    # A session of its own: Ctrl-C is for the run.
    command = ["sh", "-c", 'read -r word || echo "$0" >&2', message]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def _dismiss() -> None:
    while _heralds:
        _heralds.pop().communicate(b"done\n")


def _which() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def print0(*words: object, **how: Any) -> None:
    """Prints what one process should say for all."""
    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(*words, **how)


def exit_process(code: int) -> None:
    """Exits after an error that has been said. One of several processes does not wait for the others: they must end, too."""
    if not _heralds:
        sys.exit(code)
    why = "after the error above (one about a connection means that another process is gone)"
    print(f"error: {_which()} ends the run {why}; {MEND}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    _dismiss()
    if jax.process_index() == 0:
        time.sleep(LAST_WORDS)
    os._exit(code)


def is_alone() -> bool:
    """Whether this process was not made one of several by `join`."""
    return not _heralds
