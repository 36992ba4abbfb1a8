"""Measures what is claimed about time and memory: one subcommand a claim, one line a result.

    python -m tools.bench logprobs --rows 8 --length 1024 --width 896 --vocab 151936 --dtype bfloat16 --json
    python -m tools.bench rollout --groups 8 --group-size 8 --prompt 64 --new 128 --json
    python -m tools.bench rollout --mean-new 48 --new 384 --groups 32 --group-size 8 --slots 64 --json
    python -m tools.bench step --micro-batch 16 --json
    python -m tools.bench rewards --verdicts 5000 --workers 2 --json
    python -m tools.bench load --gigabytes 3 --json

`rollout` and `step` go through the engine and the compiled programs of a run, on random prompts of exactly --prompt tokens,
with completions of exactly --new. They also measure what the machine can do in the same minutes, in turns with the work: a
bare matrix product and a copy. `floor_s` is the time that these two alone would take for the work: see bench_turns.Work.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxgrpo.config.command_line import run_main
from tools.bench.load import bench_load
from tools.bench.logprobs import bench_logprobs
from tools.bench.rewards import bench_rewards
from tools.bench.sampling import bench_rollout, bench_step
from tools.bench.turns import Result


def to_line(name: str, result: Result, as_json: bool) -> str:
    """One line: a JSON object, or words; the machine is part of the result."""
    device = jax.devices()[0]
    result = {"bench": name, "device": f"{jax.device_count()} x {device.device_kind}", **result}
    if as_json:
        return json.dumps(result)
    words = lambda value: (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4g}"
        if isinstance(value, float)
        else value
    )
    return "  ".join(f"{key}={words(value)}" for key, value in result.items())


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def add_logprobs(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `logprobs`."""
    about = bench_logprobs.__doc__
    parser = subparsers.add_parser("logprobs", parents=[shared], help=about, description=about)
    for name, default in (("rows", 8), ("length", 256), ("width", 896), ("vocab", 32768)):
        parser.add_argument(
            f"--{name}", type=positive, default=default, help=f"default {default:,}"
        )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of hidden states and embedding",
    )
    parser.add_argument(
        "--chunk",
        type=positive,
        help="columns of logits held at once; by default what token_logprobs chooses",
    )
    parser.add_argument("--compile-only", action="store_true", help="memory alone: nothing is run")
    parser.set_defaults(bench=bench_logprobs)


def add_sampling(
    subparsers: Any, shared: argparse.ArgumentParser, bench: Callable
) -> argparse.ArgumentParser:
    """A subcommand that samples."""
    name, about = bench.__name__.removeprefix("bench_"), bench.__doc__
    parser = subparsers.add_parser(name, parents=[shared], help=about, description=about)
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face folder; by default the embedded model"
    )
    for flag, default, about in (
        ("--groups", 8, "prompts"),
        ("--group-size", 8, "completions of each"),
        ("--prompt", 64, "tokens of each prompt"),
        ("--new", 128, "tokens of each completion"),
        ("--chunk", 32, "tokens of a row in a call of decode, at most"),
    ):
        parser.add_argument(
            flag, type=positive, default=default, help=f"{about}; default {default}"
        )
    parser.add_argument("--slots", type=positive, help="rows sampled side by side; by default all")
    parser.add_argument(
        "--mean-new",
        type=positive,
        help="draw lengths with this mean, cut at --new; rollout also times them batch by batch",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of matrix products and caches",
    )
    parser.set_defaults(bench=bench)
    return parser


def add_rollout(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `rollout`."""
    add_sampling(subparsers, shared, bench_rollout)


def add_step(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `step`."""
    parser = add_sampling(subparsers, shared, bench_step)
    parser.add_argument(
        "--micro-batch", type=positive, default=16, help="rows of one gradient pass; default 16"
    )
    parser.add_argument(
        "--kl", type=float, default=0.04, help="weight of the KL to the reference; default 0.04"
    )
    parser.add_argument(
        "--reward-seconds",
        type=float,
        default=0.0,
        help="also time a reward that takes so long a completion",
    )
    parser.add_argument(
        "--workers", type=positive, default=2, help="processes that compute rewards; default 2"
    )


def add_rewards(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `rewards`."""
    about = bench_rewards.__doc__
    parser = subparsers.add_parser("rewards", parents=[shared], help=about, description=about)
    parser.add_argument(
        "--verdicts", type=positive, default=5000, help="at least so many; default 5,000"
    )
    parser.add_argument("--workers", type=positive, default=2, help="processes; default 2")
    parser.set_defaults(bench=bench_rewards)


def add_load(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `load`."""
    about = bench_load.__doc__
    parser = subparsers.add_parser("load", parents=[shared], help=about, description=about)
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=3.0,
        help="about so many 10^9 bytes of bfloat16; default 3",
    )
    parser.add_argument(
        "--file-gigabytes", type=float, default=1.0, help="of a file, at most; default 1"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="of the parameters on the devices",
    )
    parser.add_argument(
        "--devices", type=positive, default=1, help="that share the parameters; default 1"
    )
    parser.set_defaults(bench=bench_load)


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print a JSON object")
    shared.add_argument(
        "--repeats",
        type=positive,
        default=3,
        help="timed runs, of which the median counts; default 3",
    )
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__.splitlines()[0]
    )
    subparsers = parser.add_subparsers(required=True, metavar="WHAT")
    for add in (add_logprobs, add_rollout, add_step, add_rewards, add_load):
        add(subparsers, shared)
    arguments = parser.parse_args(argv)
    given = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("json", "bench") and value is not None
    }
    given |= {"model": str(arguments.model)} if given.get("model") else {}
    name = arguments.bench.__name__.removeprefix("bench_")
    result = arguments.bench(arguments)
    print(to_line(name, given | result, arguments.json))
    if result.get("within") is False:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
