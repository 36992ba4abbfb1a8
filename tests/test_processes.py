"""Several real processes make the same run as one, and end together when one of them dies.

The run can be resumed with any number of processes.
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo import config
from jaxgrpo.config import Distributed
from jaxgrpo.distributed import processes
from jaxgrpo.errors import UserError
from jaxgrpo.metrics import read
from jaxgrpo.sft import sft
from jaxgrpo.train import train
from tests.tiny_devices import flags, output_on_devices
from tests.tiny_runs import (
    ROOT,
    TEXT,
    config_file,
    lines,
    make_config,
    make_sft_config,
    start,
)

VARIABLE_METRICS = (
    "time/",
    "rollout/",
    "perf/",
    "memory/",
    "update/utilisation",
)
"""Prefixes of metrics that depend on speed or on the number of devices: rows of a group that lie on
several devices have their prompt read on each."""
SHORT = ("evaluation.problems=0", "sampling.slots=8", "show_rollouts_every=1")
DELAYED = (
    "from jaxgrpo.rewards import languages\nfrom tests.slow_rewards import Delayed"
)
DEATH_REPORT = (
    r"error: process \d of 2 (was ended|ends the run) "
    r".*start all of them again with the same command to go on from"
)


def launch(
    count: int,
    devices: int,
    folder: Path,
    *overrides: str,
    text: str = TEXT,
    program: str = "jaxgrpo.train",
) -> list[subprocess.Popen]:
    """Starts a run of `count` processes with so many devices each, in folder/out."""
    coordinator = f"127.0.0.1:{free_port()}" if count > 1 else "off"
    all_overrides = (*SHORT, *overrides, f"distributed.coordinator={coordinator}")
    settings = [f"--config.{override}" for override in all_overrides]
    environment = {
        "XLA_FLAGS": flags(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    file = config_file(folder, text)
    return [
        start(
            program,
            *(
                "--config",
                file,
                f"--config.distributed.processes={count}",
                f"--config.distributed.process={process}",
                *settings,
            ),
            **environment,
        )
        for process in range(count)
    ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_all(
    launched: list[subprocess.Popen], seconds: float = 300
) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each process; none outlives the test."""
    results = []
    try:
        for process in launched:
            output, errors = process.communicate(timeout=seconds)
            results.append((process.returncode, output, errors))
        return results
    finally:
        for process in launched:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def finish(launched: list[subprocess.Popen]) -> None:
    """Waits for all processes, which must succeed."""
    for code, _, errors in wait_for_all(launched):
        assert code == 0, errors[-3000:]


def comparable(step: dict) -> dict:
    """Returns the metrics that any number of processes should agree on."""
    return {
        name: value
        for name, value in step.items()
        if not name.startswith(VARIABLE_METRICS)
    }


def assert_same_steps(actual: list[dict], expected: list[dict]) -> None:
    """Asserts that metrics are equal up to the order of floating-point additions."""
    assert [step["step"] for step in actual] == [step["step"] for step in expected]
    for actual_step, expected_step in zip(actual, expected, strict=True):
        actual_metrics = comparable(actual_step)
        expected_metrics = comparable(expected_step)
        assert actual_metrics.keys() == expected_metrics.keys()
        for name, value in actual_metrics.items():
            np.testing.assert_allclose(
                np.array(value, float),
                np.array(expected_metrics[name], float),
                rtol=1e-5,
                atol=1e-5,
                err_msg=name,
            )


