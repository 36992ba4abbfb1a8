"""Profiles one GRPO step: a trace for Perfetto and XProf, and a table of where the time goes.

    python -m tools.profile --config quickstart --config.seed=1 --to out/profile

Without --config it is the quickstart. The step is one of the run that the config describes, without
evaluation, after a step in which nothing compiled any more. Written are a trace that
ui.perfetto.dev opens, TO/plugins/profile/*/perfetto_trace.json.gz, the same for XProf beside it,
and the table as TO/profile.json and TO/profile.md.
"""

import argparse
import contextlib
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax

from jaxgrpo.config import Config, load
from jaxgrpo.config.command_line import run_main, split
from jaxgrpo.files import write_json
from jaxgrpo.train import Metrics, train
from tools.bench.turns import Machine, compile_counter, time_turn
from tools.profile import table
from tools.profile.events import STEP, read_trace
from tools.profile.kinds import LoadedPrograms
from tools.profile.shares import step_shares

MAX_WARM_UP = 5
"""Steps before the profiled one, at most."""


class _ProfiledError(Exception):
    """Ends a run whose step has been profiled."""


def profile_config(config: Config, out: Path) -> Config:
    """Returns a config whose first steps are those of `config`, and nothing else.

    out: where the run writes
    """
    return replace(
        config,
        out=str(out),
        steps=max(config.steps, MAX_WARM_UP + 1),
        evaluation=replace(config.evaluation, problems=0),
        # A checkpoint is no part of a step.
        save_every=config.steps + MAX_WARM_UP + 2,
    )


def warm_up(steps: Iterator[Metrics]) -> Metrics:
    """Takes steps until nothing compiles in one; returns that one's metrics."""
    counter = compile_counter()
    for _ in range(MAX_WARM_UP):
        count = counter.count
        metrics = next(steps)
        if counter.count == count:
            break
    return metrics


def trace_step(steps: Iterator[Metrics], folder: Path) -> Metrics:
    """Takes a step under the profiler, which writes into the folder; returns its metrics."""
    trace = jax.profiler.trace(folder, create_perfetto_trace=True)
    with trace, jax.profiler.TraceAnnotation(STEP):
        return next(steps)


def profile_step(config: Config, folder: Path) -> dict[str, Any]:
    """Takes the steps of a run up to the profiled one, and returns the profile without rates."""
    counter = compile_counter()
    with tempfile.TemporaryDirectory() as out:
        run_config = profile_config(config, Path(out) / "run")
        # A generator, to which an error can be thrown.
        steps = cast(Generator[Metrics, None, None], train(run_config))
        metrics = warm_up(steps)
        count = counter.count
        traced = trace_step(steps, folder)
        compiles = counter.count - count
        programs = LoadedPrograms()
        # An error ends the run without a checkpoint, which close() would save.
        with contextlib.suppress(_ProfiledError):
            steps.throw(_ProfiledError)
    path = newest_trace(folder)
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "step_s": metrics["time/step"],
        "traced_step_s": traced["time/step"],
        "compiles": compiles,
        "shares": step_shares(read_trace(path), programs),
        "metrics": {
            name: value
            for name, value in metrics.items()
            # JSON has no word for the age of no token.
            if name.startswith(("perf/", "rollout/", "time/")) and math.isfinite(value)
        },
        "trace": str(path),
    }


def newest_trace(folder: Path) -> Path:
    """Returns the newest xplane.pb of the profiler in a folder."""
    paths = folder.glob("plugins/profile/*/*.xplane.pb")
    return max(paths, key=lambda path: path.stat().st_mtime)


def machine_rates(dtype: str, repeats: int = 3) -> dict[str, float]:
    """Returns the FLOP/s of a bare matrix product and the bytes/s of a copy, as a run's shares.

    A CPU that is divided into several devices is measured whole, and divided.
    """
    machine = Machine(dtype)
    calls: dict[str, Callable[[], object]] = {
        "multiply": machine.multiply,
        "copy": machine.copy,
    }
    turns = [time_turn(calls, "machine") for _ in range(repeats + 1)][1:]
    sharing = jax.device_count() if jax.default_backend() == "cpu" else 1
    multiply_s = statistics.median(turn["multiply"] for turn in turns)
    copy_s = statistics.median(turn["copy"] for turn in turns)
    return {
        "perf/flops_per_s": machine.flops / multiply_s / sharing,
        "perf/decode_bandwidth": machine.bytes / copy_s / sharing,
    }


def rates_of(
    metrics: Metrics, measured: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    """Returns rates with their shares of what was measured, and of the nominal peak if known."""
    nominal = {
        "perf/flops_per_s": metrics.get("perf/mfu"),
        "perf/decode_bandwidth": metrics.get("perf/mbu"),
    }
    names = ("rollout/tokens_per_s", "perf/flops_per_s", "perf/decode_bandwidth")
    return {
        name: {
            "value": metrics[name],
            "of_measured": metrics[name] / measured[name] if name in measured else None,
            "of_nominal": nominal.get(name),
        }
        for name in names
    }


def make_profile(config: Config, name: str, folder: Path) -> dict[str, Any]:
    """Profiles a step; returns what profile.json holds.

    name: the config's, for the table
    """
    profile = {"config": name} | profile_step(config, folder)
    measured = machine_rates(config.dtype)
    return profile | {
        "measured": measured,
        "rates": rates_of(profile["metrics"], measured),
    }


def parse(argv: list[str]) -> tuple[Path, str, list[str]]:
    """Returns the folder to write to, the path of the config file, and its overrides.

    Raises UserError for bad flags.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.profile",
        usage="%(prog)s --config FILE [--config.name=value ...] [--to FOLDER]",
        description=str(__doc__).splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("out/profile"),
        help="folder of trace and table; default out/profile",
    )
    arguments, rest = parser.parse_known_args(argv)
    path, changes, _ = split(rest)
    return arguments.to, path or "quickstart", changes


def main(argv: list[str]) -> None:
    """Profiles a step as the command line says."""
    folder, path, changes = parse(argv)
    # An earlier trace would be shown beside this one.
    shutil.rmtree(folder / "plugins", ignore_errors=True)
    profile = make_profile(load(path, changes), path, folder)
    text = table.markdown(profile)
    write_json(folder / "profile.json", profile)
    (folder / "profile.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n")
    traces = Path(profile["trace"]).parent
    print(
        f"{traces}: perfetto_trace.json.gz for ui.perfetto.dev, *.xplane.pb for XProf"
    )


if __name__ == "__main__":
    run_main(main)
