"""Several real processes make the run that one makes; when one of them goes, all end, and the run goes on with any number."""

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
from jaxgrpo.train import train
from tests.tiny_devices import flags, output_on_devices
from tests.tiny_runs import ROOT, TEXT, config_file, lines, make_config, start

OTHERS = ("time/", "rollout/", "memory/")
"""What depends on how fast things go, or on how many devices there are."""
SHORT = ("evaluation.problems=0", "sampling.slots=8", "show_rollouts_every=1")
DELAYED = "from jaxgrpo.rewards import languages\nfrom tests.slow_rewards import Delayed"
SAYS_SO = r"error: process \d of 2 (was ended|ends the run) .*start all of them again with the same command to go on from"


def launch(
    count: int, devices: int, folder: Path, *overrides: str, text: str = TEXT
) -> list[subprocess.Popen]:
    """A run as so many processes of so many devices each, in folder/out."""
    several = f"127.0.0.1:{free_port()}" if count > 1 else "off"
    settings = [
        f"--config.{override}"
        for override in (*SHORT, *overrides, f"distributed.coordinator={several}")
    ]
    environment = {
        "XLA_FLAGS": flags(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    file = config_file(folder, text)
    return [
        start(
            "jaxgrpo.train",
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


def ends(launched: list[subprocess.Popen], seconds: float = 300) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of each process; none outlives the test."""
    try:
        return [
            (process.returncode, *said)
            for process in launched
            for said in [process.communicate(timeout=seconds)]
        ]
    finally:
        for process in launched:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def finish(launched: list[subprocess.Popen]) -> None:
    for code, _, errors in ends(launched):
        assert code == 0, errors[-3000:]


def assert_same_steps(found: list[dict], expected: list[dict]) -> None:
    """The same but for the order of additions."""
    same = lambda step: {name for name in step if not name.startswith(OTHERS)}
    assert [step["step"] for step in found] == [step["step"] for step in expected]
    for here, there in zip(found, expected, strict=True):
        assert same(here) == same(there)
        for name in same(here):
            np.testing.assert_allclose(
                *(np.array(step[name], float) for step in (here, there)), 1e-5, 1e-5, err_msg=name
            )


def texts(folder: Path, steps: int) -> list[tuple]:
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
    """Where two processes of four devices trained until one was killed, how many steps they took, and how they ended."""
    here = folder / "killed"
    here.mkdir()
    launched = launch(2, 4, here, "steps=100")
    deadline = time.monotonic() + 300
    while (
        len(read(here / "out")) < 2 and time.monotonic() < deadline and launched[0].poll() is None
    ):
        time.sleep(0.01)
    launched[1].kill()
    began = time.monotonic()
    results = ends(launched)
    return here, len(read(here / "out")), results, time.monotonic() - began


@pytest.fixture(scope="module")
def whole(folder, killed):
    """Where one process of eight devices trained for two steps more than those got."""
    here = folder / "whole"
    here.mkdir()
    finish(launch(1, 8, here, f"steps={max(5, killed[1] + 2)}"))
    return here


def test_a_killed_process_ends_all_of_them_within_a_minute_and_they_say_so(killed):
    _, steps, results, seconds = killed
    assert steps >= 2, results[0][2]
    assert results[1][0] == -signal.SIGKILL
    assert results[0][0] != 0
    for _, _, errors in results:
        assert re.search(SAYS_SO, errors), errors
    assert seconds < 60


def test_two_processes_make_the_run_that_one_makes(killed, whole):
    here, steps, *_ = killed
    assert_same_steps(read(here / "out"), read(whole / "out")[:steps])
    assert texts(here, steps) == texts(whole, steps)
    assert len(set(texts(whole, steps))) == 2 * steps


@pytest.mark.parametrize(("count", "devices"), [(1, 8), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(folder, killed, whole, count, devices):
    here = folder / f"resumed_{count}"
    here.mkdir()
    shutil.copytree(killed[0] / "out", here / "out")
    steps = killed[1] + 2
    finish(launch(count, devices, here, f"steps={steps}"))
    assert_same_steps(read(here / "out"), read(whole / "out")[:steps])
    assert texts(here, steps) == texts(whole, steps)


def test_two_processes_that_keep_what_is_in_flight_make_the_run_that_one_makes(folder):
    """Random delays of the reward are other delays in each of them."""
    runs = []
    for count, devices in ((1, 8), (2, 4)):
        here = folder / f"keeping_{count}"
        here.mkdir()
        text = TEXT.replace("Weighted(maths.accuracy)", "Weighted(Delayed(0.0, 0.05))")
        text = text.replace("from jaxgrpo.rewards import language, math", DELAYED)
        finish(launch(count, devices, here, "steps=5", "sampling.keep_in_flight=True", text=text))
        steps = read(here / "out")
        figures = ("rollout/age", "rollout/age_max", "rollout/in_flight")
        kept = [[step[name] for name in figures] for step in steps]
        runs.append((steps, kept, texts(here, 5)))
    assert_same_steps(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert max(age for _, age, _ in runs[0][1]) > 0


MESHES = ("data=1 fsdp=8", "data=2 fsdp=2 tensor=2", "fsdp=2 tensor=4")


def train_on_meshes() -> None:
    """Run in a process with eight devices: five steps on each mesh, beside the config file."""
    file = os.environ["TINY_CONFIG"]
    for mesh in MESHES:
        out = Path(file).parent / mesh / "out"
        overrides = (
            *SHORT,
            *(f"mesh.{size}" for size in mesh.split()),
            "steps=5",
            "save_every=9",
            f"out={out}",
        )
        assert (
            len(list(train(config.load(file, [f"--config.{override}" for override in overrides]))))
            == 5
        )


def test_every_mesh_makes_the_run_that_one_device_makes(tmp_path, whole, monkeypatch):
    expected = list(train(make_config(tmp_path, *SHORT, "steps=5", "save_every=9")))
    monkeypatch.setenv("TINY_CONFIG", str(tmp_path / "tiny.py"))
    output_on_devices(train_on_meshes)
    for place in (whole, *(tmp_path / mesh for mesh in MESHES)):  # `whole` is data=8
        assert_same_steps(read(place / "out")[:5], expected)
        assert texts(place, 5) == texts(tmp_path, 5)


TURNS = """
import os, signal, sys, time
from jaxgrpo import processes
from jaxgrpo.config.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.distributed.mesh import exchange

def main(argv):
    address, process, what = argv[0], int(argv[1]), argv[2]
    processes.HEARTBEAT = 10
    processes.MEETING = 3 if what == "nobody comes" else 60
    if what == "nobody comes" and process == 0:
        return
    processes.join(address, 2, process)
    for size in (0, 3, 3000, 50000, 7):
        values = [{"process": p, "text": "\\u00e9" * (size + p)} for p in range(2)]
        assert exchange(values[process]) == values
    processes.say("exchanged")
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
        exchange(1)

run_main(main)
"""


SIGNALLED = """
import os, signal, sys
from jaxgrpo import processes
from jaxgrpo.distributed.mesh import exchange
from jaxgrpo.train import noted_signals

with noted_signals() as signals:
    processes.join(sys.argv[1], 2, int(sys.argv[2]))
    turns = 0
    while not any(exchange(bool(signals))):
        turns += 1
        if turns == 5 and sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
    print("left after", turns, "turns")
"""


@pytest.mark.parametrize(
    ("what", "codes", "said"),
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
def test_what_ends_one_process_ends_them_all(what, codes, said):
    """The first of them is the coordinator. codes: None stands for anything but 0."""
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    command = [sys.executable, "-c", TURNS, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    results = ends(
        [subprocess.Popen([*command, str(process), what], **pipes) for process in range(2)]
    )
    assert time.monotonic() - began < 60
    met = what != "nobody comes"
    assert [result[1].count("exchanged") for result in results] == [met, 0]
    assert any(said in errors for _, _, errors in results)
    for code, (found, _, errors) in zip(codes, results, strict=True):
        assert found == code or (code is None and found != 0), errors
        assert len(re.findall(SAYS_SO, errors)) == met, errors


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
        ({"worker-network-endpoints": "t1v-w-0", "tpu-env": "MEGASCALE_NUM_SLICES: '2'"}, True),
        ({"worker-network-endpoints": "t1v-w-0,t1v-w-1", "TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_the_environment_says_whether_there_are_several(monkeypatch, environment, several):
    for name in (
        "SLURM_STEP_NODELIST",
        "SLURM_NTASKS",
        "OMPI_COMM_WORLD_SIZE",
        "MEGASCALE_NUM_SLICES",
        "TPU_SKIP_MDS_QUERY",
    ):
        monkeypatch.delenv(name, raising=False)

    @contextlib.contextmanager
    def asked(request, timeout):
        name = request.full_url.rpartition("/")[2]
        if name not in environment:
            raise OSError("no such host")
        yield io.BytesIO(environment[name].encode())

    monkeypatch.setattr("urllib.request.urlopen", asked)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not any(name.startswith(("SLURM", "OMPI")) for name in environment):
        monkeypatch.setattr(
            processes.jax, "config", type("Config", (), {"jax_platforms": "tpu,cpu"})
        )
    assert processes._are_several() == several


def test_all_leave_at_the_same_turn_whichever_of_them_is_told_to():
    """JAX has an eye on SIGTERM, too, which must not cost us ours."""
    address = f"127.0.0.1:{free_port()}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    results = ends(
        [
            subprocess.Popen([sys.executable, "-c", SIGNALLED, address, str(i)], **pipes)
            for i in range(2)
        ]
    )
    assert [code for code, _, _ in results] == [0, 0], results
    assert not any("error:" in errors for _, _, errors in results), results
    assert [output.splitlines()[-1] for _, output, _ in results] == ["left after 5 turns"] * 2


def test_alone_nothing_happens(capsys):
    processes.join_processes("off", 1, 0)
    processes.join_processes("auto", 1, 0)
    assert processes.is_alone()
    processes.print0("hello", end="")
    assert capsys.readouterr().out == "hello"
    with pytest.raises(SystemExit) as left:
        processes.exit_process(2)
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("several", "message"),
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
def test_settings_that_cannot_be_are_named(tmp_path, several, message):
    settings = make_config(tmp_path)
    settings.distributed = several
    with pytest.raises(UserError, match=message):
        config.validate(settings)


def test_a_run_that_began_without_them_goes_on_with_processes_and_another_mesh(tmp_path):
    settings = make_config(tmp_path)
    config.save(settings, settings.out)
    description = Path(settings.out) / "config.json"
    begun = json.loads(description.read_text())
    del begun["distributed"]
    description.write_text(json.dumps(begun))
    config.check_same(
        make_config(
            tmp_path, "distributed.coordinator=a:1", "distributed.processes=2", "mesh.fsdp=2"
        ),
        settings.out,
    )
    with pytest.raises(UserError, match="seed"):
        config.check_same(make_config(tmp_path, "seed=2", "mesh.fsdp=2"), settings.out)
