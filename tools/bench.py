"""Measures what is claimed about time and memory: one subcommand a claim, one line a result.

    python -m tools.bench logprobs --rows 8 --length 1024 --width 896 --vocab 151936 --dtype bfloat16 --json
    python -m tools.bench rollout --groups 8 --group-size 8 --prompt 64 --new 128 --json
    python -m tools.bench rollout --mean-new 48 --new 384 --groups 32 --group-size 8 --slots 64 --json
    python -m tools.bench step --micro-batch 8 --json

`rollout` and `step` go through the engine and the compiled programs of a run, on random prompts of exactly --prompt tokens,
with completions of exactly --new. They also measure what the machine can do in the same minutes, in turns with the work: a
bare matrix product and a copy. `floor_s` is the time that these two alone would take for the work: see `Work`.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgrpo import tokenizer
from jaxgrpo.command_line import run_main
from jaxgrpo.engine import Draw, Engine, Group, Usage
from jaxgrpo.errors import UserError
from jaxgrpo.logprobs import to_logits, token_logprobs
from jaxgrpo.losses.grpo import GRPO
from jaxgrpo.mesh import make_mesh, row_devices, to_device
from jaxgrpo.models import transformer, weights
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.optimizer import adamw, schedule
from jaxgrpo.problems import Problem
from jaxgrpo.rollout import make_batch
from jaxgrpo.steps import Steps, compile_steps
from jaxgrpo.types import Params

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


def seconds_of(calls: dict[str, Callable[[], Any]], label: str) -> dict[str, float]:
    """One turn: each call's time."""
    times = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times[name] = time.perf_counter() - begin
        print(f"{label}: {name.rstrip('_') or 'ours'} {times[name]:.3f} s", file=sys.stderr, flush=True)
    return times


