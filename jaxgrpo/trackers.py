"""Trackers of a run's metrics: TensorBoard, Weights & Biases, MLflow, behind one interface.

A tracker is imported only when the setting `trackers` names it. A run that goes on continues the
run that it began in W&B or MLflow, whose id is in OUT/trackers.json. Where they keep it is said by
their own environment variables: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxgrpo.errors import UserError, check_choice
from jaxgrpo.files import write_json

PROJECT = "jaxgrpo"
"""The project in W&B, and the experiment in MLflow, where the environment names none."""

Settings = Mapping[str, object]
"""A run's settings as JSON values, by dotted name."""


class Tracker(Protocol):
    """Somewhere that metrics are sent to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step, all of them finite."""
        ...

    def close(self) -> None:
        """Returns when everything has been sent."""
        ...


class TensorBoard:
    """Writes OUT/tensorboard.

    start_step: what an earlier process wrote for this step and later is hidden
    """

    def __init__(self, out: Path, start_step: int, settings: Settings) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        # A checkpoint that is saved after this step must not be ahead of its metrics.
        self._writer.flush()

    def close(self) -> None:
        """Returns when everything has been sent."""
        self._writer.close()


class WeightsAndBiases:
    """Writes a run of Weights & Biases; with WANDB_MODE=offline into OUT/wandb.

    W&B drops what is logged again for a step that it has, which a resumed run does.
    """

    def __init__(self, out: Path, start_step: int, settings: Settings) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", out.name),
            id=_saved_id(out, "wandb"),
            resume="allow",
            dir=str(out),
            config=dict(settings),
            # The console's lines and the progress bar stay the run's own.
            settings=wandb.Settings(console="off"),
        )
        _save_id(out, "wandb", self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Returns when everything has been sent."""
        self._run.finish()


class MLflow:
    """Writes a run of MLflow, to MLFLOW_TRACKING_URI or else into OUT/mlruns.

    MLflow's local folders cannot hold a metric `a/b` beside a metric `a/b/c`, so the second is
    called `a/b.c`. A step that a resumed run does again is there twice, with the same values.
    """

    def __init__(self, out: Path, start_step: int, settings: Settings) -> None:
        # MLflow asks for this before it writes a folder instead of a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # What a run does is told to nobody but the tracker that was asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        folder = (out / "mlruns").absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        run_id = _saved_id(out, "mlflow")
        if run_id is None:
            run_id = self._begin(out.name, settings)
            _save_id(out, "mlflow", run_id)
        self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def _begin(self, name: str, settings: Settings) -> str:
        """Returns the id of a new run, which has the settings as its parameters."""
        from mlflow.entities import Param

        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(experiment_name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(experiment_name)
        )
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        params = [Param(key, str(value)) for key, value in settings.items()]
        # MLflow takes at most a hundred at once.
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [
            Metric(_flat_name(name), value, now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._run_id, metrics=entries)

    def close(self) -> None:
        """Returns when everything has been sent."""
        self._client.set_terminated(self._run_id)


class Library(NamedTuple):
    """A tracker, and how its library is installed.

    module: what is imported
    install: the pip command
    """

    make: Callable[[Path, int, Settings], Tracker]
    module: str
    install: str


TRACKERS = {
    "tensorboard": Library(TensorBoard, "tensorboardX", "pip install 'jaxgrpo[train]'"),
    "wandb": Library(WeightsAndBiases, "wandb", "pip install 'jaxgrpo[wandb]'"),
    "mlflow": Library(MLflow, "mlflow", "pip install 'jaxgrpo[mlflow]'"),
}
"""The trackers by the name that the setting `trackers` has for them."""


def check(names: Sequence[str]) -> None:
    """Raises UserError if there is no such tracker, or it cannot be used here."""
    for name in names:
        check_choice("trackers", name, TRACKERS)
        module, install = TRACKERS[name].module, TRACKERS[name].install
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"trackers has {name!r}, and {module} is not installed: {install}"
            )
    if "wandb" in names:
        _check_login()


def _check_login() -> None:
    """Raises UserError if W&B would ask who is there, which nobody may be there to answer."""
    import wandb

    is_online = wandb.setup().settings.mode in ("online", "shared")
    if is_online and not wandb.login(prompt=False):
        raise UserError(
            "trackers has 'wandb', which knows no key of yours: run `wandb login` first, or set "
            "WANDB_MODE=offline"
        )


class Trackers:
    """Several trackers as one, which training survives: OUT/metrics.jsonl has everything anyway.

    names: of trackers, those of TRACKERS
    out: the run's folder
    start_step: the first step that will be logged
    settings: for the trackers that show them
    say: prints a line

    Raises UserError if one cannot be opened.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        start_step: int,
        settings: Settings,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._failed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                tracker = TRACKERS[name].make(out, start_step, settings)
            # Whatever a library raises where its server cannot be reached, or knows no such run.
            except Exception as error:
                raise UserError(f"{name} cannot be opened: {error}") from error
            self._trackers[name] = tracker

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step; the first time that a tracker fails, it is said."""
        for name, tracker in self._trackers.items():
            self._guard(name, partial(tracker.log, step, metrics))

    def close(self) -> None:
        """Returns when everything has been sent that can be."""
        for name, tracker in self._trackers.items():
            self._guard(name, tracker.close)

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """Calls a function of a tracker, and says it if that fails for the first time."""
        try:
            act()
        # Days of training must not end because a server does not answer.
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                self._say(f"{name} failed, and training went on without it: {error}")


def _flat_name(name: str) -> str:
    """Returns a metric's name with a dot for each slash but the first: "verdict/missing.crash"."""
    stage, slash, rest = name.partition("/")
    return stage + slash + rest.replace("/", ".")


def _read_ids(out: Path) -> dict[str, Any]:
    """Returns OUT/trackers.json: the ids of the runs, by tracker; {} if there is no such file."""
    path = out / "trackers.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _saved_id(out: Path, tracker: str) -> str | None:
    """Returns the id of the run that this run's folder has begun in a tracker."""
    return _read_ids(out).get(tracker)


def _save_id(out: Path, tracker: str, run_id: str) -> None:
    """Writes the id of this run in a tracker to OUT/trackers.json."""
    write_json(out / "trackers.json", _read_ids(out) | {tracker: run_id})
