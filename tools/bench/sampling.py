"""`python -m tools.bench rollout` and `step`: sampling, and a whole GRPO step, through the engine and the compiled programs."""

import argparse
import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.build import match_tokenizer
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.distributed.mesh import make_mesh, row_devices, to_device
from jaxgrpo.errors import UserError
from jaxgrpo.losses.grpo import GRPO
from jaxgrpo.models import hf_folder, transformer
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rewards.workers.pool import Pool
from jaxgrpo.rollout.collect import Judge, judged_in_order, make_batch
from jaxgrpo.rollout.engine import Draw, Engine, Group, SamplingUsage
from jaxgrpo.text import tokenizer
from jaxgrpo.types import Params
from tools.bench.coin import Coin
from tools.bench.turns import Result, Work, measure


def rollout_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Sampling rows of these lengths, `slots` of them at a time."""
    size = transformer.parameter_count(transformer.shapes(model))
    column = 2 * model.layers * model.kv_heads * model.head_width * itemsize
    columns = np.sum(lengths * (prompt + (lengths + 1) / 2))
    steps = np.sum(lengths) / min(slots, len(lengths))
    return Work(
        2.0 * size * np.sum(prompt + lengths), float(steps * size * itemsize + columns * column)
    )


def step_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Sampling, then the reference's reading (2) and the update (6) of all rows."""
    rollout = rollout_work(model, prompt, lengths, slots, itemsize)
    return Work(5 * rollout.flops, rollout.bytes)


class Ids(tokenizer.Tokenizer):
    """A model folder's tokenizer, but prompts are token ids in decimals: their lengths can be chosen."""

    def prompt(self, prompt: str, system: str = "", language: str = "en") -> list[int]:
        return [int(number) for number in prompt.split()]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, its programs, and random problems of one length whose completions have lengths given beforehand."""

    model: ModelConfig
    params: Params
    steps: Programs
    engine: Engine
    problems: list[Problem]
    lengths: np.ndarray
    """Int[P G], tokens of each completion."""

    def sample(
        self,
        problems: Iterable[Problem],
        steps: Programs,
        params: Params,
        judge: Judge | None = None,
    ) -> tuple[list[Group], SamplingUsage]:
        """The problems' groups, judged if there is a judge, and what they took."""
        engine = dataclasses.replace(self.engine, steps=steps)
        draw = Draw(min_tokens=engine.new_tokens)  # so that no row ends before its limit
        limits = lambda problem, sample: int(self.lengths[int(problem.id), sample])
        wave = engine.wave(params, problems, self.lengths.shape[1], draw, 0, "bench", limits)
        groups = judged_in_order(wave, judge) if judge else (group for _, group in wave.groups())
        return list(groups), wave.usage

    def batch_by_batch(self) -> None:
        """The same rows without refilling: as many as there are slots begin together, and the next when the last has ended."""
        steps = dataclasses.replace(self.steps, sizes=self.steps.sizes[:1])
        at_once = steps.sizes[0] // self.lengths.shape[1]
        for first in range(0, len(self.problems), at_once):
            self.sample(self.problems[first : first + at_once], steps, self.params)


def make_bench(arguments: argparse.Namespace) -> Bench:
    """What `rollout` and `step` work on. UserError for numbers that do not go together."""
    folder = arguments.model or hf_folder.EMBEDDED
    model, tokens = match_tokenizer(folder, hf_folder.check_folder(folder), tokenizer.load(folder))
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
    steps = compile_programs(
        model,
        adamw(schedule("constant", 1e-6, 0, 1), 0.9, 0.999, 0.0, 1.0),
        mesh,
        prompt_width=arguments.prompt,
        new_tokens=arguments.new,
        micro_batch=micro_batch,
        ends=tokens.eos_ids,
        slots=slots,
        group_size=arguments.group_size,
        chunk=arguments.chunk,
        dtype=jnp.dtype(arguments.dtype),
    )
    ids = Ids(tokens.hf, tokens.eos_ids, tokens.pad_id)
    engine = Engine(steps, ids, arguments.prompt, arguments.new, seed=0)
    params = hf_folder.load_params(folder, steps.params_like)
    return Bench(
        model,
        params,
        steps,
        engine,
        random_problems(arguments, model.vocab_size),
        completion_lengths(arguments),
    )


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
        raise UserError(
            f"--mean-new {mean} is more than --new {arguments.new}, where completions are cut"
        )
    return np.minimum(np.random.default_rng(1).geometric(1 / mean, shape), arguments.new)


def bench_rollout(arguments: argparse.Namespace) -> Result:
    """Sampling through the engine: tokens a second, utilisation of the slots, and the time that arithmetic alone would take."""
    bench, usages = make_bench(arguments), []
    work = rollout_work(
        bench.model, arguments.prompt, bench.lengths.ravel(), *_sizes(bench, arguments)
    )
    calls = {
        "rollout": lambda: usages.append(bench.sample(bench.problems, bench.steps, bench.params)[1])
    }
    if arguments.mean_new is not None:
        calls["batch_by_batch"] = bench.batch_by_batch
    return measure(calls, work, int(bench.lengths.sum()), arguments) | used(usages[1:])


def bench_step(arguments: argparse.Namespace) -> Result:
    """A GRPO step: groups are sampled, a coin rewards them, AdamW makes one update with a KL to a reference. With
    --reward-seconds also a step whose reward takes so long for each completion."""
    bench, usages = make_bench(arguments), []
    state, objective = bench.steps.init(bench.params), GRPO(kl=arguments.kl)
    updates: list[float] = []
    work = step_work(
        bench.model, arguments.prompt, bench.lengths.ravel(), *_sizes(bench, arguments)
    )

    def step(judge: Judge) -> None:
        nonlocal state
        groups, usage = bench.sample(bench.problems, bench.steps, state.params, judge)
        begin = time.perf_counter()
        batch = to_device(make_batch(groups, len(groups)), bench.steps.rows)
        state, learned = bench.steps.update(state, bench.params, batch, objective, 1.0)
        jax.device_get(learned)
        updates.append(time.perf_counter() - begin)
        usages.append(usage)

    seconds = {"step": 0.0} | (
        {"slow_reward": arguments.reward_seconds} if arguments.reward_seconds else {}
    )
    with contextlib.ExitStack() as pools:
        calls = {}
        for name, each in seconds.items():
            rewards = {"accuracy": Weighted(Coin(each))}
            pool = pools.enter_context(Pool(rewards, arguments.workers, deadline=10.0 + each))
            calls[name] = functools.partial(step, Judge(pool, rewards, "accuracy"))
        result = measure(calls, work, int(bench.lengths.sum()), arguments)
    return (
        result
        | used(usages[len(calls) :: len(calls)])
        | {"update_s": statistics.median(updates[len(calls) :])}
    )


def _sizes(bench: Bench, arguments: argparse.Namespace) -> tuple[int, int]:
    """Slots, and bytes of a number."""
    return bench.steps.sizes[0], jnp.dtype(arguments.dtype).itemsize


def used(usages: list[SamplingUsage]) -> Result:
    """The share of computed slots that made a token, and the median time of sampling."""
    utilisation = sum(usage.tokens for usage in usages) / sum(usage.computed for usage in usages)
    return {
        "utilisation": utilisation,
        "rollout_s": statistics.median(usage.seconds for usage in usages),
    }
