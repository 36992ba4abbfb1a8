"""Measures what is claimed about time and memory: one subcommand a claim, one line a result.

    python -m tools.bench logprobs --rows 8 --length 1024 --width 896 --vocab 151936 --dtype bfloat16 --json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgrpo.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.logprobs import to_logits, token_logprobs

Result = dict[str, Any]
"""What a subcommand measured: what it was given, then numbers named with their units."""


def bench_logprobs(arguments: argparse.Namespace) -> Result:
    """Value and gradient of the chosen tokens' log-probabilities: ours, and the naive form that holds all logits."""
    rows, length, width, vocab = arguments.rows, arguments.length, arguments.width, arguments.vocab
    if length < 2:
        raise UserError(f"--length {length} leaves nothing to choose: it must be at least 2")
    dtype = jnp.dtype(arguments.dtype)
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), dtype),
        jax.ShapeDtypeStruct((vocab, width), dtype),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    ours = lambda *inputs: token_logprobs(*inputs, chunk=arguments.chunk)[0]
    programs = {"": gradient_program(ours, shapes), "naive_": gradient_program(naive_logprobs, shapes)}
    result = {f"{name}temp_bytes": temp_bytes(program) for name, program in programs.items()}
    if not arguments.compile_only:
        inputs = random_inputs(shapes, vocab)
        calls = {name: lambda program=program: program(*inputs) for name, program in programs.items()}
        result |= {f"{name}median_s": median for name, median in median_seconds(calls, arguments.repeats).items()}
    return result


def naive_logprobs(
    hidden: Float[Array, "B T D"], embedding: Float[Array, "V D"], tokens: Int[Array, "B T"], temperature: Float[Array, ""]
) -> Float[Array, "B N"]:
    """All logits at once, differentiated by JAX; through logsumexp, which holds less than log_softmax does."""
    logits = to_logits(hidden[:, :-1], embedding, temperature)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def gradient_program(logprobs: Callable, shapes: tuple) -> jax.stages.Compiled:
    """Compiled: (hidden, embedding, tokens, temperature) -> sum of logprobs, its gradients for hidden and embedding."""
    total = lambda *inputs: jnp.sum(logprobs(*inputs))
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*shapes).compile()


def random_inputs(shapes: tuple, vocab: int) -> tuple[Array, Array, Array, Array]:
    """hidden, embedding, tokens, temperature 1; the logits have the spread of a standard normal."""
    hidden, embedding, tokens, _ = shapes
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], hidden.shape, hidden.dtype),
        jax.random.normal(keys[1], embedding.shape, embedding.dtype) * embedding.shape[1] ** -0.5,
        jax.random.randint(keys[2], tokens.shape, 0, vocab),
        jnp.float32(1.0),
    )


def temp_bytes(program: jax.stages.Compiled) -> int:
    """What the program needs beyond its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes


def median_seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of each, in turns, so that what else the machine does falls on all; a first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - begin)
            label = f"turn {turn} of {repeats}" if turn else "warming up"
            print(f"{label}: {name.rstrip('_') or 'ours'} {times[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def to_line(name: str, result: Result, as_json: bool) -> str:
    """One line: a JSON object, or words; the machine is part of the result."""
    device = jax.devices()[0]
    result = {"bench": name, "device": f"{jax.device_count()} x {device.device_kind}", **result}
    if as_json:
        return json.dumps(result)
    words = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
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
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"default {default:,}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of hidden states and embedding")
    parser.add_argument("--chunk", type=positive, help="columns of logits held at once; by default what token_logprobs chooses")
    parser.add_argument("--compile-only", action="store_true", help="memory alone: nothing is run")
    parser.set_defaults(bench=bench_logprobs)


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print a JSON object")
    shared.add_argument("--repeats", type=positive, default=3, help="timed runs, of which the median counts; default 3")
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="WHAT")
    add_logprobs(subparsers, shared)
    arguments = parser.parse_args(argv)
    given = {key: value for key, value in vars(arguments).items() if key not in ("json", "bench") and value is not None}
    name = arguments.bench.__name__.removeprefix("bench_")
    print(to_line(name, given | arguments.bench(arguments), arguments.json))


if __name__ == "__main__":
    run_main(main)
