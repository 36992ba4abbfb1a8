"""Measures what is claimed about time and memory: one subcommand a claim, one line a result.

    python -m tools.bench logprobs --rows 8 --length 1024 --width 896 --vocab 151936 \\
        --dtype bfloat16 --json
    python -m tools.bench rollout --groups 8 --group-size 8 --prompt 64 --new 128 --json
    python -m tools.bench rollout --mean-new 48 --new 384 --groups 32 --group-size 8 --slots 64 \\
        --json
    python -m tools.bench step --micro-batch 16 --json
    python -m tools.bench step --mean-new 48 --new 384 --groups 32 --pack 640 --bins 2 --json
    python -m tools.bench rewards --verdicts 5000 --workers 2 --json
    python -m tools.bench load --gigabytes 3 --json
    python -m tools.bench evaluate --config quickstart --every 4 --json

`rollout` and `step` go through the engine and the compiled programs of a run, on random prompts of
exactly --prompt tokens, with completions of exactly --new. They also measure what the machine can
do in the same minutes, in turns with the work: a bare matrix product and a copy. `floor_s` is the
time that these two alone would take for the work: see performance.Work.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from jaxgrpo.config.command_line import run_main
from tools.bench.evaluation import bench_evaluate
from tools.bench.load import bench_load
from tools.bench.logprobs import bench_logprobs
from tools.bench.rewards import bench_rewards
from tools.bench.sampling import bench_rollout, bench_step
from tools.bench.turns import Result

DTYPES = ("float32", "bfloat16")

Benchmark = Callable[[argparse.Namespace], Result]


class Subcommands:
    """Adds subcommands that have the shared flags, and are named after their functions."""

    def __init__(
        self, parser: argparse.ArgumentParser, shared: argparse.ArgumentParser
    ):
        """Begins with none. shared: the flags of every subcommand"""
        self._subparsers = parser.add_subparsers(required=True, metavar="WHAT")
        self._shared = shared

    def add(self, bench: Benchmark) -> argparse.ArgumentParser:
        """Adds the subcommand of `bench_NAME`, and returns its parser."""
        # What is measured is said once, where it is measured.
        about = bench.__doc__
        parser = self._subparsers.add_parser(
            _name_of(bench), parents=[self._shared], help=about, description=about
        )
        parser.set_defaults(bench=bench)
        return parser


def _name_of(bench: Benchmark) -> str:
    """Returns the name of a subcommand."""
    return bench.__name__.removeprefix("bench_")


def positive(text: str) -> int:
    """Returns a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_logprobs(subcommands: Subcommands) -> None:
    """Adds the subcommand `logprobs`."""
    parser = subcommands.add(bench_logprobs)
    # Small enough for a laptop; the claims of the documentation give larger ones.
    for name, default in (
        ("rows", 8),
        ("length", 256),
        ("width", 896),
        ("vocab", 32768),
    ):
        parser.add_argument(
            f"--{name}", type=positive, default=default, help=f"default {default:,}"
        )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of hidden states and embedding",
    )
    parser.add_argument(
        "--chunk",
        type=positive,
        help="columns of logits held at once; by default what token_logprobs chooses",
    )
    parser.add_argument(
        "--compile-only", action="store_true", help="memory alone: nothing is run"
    )


def add_rollout(subcommands: Subcommands) -> None:
    """Adds the subcommand `rollout`."""
    parser = subcommands.add(bench_rollout)
    _add_sampling_flags(parser)
    parser.add_argument(
        "--keep-in-flight",
        action="store_true",
        help="also take steps whose unfinished completions go on in the next one",
    )


