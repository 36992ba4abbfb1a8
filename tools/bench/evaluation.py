"""`python -m tools.bench evaluate`: what an evaluation takes beside the sampling of its tokens.

With --every also what evaluations take of a run.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from jaxgrpo.build import Run, build_run, load_policy
from jaxgrpo.config import Config, load
from jaxgrpo.evaluate import evaluate, sampling_request
from jaxgrpo.rollout.protocols import SamplingUsage
from jaxgrpo.train import train
from jaxgrpo.types import Params
from tools.bench.turns import (
    Calls,
    Result,
    compile_counter,
    medians,
    seconds_in_turns,
    time_turn,
)

MAX_RATIO = 1.1
"""Times the engine's own time that an evaluation may take."""

MAX_RUN_RATIO = 1.3
"""Times the time of a run without evaluations that one with them may take."""


def bench_evaluate(arguments: argparse.Namespace) -> Result:
    """Times an evaluation, and the engine alone as it makes the same completions, of which none is
    then judged. With --every also a run that is evaluated so often, and one that is not."""
    config = make_config(arguments)
    with build_run(config) as run:
        params, _ = load_policy(run.programs, run.model_folder, bool(config.lora.rank))
        run.engine.warm_up(params)
        usages: list[SamplingUsage] = []
        calls: Calls = {
            "evaluate": partial(evaluate, run, params),
            "engine": lambda: usages.append(sample_alone(run, params)),
        }
        time_turn(calls, "warming up")
        compiled = compile_counter().count
        seconds = seconds_in_turns(calls, arguments.repeats)
        recompiles = compile_counter().count - compiled
    if arguments.every:
        never = replace(config, steps=arguments.steps)
        every = replace(config.evaluation, every=arguments.every)
        calls = {
            "run": partial(train_anew, never),
            "evaluated_run": partial(train_anew, replace(never, evaluation=every)),
        }
        time_turn(calls, "warming up")
        seconds |= seconds_in_turns(calls, arguments.repeats)
    return summarise(seconds, usages[-1].tokens) | {"recompiles": recompiles}


def make_config(arguments: argparse.Namespace) -> Config:
    """Returns the config that is evaluated, with as many problems and samples as are asked for."""
    flags = ["--config.quiet=true", "--config.evaluation.every=0"]
    for name in ("problems", "samples"):
        if (value := getattr(arguments, name)) is not None:
            flags.append(f"--config.evaluation.{name}={value}")
    return load(arguments.config, flags)


def sample_alone(run: Run, params: Params) -> SamplingUsage:
    """Samples what an evaluation samples; returns what it took."""
    session = run.engine.session(
        params, run.heldout, sampling_request(run.config), step=0
    )
    for _ in session.groups():
        pass
    return session.usage


def train_anew(config: Config) -> None:
    """Makes a whole run, in a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(replace(config, out=f"{folder}/out")):
            pass


def summarise(seconds: dict[str, list[float]], tokens: int) -> Result:
    """Returns the medians of times and of the turns' ratios.

    seconds: of each call, turn by turn
    tokens: of the evaluation's completions

    within: whether the ratios are as small as is claimed
    """
    median = medians(seconds)
    ratio = median_ratio(seconds["evaluate"], seconds["engine"])
    result: Result = {
        "seconds": seconds["evaluate"],
        "median_s": median["evaluate"],
        "engine_s": median["engine"],
        "tokens": tokens,
        "engine_tokens_per_s": tokens / median["engine"],
        "ratio": ratio,
        "within": ratio <= MAX_RATIO,
    }
    if "run" not in median:
        return result
    run_ratio = median_ratio(seconds["evaluated_run"], seconds["run"])
    return result | {
        "run_s": median["run"],
        "evaluated_run_s": median["evaluated_run"],
        "run_ratio": run_ratio,
        "within": ratio <= MAX_RATIO and run_ratio <= MAX_RUN_RATIO,
    }


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median over turns: what else the machine does in a turn falls on both."""
    return statistics.median(
        time / other for time, other in zip(times, others, strict=True)
    )
