"""A run's metrics are in the trackers that it names, and a resumed run goes on in the same place.

All of them write into folders here; nothing goes over a network.
"""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from mlflow import MlflowClient
from wandb.proto import wandb_internal_pb2

from jaxgrpo import trackers
from jaxgrpo.errors import UserError
from jaxgrpo.metrics import Writer
from jaxgrpo.train import train
from tests.tiny_runs import ROOT, lines, make_config, share_programs

STEPS = {1: {"reward/accuracy": 0.5}, 2: {"reward/accuracy": 0.25, "a/b/c": 1.0}}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Nothing of this machine's own accounts is asked, and no server."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def wandb_records(path: Path) -> list[wandb_internal_pb2.Record]:
    """Returns the records of a .wandb file, which is a log of LevelDB's form.

    After 7 bytes of a header come blocks of 32 KiB; a record is in one piece or several, each with
    a checksum, a length and its kind: whole, first, middle or last.
    """
    data = path.read_bytes()
    records, pieces, position = [], b"", 7
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:  # too little for the next piece's head
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


def wandb_history(out: Path, steps: int = 2) -> dict[str, list[dict]]:
    """Returns what the offline runs in a folder have logged, by the run's id.

    W&B's service may write the last of it after a run has finished: so many steps are waited for.
    """
    for _ in range(300):
        history = wandb_written(out)
        if sum(map(len, history.values())) >= steps:
            break
        time.sleep(0.1)
    return history


def wandb_written(out: Path) -> dict[str, list[dict]]:
    """Returns what the files of the offline runs in a folder hold by now, by the run's id."""
    history: dict[str, list[dict]] = {}
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                history.setdefault(path.stem, []).append(values)
    return history


def mlflow_history(out: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Returns what the runs in OUT/mlruns hold: run id -> metric -> step -> value."""
    client = MlflowClient(tracking_uri=(out / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    return {
        run.info.run_id: {
            name: {
                metric.step: metric.value
                for metric in client.get_metric_history(run.info.run_id, name)
            }
            for name in run.data.metrics
        }
        for run in client.search_runs([experiment.experiment_id])
    }


def test_a_run_is_in_wandb_and_mlflow(tmp_path, monkeypatch):
    share_programs(monkeypatch)
    config = make_config(
        tmp_path, "steps=2", "trackers=wandb,mlflow", "evaluation.problems=0"
    )
    list(train(config))
    out = Path(config.out)
    written = lines(out / "metrics.jsonl")
    finite = [
        {name: value for name, value in line.items() if value is not None}
        for line in written
    ]

    (logged,) = wandb_history(out).values()
    assert [line["_step"] for line in logged] == [1, 2]
    for line, values in zip(finite, logged, strict=True):
        assert {name: values[name] for name in line if name != "step"} == {
            name: value for name, value in line.items() if name != "step"
        }

    (metrics,) = mlflow_history(out).values()
    for line in finite:
        for name, value in line.items():
            if name != "step":
                # mlruns/ is of folders: a metric cannot be one and hold others.
                stage, _, rest = name.partition("/")
                flat = f"{stage}/{rest.replace('/', '.')}"
                assert metrics[flat][line["step"]] == value, name
    client = MlflowClient(tracking_uri=(out / "mlruns").absolute().as_uri())
    run = client.get_run(json.loads((out / "trackers.json").read_text())["mlflow"])
    assert run.data.params["batch.group_size"] == "4"
    assert run.info.status == "FINISHED"
    assert not (out / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "history"), [("wandb", wandb_history), ("mlflow", mlflow_history)]
)
def test_a_resumed_run_goes_on_in_the_same_run(tmp_path, name, history):
    for step, values in STEPS.items():
        with Writer(tmp_path, step, trackers=[name], settings={"seed": 0}) as writer:
            writer.write(step, values)
    (entries,) = history(tmp_path).values()
    if name == "wandb":
        assert [entry["_step"] for entry in entries] == [1, 2]
        assert [entry["reward/accuracy"] for entry in entries] == [0.5, 0.25]
    else:
        assert entries == {"reward/accuracy": {1: 0.5, 2: 0.25}, "a/b.c": {2: 1.0}}


def test_nothing_is_imported_that_is_not_asked_for():
    code = (
        "import jaxgrpo.train, sys\n"
        "print({'wandb', 'mlflow', 'tensorboardX'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    class Failing:
        def __init__(self, out, start_step, settings):
            pass

        def log(self, step, metrics):
            raise ConnectionError("nobody answers")

        def close(self):
            raise ConnectionError("nobody answers")

    library = trackers.TRACKERS["mlflow"]._replace(make=Failing)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", library)
    with Writer(tmp_path, trackers=["mlflow", "tensorboard"]) as writer:
        for step, values in STEPS.items():
            writer.write(step, values)
    said = capsys.readouterr().out
    assert said.count("mlflow failed, and training went on without it") == 1
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://there")
    with pytest.raises(UserError, match="mlflow cannot be opened: "):
        Writer(tmp_path, trackers=["mlflow"])


def test_an_unknown_tracker_is_refused_before_anything_is_made(tmp_path):
    config = make_config(tmp_path, "trackers=wandb,mlfow")
    with pytest.raises(UserError, match="trackers is 'mlfow': it must be one of tens"):
        next(train(config))
    assert not Path(config.out).exists()


def test_a_tracker_without_its_library_is_refused_before_anything_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(
        trackers.TRACKERS,
        "wandb",
        trackers.TRACKERS["wandb"]._replace(module="not_installed"),
    )
    config = make_config(tmp_path, "trackers=wandb")
    with pytest.raises(UserError, match=r"pip install 'jaxgrpo\[wandb\]'"):
        next(train(config))
    assert not Path(config.out).exists()


def test_a_login_that_nobody_could_answer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="run `wandb login` first, or set WANDB_MODE"):
        trackers.check(["wandb"])
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check(["wandb"])