def seconds_in_turns(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """The times of each, in turns, so that what else the machine does falls on all."""
    turns = [seconds_of(calls, f"turn {turn} of {repeats}") for turn in range(1, repeats + 1)]
    return {name: [times[name] for times in turns] for name in calls}


def median_seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median time of each, in turns; a first turn is not counted."""
    seconds_of(calls, "warming up")
    return {name: statistics.median(seconds) for name, seconds in seconds_in_turns(calls, repeats).items()}


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be computed, whoever computes it.

    flops: 2 for each parameter and token that is read, 6 where there is a gradient, too; prompts count in every row
    bytes: what decoding has to fetch: at each token the parameters once and the keys and values of every row so far
    """

    flops: float
    bytes: float

    def floor_s(self, matmul_flops_per_s: float, copy_bytes_per_s: float) -> float:
        """The least time it can take if either runs as fast as it was measured to."""
        return max(self.flops / matmul_flops_per_s, self.bytes / copy_bytes_per_s)


def rollout_work(model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int) -> Work:
    """Sampling rows of these lengths, `slots` of them at a time."""
    size = transformer.size(transformer.shapes(model))
    column = 2 * model.layers * model.kv_heads * model.head_width * itemsize
    columns = np.sum(lengths * (prompt + (lengths + 1) / 2))
    steps = np.sum(lengths) / min(slots, len(lengths))
    return Work(2.0 * size * np.sum(prompt + lengths), float(steps * size * itemsize + columns * column))


def step_work(model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int) -> Work:
    """Sampling, then the reference's reading (2) and the update (6) of all rows."""
    rollout = rollout_work(model, prompt, lengths, slots, itemsize)
    return Work(5 * rollout.flops, rollout.bytes)


class Machine:
    """What the machine does per second, as the programs here meet it."""

    def __init__(self, dtype: str):
        small = jax.default_backend() == "cpu"
        width, self.repeats = (2048, 2) if small else (8192, 32)
        self.flops = 2.0 * width**3 * self.repeats
        self._matrix = jnp.ones((width, width), dtype)
        self._array = jnp.ones(2**26 if small else 2**30, jnp.float32)
        self.bytes = 2.0 * self._array.nbytes  # read once, written once
        self._product = jax.jit(lambda x: x @ x)
        self._copy = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new pages would be timed, too

    def multiply(self) -> Array:
        """`flops` of a bare matrix product."""
        return [self._product(self._matrix) for _ in range(self.repeats)][-1]

    def copy(self) -> Array:
        """`bytes` read and written."""
        self._array = self._copy(self._array)
        return self._array


class Compiles:
    """Counts what JAX compiles in this process, and the seconds it takes."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count, self.seconds = self.count + 1, self.seconds + seconds


@functools.cache
def compiles() -> Compiles:
    """This process's only one: JAX offers no way to take a listener back."""
    return Compiles()


class Ids(tokenizer.Tokenizer):
    """A model folder's tokenizer, but prompts are token ids in decimals: their lengths can be chosen."""

    def prompt(self, prompt: str, system: str = "") -> list[int]:
        return [int(number) for number in prompt.split()]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, its programs, and random problems of one length whose completions have lengths given beforehand."""

    model: ModelConfig
    params: Params
    steps: Steps
    engine: Engine
    problems: list[Problem]
    lengths: np.ndarray
    """Int[P G], tokens of each completion."""

    def sample(self, problems: Iterable[Problem], steps: Steps, params: Params) -> tuple[list[Group], Usage]:
        """The problems' groups and what they took."""
        engine = dataclasses.replace(self.engine, steps=steps)
        draw = Draw(min_tokens=engine.new_tokens)  # so that no row ends before its limit
        limits = lambda problem, sample: int(self.lengths[int(problem.id), sample])
        wave = engine.wave(params, problems, self.lengths.shape[1], draw, 0, "bench", limits)
        return [group for _, group in filter(None, wave)], wave.usage

    def batch_by_batch(self) -> None:
        """The same rows without refilling: as many as there are slots begin together, and the next when the last has ended."""
        steps = dataclasses.replace(self.steps, sizes=self.steps.sizes[:1])
        at_once = steps.sizes[0] // self.lengths.shape[1]
        for first in range(0, len(self.problems), at_once):
            self.sample(self.problems[first : first + at_once], steps, self.params)


def make_bench(arguments: argparse.Namespace) -> Bench:
    """What `rollout` and `step` work on. UserError for numbers that do not go together."""
    folder = arguments.model or weights.EMBEDDED
    model, tokens = weights.check_folder(folder), tokenizer.load(folder)
    rows = arguments.groups * arguments.group_size
    slots, micro_batch = arguments.slots or rows, getattr(arguments, "micro_batch", 0)
    mesh = make_mesh(rows=math.gcd(rows, slots, micro_batch))
    for name, number, divisor in (
        ("--slots", slots, arguments.group_size),
        ("--slots", slots, row_devices(mesh)),
        ("--groups times --group-size", rows, row_devices(mesh)),
        ("--groups times --group-size", rows, micro_batch or 1),
    ):
        if number % divisor:
            raise UserError(f"{name} is {number}: it must be a multiple of {divisor}")
    steps = compile_steps(
        model,
        adamw(schedule("constant", 1e-6, 0, 1), 0.9, 0.999, 0.0, 1.0),
        mesh,
        prompt_width=arguments.prompt,
        new_tokens=arguments.new,
        micro_batch=micro_batch,
        ends=tokens.ends,
        slots=slots,
        group_size=arguments.group_size,
        chunk=arguments.chunk,
        dtype=jnp.dtype(arguments.dtype),
    )
    ids = Ids(tokens.hf, tokens.ends, tokens.pad)
    engine = Engine(steps, ids, arguments.prompt, arguments.new, seed=0)
    params = to_device(weights.load_params(folder), jax.tree.map(lambda leaf: leaf.sharding, steps.params_like))
    return Bench(model, params, steps, engine, random_problems(arguments, model.vocab_size), completion_lengths(arguments))


def random_problems(arguments: argparse.Namespace, vocabulary: int) -> list[Problem]:
    """Prompts of --prompt random tokens."""
    prompts = np.random.default_rng(0).integers(0, vocabulary, (arguments.groups, arguments.prompt))
    return [Problem(str(i), " ".join(map(str, ids)), "") for i, ids in enumerate(prompts.tolist())]


def completion_lengths(arguments: argparse.Namespace) -> np.ndarray:
    """Int[P G]: --new for all, or geometrically distributed with mean --mean-new and cut at --new."""
    shape, mean = (arguments.groups, arguments.group_size), getattr(arguments, "mean_new", None)
    if mean is None:
        return np.full(shape, arguments.new)
    if mean > arguments.new:
        raise UserError(f"--mean-new {mean} is more than --new {arguments.new}, where completions are cut")
    return np.minimum(np.random.default_rng(1).geometric(1 / mean, shape), arguments.new)


def bench_rollout(arguments: argparse.Namespace) -> Result:
    """Sampling through the engine: tokens a second, utilisation of the slots, and the time that arithmetic alone would take."""
    bench, usages = make_bench(arguments), []
    work = rollout_work(bench.model, arguments.prompt, bench.lengths.ravel(), *_sizes(bench, arguments))
    calls = {"rollout": lambda: usages.append(bench.sample(bench.problems, bench.steps, bench.params)[1])}
    if arguments.mean_new is not None:
        calls["batch_by_batch"] = bench.batch_by_batch
    return measure(calls, work, int(bench.lengths.sum()), arguments) | used(usages[1:])


def bench_step(arguments: argparse.Namespace) -> Result:
    """A GRPO step: groups are sampled, a coin rewards them, AdamW makes one update with a KL to a reference."""
    bench, usages = make_bench(arguments), []
    state, objective = bench.steps.init(bench.params), GRPO(kl=arguments.kl)
    updates: list[float] = []
    work = step_work(bench.model, arguments.prompt, bench.lengths.ravel(), *_sizes(bench, arguments))

    def step() -> None:
        nonlocal state
        groups, usage = bench.sample(bench.problems, bench.steps, state.params)
        begin = time.perf_counter()
        for group in groups:
            group.rewards = np.sum(group.tokens, axis=1, where=group.completion_mask) % 2.0
        batch = to_device(make_batch(groups, len(groups)), bench.steps.rows)
        state, learned = bench.steps.update(state, bench.params, batch, objective, 1.0)
        jax.device_get(learned)
        updates.append(time.perf_counter() - begin)
        usages.append(usage)

    result = measure({"step": step}, work, int(bench.lengths.sum()), arguments) | used(usages[1:])
    return result | {"update_s": statistics.median(updates[1:])}


def _sizes(bench: Bench, arguments: argparse.Namespace) -> tuple[int, int]:
    """Slots, and bytes of a number."""
    return bench.steps.sizes[0], jnp.dtype(arguments.dtype).itemsize


def used(usages: list[Usage]) -> Result:
    """The share of computed slots that made a token, and the median time of sampling."""
    utilisation = sum(usage.tokens for usage in usages) / sum(usage.computed for usage in usages)
    return {"utilisation": utilisation, "rollout_s": statistics.median(usage.seconds for usage in usages)}


def measure(calls: dict[str, Callable[[], Any]], work: Work, tokens: int, arguments: argparse.Namespace) -> Result:
    """Times of the first call, the medians of the others, the machine's rates, and the floor that they set for the work.

    Compiles are those of a first turn, which is not timed; `recompiles` those that came later, of which there should be none.
    """
    machine, counter = Machine(arguments.dtype), compiles()
    before = counter.count, counter.seconds
    seconds_of(calls, "warming up")
    warm = counter.count, counter.seconds
    machine_calls = {"multiply": machine.multiply, "copy": machine.copy}
    seconds_of(machine_calls, "warming up")
    cold = counter.count
    times = seconds_in_turns(machine_calls | calls, arguments.repeats)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    rates = machine.flops / medians["multiply"], machine.bytes / medians["copy"]
    first, *others = calls
    return {
        "what": first,
        "seconds": times[first],
        "median_s": medians[first],
        "tokens_per_s": tokens / medians[first],
        "matmul_flops_per_s": rates[0],
        "copy_bytes_per_s": rates[1],
        "flops": work.flops,
        "floor_s": work.floor_s(*rates),
        "compiles": warm[0] - before[0],
        "compile_s": warm[1] - before[1],
        "recompiles": counter.count - cold,
        **{f"{name}_s": medians[name] for name in others},
    }


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


def add_sampling(subparsers: Any, shared: argparse.ArgumentParser, bench: Callable) -> argparse.ArgumentParser:
    """A subcommand that samples."""
    name, about = bench.__name__.removeprefix("bench_"), bench.__doc__
    parser = subparsers.add_parser(name, parents=[shared], help=about, description=about)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; by default the embedded model")
    for flag, default, about in (
        ("--groups", 8, "prompts"),
        ("--group-size", 8, "completions of each"),
        ("--prompt", 64, "tokens of each prompt"),
        ("--new", 128, "tokens of each completion"),
        ("--chunk", 32, "tokens of a row in a call of decode, at most"),
    ):
        parser.add_argument(flag, type=positive, default=default, help=f"{about}; default {default}")
    parser.add_argument("--slots", type=positive, help="rows sampled side by side; by default all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products and caches")
    parser.set_defaults(bench=bench)
    return parser


def add_rollout(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `rollout`."""
    parser = add_sampling(subparsers, shared, bench_rollout)
    parser.add_argument(
        "--mean-new", type=positive, help="draw lengths with this mean, cut at --new; also times the rows batch by batch"
    )


def add_step(subparsers: Any, shared: argparse.ArgumentParser) -> None:
    """The subcommand `step`."""
    parser = add_sampling(subparsers, shared, bench_step)
    parser.add_argument("--micro-batch", type=positive, default=8, help="rows of one gradient pass; default 8")
    parser.add_argument("--kl", type=float, default=0.04, help="weight of the KL to the reference; default 0.04")


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print a JSON object")
    shared.add_argument("--repeats", type=positive, default=3, help="timed runs, of which the median counts; default 3")
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(required=True, metavar="WHAT")
    for add in (add_logprobs, add_rollout, add_step):
        add(subparsers, shared)
    arguments = parser.parse_args(argv)
    given = {key: value for key, value in vars(arguments).items() if key not in ("json", "bench") and value is not None}
    given |= {"model": str(arguments.model)} if given.get("model") else {}
    name = arguments.bench.__name__.removeprefix("bench_")
    print(to_line(name, given | arguments.bench(arguments), arguments.json))


if __name__ == "__main__":
    run_main(main)