def texts(folder: Path, steps: int) -> list[tuple]:
    """Returns (step, problem, completion) of the rollouts that were written up to a step."""
    rollouts = lines(folder / "out" / "rollouts.jsonl")
    return [
        (rollout["step"], rollout["id"], rollout["completion"])
        for rollout in rollouts
        if rollout["step"] <= steps
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def killed(folder):
    """Trains with two processes of four devices until one is killed.

    Returns the folder, the number of steps, the result of each process, and the seconds that the
    processes took to end after the kill.
    """
    run_folder = folder / "killed"
    run_folder.mkdir()
    out = run_folder / "out"
    launched = launch(2, 4, run_folder, "steps=100")
    deadline = time.monotonic() + 300
    while (
        len(read(out)) < 2
        and time.monotonic() < deadline
        and launched[0].poll() is None
    ):
        time.sleep(0.01)
    launched[1].kill()
    killed_at = time.monotonic()
    results = wait_for_all(launched)
    return run_folder, len(read(out)), results, time.monotonic() - killed_at


@pytest.fixture(scope="module")
def uninterrupted(folder, killed):
    """Trains with one process of eight devices, for two steps more than `killed` took."""
    run_folder = folder / "uninterrupted"
    run_folder.mkdir()
    finish(launch(1, 8, run_folder, f"steps={max(5, killed[1] + 2)}"))
    return run_folder


def test_a_killed_process_ends_all_of_them_within_a_minute_and_they_say_so(killed):
    _, steps, results, seconds = killed
    assert steps >= 2, results[0][2]
    assert results[1][0] == -signal.SIGKILL
    assert results[0][0] != 0
    for _, _, errors in results:
        assert re.search(DEATH_REPORT, errors), errors
    assert seconds < 60


def test_two_processes_make_the_run_that_one_makes(killed, uninterrupted):
    run_folder, steps, *_ = killed
    assert_same_steps(read(run_folder / "out"), read(uninterrupted / "out")[:steps])
    assert texts(run_folder, steps) == texts(uninterrupted, steps)
    assert len(set(texts(uninterrupted, steps))) == 2 * steps


@pytest.mark.parametrize(("count", "devices"), [(1, 8), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    folder, killed, uninterrupted, count, devices
):
    run_folder = folder / f"resumed_{count}"
    run_folder.mkdir()
    shutil.copytree(killed[0] / "out", run_folder / "out")
    steps = killed[1] + 2
    finish(launch(count, devices, run_folder, f"steps={steps}"))
    assert_same_steps(read(run_folder / "out"), read(uninterrupted / "out")[:steps])
    assert texts(run_folder, steps) == texts(uninterrupted, steps)


PROPOSALS = (
    "filter.rule=dapo",
    "filter.early_verdicts=2",
    "filter.early_chance=0.8",
    "order.by=chance",
    "order.window=6",
    "order.share=0.5",
)


def test_two_processes_that_keep_what_is_in_flight_make_the_run_that_one_makes(folder):
    """The reward's random delays differ between the processes.

    So do their shares of the verdicts that say which groups go on, and which problems are asked.
    """
    runs = []
    for count, devices in ((1, 8), (2, 4)):
        run_folder = folder / f"keeping_{count}"
        run_folder.mkdir()
        text = TEXT.replace("Weighted(maths.accuracy)", "Weighted(Delayed(0.0, 0.05))")
        text = text.replace("from jaxgrpo.rewards import languages, maths", DELAYED)
        overrides = ("steps=5", "sampling.keep_in_flight=True", *PROPOSALS)
        finish(launch(count, devices, run_folder, *overrides, text=text))
        steps = read(run_folder / "out")
        names = ("rollout/age", "rollout/age_max", "rollout/in_flight")
        ages = [[step[name] for name in names] for step in steps]
        runs.append((steps, ages, texts(run_folder, 5)))
    assert_same_steps(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert max(age for _, age, _ in runs[0][1]) > 0
    assert max(step["filter/stopped"] for step in runs[0][0]) > 0


SHORT_SFT = ("packing.rows=8", "steps=2", "evaluation.problems=0")

MESHES = ("data=1 fsdp=8", "data=2 fsdp=2 tensor=2", "fsdp=2 tensor=4")


def train_on_meshes() -> None:
    """Trains five steps on each mesh, in a process with eight devices; OUT is MESH/out."""
    file = os.environ["TINY_CONFIG"]
    for mesh in MESHES:
        out = Path(file).parent / mesh / "out"
        sizes = [f"mesh.{size}" for size in mesh.split()]
        overrides = (*SHORT, *sizes, "steps=5", "save_every=9", f"out={out}")
        settings = config.load(file, [f"--config.{override}" for override in overrides])
        assert len(list(train(settings))) == 5
    # Supervised training, of which every step is an update of packed rows.
    folder = Path(file).parent / "supervised"
    list(sft(make_sft_config(folder, *SHORT_SFT, "mesh.data=2", "mesh.fsdp=4")))


def test_every_mesh_makes_the_run_that_one_device_makes(
    tmp_path, uninterrupted, monkeypatch
):
    expected = list(train(make_config(tmp_path, *SHORT, "steps=5", "save_every=9")))
    monkeypatch.setenv("TINY_CONFIG", str(tmp_path / "tiny.py"))
    for name in ("supervised", "alone"):
        (tmp_path / name).mkdir()
    output_on_devices(train_on_meshes)
    alone = list(sft(make_sft_config(tmp_path / "alone", *SHORT_SFT)))
    for shared, one in zip(read(tmp_path / "supervised/out"), alone, strict=True):
        for name in ("update/loss", "update/grad_norm", "update/tokens"):
            assert shared[name] == pytest.approx(one[name], rel=1e-5), name
    # `uninterrupted` has another mesh: data=8.
    for run_folder in (uninterrupted, *(tmp_path / mesh for mesh in MESHES)):
        assert_same_steps(read(run_folder / "out")[:5], expected)
        assert texts(run_folder, 5) == texts(tmp_path, 5)


GATHER_UNTIL_DEATH = """
import os, signal, sys, time
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed import processes
from jaxgrpo.errors import UserError

def main(argv):
    address, process, what = argv[0], int(argv[1]), argv[2]
    processes.HEARTBEAT_SECONDS = 10
    processes.JOIN_TIMEOUT_SECONDS = 3 if what == "nobody comes" else 60
    if what == "nobody comes" and process == 0:
        return
    processes.join_processes(address, 2, process)
    for size in (0, 3, 3000, 50000, 7):
        values = [{"process": p, "text": "\\u00e9" * (size + p)} for p in range(2)]
        assert processes.gather_json(values[process]) == values
    processes.print0("exchanged")
    if what == "bad input" and process == 1:
        raise UserError("the file is\\nnot there")
    if what == "crash" and process == 0:
        raise ZeroDivisionError("a bug")
    if what == "killed" and process == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "killed in its sleep":
        time.sleep(0.5)
        if process == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
    while True:
        processes.gather_json(1)

run_main(main)
"""


GATHER_UNTIL_SIGNAL = """
import os, signal, sys
from jaxgrpo.distributed import processes
from jaxgrpo.signals import noted_signals

with noted_signals() as signals:
    processes.join_processes(sys.argv[1], 2, int(sys.argv[2]))
    turns = 0
    while not any(processes.gather_json(bool(signals))):
        turns += 1
        if turns == 5 and sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
    print("left after", turns, "turns")
"""


@pytest.mark.parametrize(
    ("what", "codes", "message"),
    [
        ("bad input", (None, 2), "error: the file is not there\n"),
        ("crash", (1, None), "ZeroDivisionError: a bug\n"),
        ("killed", (-signal.SIGKILL, None), ""),
        ("killed in its sleep", (None, -signal.SIGKILL), ""),
        (
            "nobody comes",
            (0, None),
            "the processes did not meet within 3 s; see that all of them are started",
        ),
    ],
)
def test_what_ends_one_process_ends_them_all(what, codes, message):
    """Process 0 is the coordinator. codes: exit codes; None stands for any but 0."""
    address = f"127.0.0.1:{free_port()}"
    started_at = time.monotonic()
    command = [sys.executable, "-c", GATHER_UNTIL_DEATH, address]
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": ROOT,
    }
    results = wait_for_all(
        [
            subprocess.Popen([*command, str(process), what], **pipes)
            for process in range(2)
        ]
    )
    assert time.monotonic() - started_at < 60
    met = what != "nobody comes"
    assert [output.count("exchanged") for _, output, _ in results] == [met, 0]
    assert any(message in errors for _, _, errors in results)
    for expected_code, (code, _, errors) in zip(codes, results, strict=True):
        assert code == expected_code or (expected_code is None and code != 0), errors
        assert len(re.findall(DEATH_REPORT, errors)) == met, errors


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # the batch script itself
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"worker-network-endpoints": "t1v-w-0,t1v-w-1"}, True),
        ({"worker-network-endpoints": "t1v-w-0"}, False),
        (
            {
                "worker-network-endpoints": "t1v-w-0",
                "tpu-env": "MEGASCALE_NUM_SLICES: '2'",
            },
            True,
        ),
        (
            {"worker-network-endpoints": "t1v-w-0,t1v-w-1", "TPU_SKIP_MDS_QUERY": "1"},
            False,
        ),
    ],
)
def test_the_environment_says_whether_there_are_several(
    monkeypatch, environment, several
):
    for name in (
        "SLURM_STEP_NODELIST",
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "MEGASCALE_NUM_SLICES",
        "TPU_SKIP_MDS_QUERY",
    ):
        monkeypatch.delenv(name, raising=False)

    @contextlib.contextmanager
    def metadata_server(request, timeout):
        name = request.full_url.rpartition("/")[2]
        if name not in environment:
            raise OSError("no such host")
        yield io.BytesIO(environment[name].encode())

    monkeypatch.setattr("urllib.request.urlopen", metadata_server)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not any(name.startswith(("SLURM", "OMPI")) for name in environment):
        monkeypatch.setattr(
            processes.jax, "config", type("Config", (), {"jax_platforms": "tpu,cpu"})
        )
    assert processes._environment_has_several_processes() == several