def add_step(subcommands: Subcommands) -> None:
    """Adds the subcommand `step`."""
    parser = subcommands.add(bench_step)
    _add_sampling_flags(parser)
    parser.add_argument(
        "--micro-batch",
        type=positive,
        default=16,
        help="rows of one gradient pass; default 16",
    )
    parser.add_argument(
        "--pack",
        type=positive,
        help="also time a step whose update is on bins of so many columns",
    )
    parser.add_argument(
        "--bins",
        type=positive,
        default=1,
        help="with --pack, bins of one gradient pass; default 1",
    )
    parser.add_argument(
        "--kl",
        type=float,
        default=0.04,
        help="weight of the KL to the reference; default 0.04",
    )
    parser.add_argument(
        "--reward-seconds",
        type=float,
        default=0.0,
        help="also time a reward that takes so long a completion",
    )


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a subcommand that samples."""
    parser.add_argument(
        "--model",
        type=Path,
        help="a Hugging Face folder; by default the embedded model",
    )
    # Numbers that have a default.
    sizes = (
        ("--groups", 8, "prompts"),
        ("--group-size", 8, "completions of each"),
        ("--prompt", 64, "tokens of each prompt"),
        ("--new", 128, "tokens of each completion"),
        ("--chunk", 32, "tokens of a row in a call of decode, at most"),
    )
    for flag, default, about in sizes:
        parser.add_argument(
            flag, type=positive, default=default, help=f"{about}; default {default}"
        )
    parser.add_argument(
        "--slots", type=positive, help="rows sampled side by side; by default all"
    )
    parser.add_argument(
        "--mean-new",
        type=positive,
        help="draw lengths with this mean, cut at --new; rollout also times them batch by batch",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of matrix products and caches",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=2,
        help="processes that compute rewards; default 2",
    )


def add_rewards(subcommands: Subcommands) -> None:
    """Adds the subcommand `rewards`."""
    parser = subcommands.add(bench_rewards)
    parser.add_argument(
        "--verdicts",
        type=positive,
        default=5000,
        help="at least so many; default 5,000",
    )
    parser.add_argument(
        "--workers", type=positive, default=2, help="processes; default 2"
    )


def add_load(subcommands: Subcommands) -> None:
    """Adds the subcommand `load`."""
    parser = subcommands.add(bench_load)
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=3.0,
        help="about so many 10^9 bytes of bfloat16; default 3",
    )
    parser.add_argument(
        "--file-gigabytes",
        type=float,
        default=1.0,
        help="of a file, at most; default 1",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="of the parameters on the devices",
    )
    parser.add_argument(
        "--devices",
        type=positive,
        default=1,
        help="that share the parameters; default 1",
    )


def add_evaluate(subcommands: Subcommands) -> None:
    """Adds the subcommand `evaluate`."""
    parser = subcommands.add(bench_evaluate)
    parser.add_argument(
        "--config", default="quickstart", help="whose model; default quickstart"
    )
    for name in ("problems", "samples"):
        parser.add_argument(
            f"--{name}", type=positive, help="by default those of the config"
        )
    parser.add_argument(
        "--every",
        type=positive,
        help="also time a run that is evaluated every so many steps, and one that is not",
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=8,
        help="with --every, steps of such a run; default 8",
    )


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands; the result's `bench` is the function to call."""
    # The flags of every subcommand stand after its name, as people write them.
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print a JSON object")
    shared.add_argument(
        "--repeats",
        type=positive,
        default=3,
        help="timed runs, of which the median counts; default 3",
    )
    about = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=about)
    subcommands = Subcommands(parser, shared)
    add_logprobs(subcommands)
    add_rollout(subcommands)
    add_step(subcommands)
    add_rewards(subcommands)
    add_load(subcommands)
    add_evaluate(subcommands)
    return parser


def settings_of(arguments: argparse.Namespace) -> Result:
    """Returns what a benchmark was given, as a part of its result."""
    settings: Result = {}
    for name, value in vars(arguments).items():
        # How it is printed is no setting, and neither is what was not given.
        if name not in ("json", "bench") and value is not None:
            settings[name] = str(value) if isinstance(value, Path) else value
    return settings


def to_line(result: Result, as_json: bool) -> str:
    """Returns a result on one line: a JSON object, or words."""
    if as_json:
        return json.dumps(result)
    return "  ".join(f"{name}={_in_words(value)}" for name, value in result.items())


def _in_words(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def main(argv: list[str]) -> None:
    """Measures what the command line asks for, and prints it; exits with 1 if it is too much."""
    arguments = make_parser().parse_args(argv)
    # Each subcommand sets `bench` to its function.
    measured = arguments.bench(arguments)
    device = jax.devices()[0]
    result = {
        "bench": _name_of(arguments.bench),
        # The machine is a part of the result.
        "device": f"{jax.device_count()} x {device.device_kind}",
        **settings_of(arguments),
        **measured,
    }
    print(to_line(result, arguments.json))
    # Only `load` and `evaluate` have limits.
    if measured.get("within") is False:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