def test_all_leave_at_the_same_turn_whichever_of_them_is_told_to():
    """JAX can handle SIGTERM too, which must not take the signal away from the program."""
    address = f"127.0.0.1:{free_port()}"
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": ROOT,
    }
    results = wait_for_all(
        [
            subprocess.Popen(
                [sys.executable, "-c", GATHER_UNTIL_SIGNAL, address, str(i)], **pipes
            )
            for i in range(2)
        ]
    )
    assert [code for code, _, _ in results] == [0, 0], results
    assert not any("error:" in errors for _, _, errors in results), results
    assert [output.splitlines()[-1] for _, output, _ in results] == [
        "left after 5 turns"
    ] * 2


def test_alone_nothing_happens(capsys):
    processes.join_processes("off", 1, 0)
    processes.join_processes("auto", 1, 0)
    assert processes.is_alone()
    processes.print0("hello", end="")
    assert capsys.readouterr().out == "hello"
    with pytest.raises(SystemExit) as exit_request:
        processes.exit_process(2)
    assert exit_request.value.code == 2


@pytest.mark.parametrize(
    ("distributed", "message"),
    [
        (
            Distributed("10.0.0.1"),
            r"distributed.coordinator is '10.0.0.1': it must be auto, off, or a host:port",
        ),
        (Distributed("host:99999", 2), r"'host:99999': it must be"),
        (Distributed(":80", 2), r"':80': it must be"),
        (
            Distributed("host:80", 2, 2),
            r"distributed.process is 2 of distributed.processes=2: it must be 0 to 1",
        ),
        (Distributed("host:80", 2, -1), r"distributed.process is -1"),
        (
            Distributed("auto", 2, 1),
            r"distributed.processes is 2 and process 1, with distributed.coordinator 'auto': give",
        ),
        (Distributed("off", 0), r"distributed.processes is 0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, distributed, message):
    settings = make_config(tmp_path)
    settings.distributed = distributed
    with pytest.raises(UserError, match=message):
        config.validate(settings)


def test_a_run_that_began_without_them_goes_on_with_processes_and_another_mesh(
    tmp_path,
):
    settings = make_config(tmp_path)
    config.save(settings, settings.out)
    description = Path(settings.out) / "config.json"
    saved = json.loads(description.read_text())
    del saved["distributed"]
    description.write_text(json.dumps(saved))
    overrides = (
        "distributed.coordinator=a:1",
        "distributed.processes=2",
        "mesh.fsdp=2",
    )
    config.check_same(make_config(tmp_path, *overrides), settings.out)
    with pytest.raises(UserError, match="seed"):
        config.check_same(make_config(tmp_path, "seed=2", "mesh.fsdp=2"), settings.out)


def test_two_processes_evaluate_as_one_and_read_what_is_there(tmp_path):
    files = ("evaluation.jsonl", "evaluation.json", "evaluation.csv")
    outs = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        outs[count] = folder / "out"
        outs[count].mkdir(parents=True)
        if count == 2:
            # The first three problems have been sampled already.
            whole = (outs[1] / files[0]).read_text().splitlines(keepends=True)
            (outs[2] / files[0]).write_text("".join(whole[:3]))
        finish(
            launch(
                count,
                8 // count,
                folder,
                "evaluation.problems=6",
                program="jaxgrpo.evaluate",
            )
        )
    for name in files:
        assert (outs[1] / name).read_text() == (outs[2] / name).read_text(), name
