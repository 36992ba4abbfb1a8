"""`python -m tools.bench rollout` and `step`: sampling, and a whole GRPO step.

Both go through the engine and the compiled programs of a run.
"""

import argparse
import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.build import match_tokenizer
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.device.program import Program
from jaxgrpo.device.specs import (
    ModelSpec,
    Precision,
    SamplingSpec,
    UpdateSpec,
    dividing_rows,
)
from jaxgrpo.distributed.mesh import make_mesh, row_devices, to_device
from jaxgrpo.errors import UserError
from jaxgrpo.losses.grpo import GRPO
from jaxgrpo.models import hf_folder
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.problems import Problem, Weighted
from jaxgrpo.programs import Programs, SamplingPrograms, compile_programs
from jaxgrpo.rewards.workers.pool import Pool
from jaxgrpo.rollout.batch import make_batch
from jaxgrpo.rollout.engine import Engine, SamplingSession, SamplingUsage
from jaxgrpo.rollout.groups import Group, JudgedGroup, SamplingRequest
from jaxgrpo.rollout.judge import Judge, judged_in_order
from jaxgrpo.rollout.packing import Packer
from jaxgrpo.text import tokenizer
from jaxgrpo.text.messages import Message
from jaxgrpo.types import Params, SamplingParams, TrainState
from tools.bench.coin import Coin
from tools.bench.in_flight import InFlightSteps
from tools.bench.turns import Result, measure
from tools.bench.work import rollout_work, step_work


class IdTokenizer(tokenizer.Tokenizer):
    """A folder's tokenizer whose prompts are token ids in decimals, so of any length wanted."""

    def prompt(
        self,
        prompt: str,
        system: str = "",
        language: str = "en",
        context: Sequence[Message] = (),
    ) -> list[int]:
        """Returns the ids that a prompt lists."""
        return [int(number) for number in prompt.split()]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, its programs, and random problems of one length.

    lengths: Int[P G], tokens of each completion, which are chosen beforehand
    packer: packs the rows of an update into bins; None: it is not packed
    packed_update: the update on bins
    """

    model: ModelConfig
    params: Params
    programs: Programs
    engine: Engine
    problems: list[Problem]
    lengths: np.ndarray
    packer: Packer | None = None
    packed_update: Program | None = None

    def sample(
        self, problems: Iterable[Problem], programs: SamplingPrograms, params: Params
    ) -> tuple[list[Group], SamplingUsage]:
        """Returns the problems' groups, and what they took."""
        session = self._session(problems, programs, params)
        return [group for _, group in session.groups()], session.usage

    def sample_and_judge(
        self, params: Params, judge: Judge
    ) -> tuple[list[JudgedGroup], SamplingUsage]:
        """Returns the judged groups of all problems, and what their sampling took."""
        session = self._session(self.problems, self.programs, params)
        groups = list(judged_in_order(session, judge, judge.initial_weights()))
        return groups, session.usage

    def _session(
        self, problems: Iterable[Problem], programs: SamplingPrograms, params: Params
    ) -> SamplingSession:
        engine = dataclasses.replace(self.engine, programs=programs)
        return engine.session(params, problems, self.request(), step=0)

    def request(self) -> SamplingRequest:
        """Returns what is sampled of each problem: rows of the lengths that were chosen."""
        return SamplingRequest(
            group_size=self.lengths.shape[1],
            # So that no row ends before its limit.
            sampling=SamplingParams(min_tokens=self.engine.new_tokens),
            purpose="bench",
            max_tokens_of=self._token_limit,
        )

    def _token_limit(self, problem: Problem, sample: int) -> int:
        """Returns the length of a completion. The problems' ids are their numbers."""
        return int(self.lengths[int(problem.id), sample])

    def batch_by_batch(self) -> None:
        """Samples the same rows without refilling slots.

        As many rows as there are slots begin together, and the next when the last has ended.
        """
        # With one number of slots, rows are not compacted either.
        slots = self.programs.slot_counts[0]
        programs = dataclasses.replace(self.programs, slot_counts=(slots,))
        groups = slots // self.lengths.shape[1]
        for first in range(0, len(self.problems), groups):
            self.sample(self.problems[first : first + groups], programs, self.params)


def make_bench(arguments: argparse.Namespace) -> Bench:
    """Returns what `rollout` and `step` work on.

    Raises UserError for numbers that do not go together.
    """
    folder = arguments.model or hf_folder.EMBEDDED
    model, tokens = match_tokenizer(
        folder, hf_folder.check_folder(folder), tokenizer.load(folder)
    )
    rows = arguments.groups * arguments.group_size
    slots = arguments.slots or rows
    micro_batch = getattr(arguments, "micro_batch", 0)
    pack = getattr(arguments, "pack", None) or 0
    bins = arguments.bins if pack else 0
    if 0 < pack < arguments.prompt + arguments.new:
        raise UserError(
            f"--pack {pack} is less than --prompt + --new = "
            f"{arguments.prompt + arguments.new}, a prompt and its completion"
        )
    mesh = make_mesh(rows=dividing_rows(model, rows, slots, micro_batch, bins))
    # Groups fill slots, devices share rows, and micro-batches divide the batch.
    divisors = (
        ("--slots", slots, arguments.group_size),
        ("--slots", slots, row_devices(mesh)),
        ("--groups times --group-size", rows, row_devices(mesh)),
        ("--groups times --group-size", rows, micro_batch or 1),
        ("--bins", bins, row_devices(mesh)),
    )
    for name, number, divisor in divisors:
        if number % divisor:
            raise UserError(f"{name} is {number}: it must be a multiple of {divisor}")
    compile_update = functools.partial(
        _compile, arguments, ModelSpec(model, mesh, precision_of(arguments)), tokens
    )
    programs = compile_update(slots, micro_batch)
    id_tokenizer = IdTokenizer(tokens.hf, tokens.eos_ids, tokens.pad_id)
    engine = Engine(programs, id_tokenizer, arguments.prompt, arguments.new, seed=0)
    params = hf_folder.load_params(folder, programs.params_like)
    problems = random_problems(arguments, model.vocab_size)
    bench = Bench(
        model, params, programs, engine, problems, completion_lengths(arguments)
    )
    if not pack:
        return bench
    # Sampling is the same; only the update on bins is another program.
    packer = Packer(arguments.group_size, arguments.prompt, pack, bins)
    packed_update = compile_update(slots, bins, pack).update
    return dataclasses.replace(bench, packer=packer, packed_update=packed_update)


def precision_of(arguments: argparse.Namespace) -> Precision:
    """Returns the dtypes that a benchmark is asked for."""
    return Precision(compute=jnp.dtype(arguments.dtype))


def _compile(
    arguments: argparse.Namespace,
    model: ModelSpec,
    tokens: tokenizer.Tokenizer,
    slots: int,
    micro_batch: int,
    pack: int = 0,
) -> Programs:
    """Returns programs as a run compiles them."""
    return compile_programs(
        model,
        SamplingSpec(
            prompt_width=arguments.prompt,
            new_tokens=arguments.new,
            slots=slots,
            eos_ids=tokens.eos_ids,
            group_size=arguments.group_size,
            chunk=arguments.chunk,
        ),
        UpdateSpec(
            micro_batch=micro_batch,
            group_size=arguments.group_size,
            prompt_width=arguments.prompt,
            pack=pack,
        ),
        # The optimizer's numbers do not matter for the time.
        adamw(schedule("constant", 1e-6, 0, 1), 0.9, 0.999, 0.0, 1.0),
    )


def random_problems(arguments: argparse.Namespace, vocab_size: int) -> list[Problem]:
    """Returns --groups problems with prompts of --prompt random tokens; ids are their numbers."""
    shape = (arguments.groups, arguments.prompt)
    prompts = np.random.default_rng(0).integers(0, vocab_size, shape)
    return [
        Problem(str(number), " ".join(map(str, ids)), "")
        for number, ids in enumerate(prompts.tolist())
    ]


def completion_lengths(arguments: argparse.Namespace) -> np.ndarray:
    """Returns the tokens of each completion, Int[P G].

    All have --new tokens; with --mean-new they are geometrically distributed with that mean, and
    cut at --new.
    """
    shape = (arguments.groups, arguments.group_size)
    mean = getattr(arguments, "mean_new", None)
    if mean is None:
        return np.full(shape, arguments.new)
    if mean > arguments.new:
        raise UserError(
            f"--mean-new {mean} is more than --new {arguments.new}, where completions are cut"
        )
    # The same lengths in each run: they are part of what is measured.
    return np.minimum(
        np.random.default_rng(1).geometric(1 / mean, shape), arguments.new
    )


def bench_rollout(arguments: argparse.Namespace) -> Result:
    """Times sampling through the engine: tokens a second, and utilisation of the slots.

    With --mean-new the same rows are also sampled batch by batch, with --keep-in-flight also steps
    are taken whose unfinished completions go on in the next one.
    """
    bench = make_bench(arguments)
    usages: list[SamplingUsage] = []

    def rollout() -> None:
        _, usage = bench.sample(bench.problems, bench.programs, bench.params)
        usages.append(usage)

    calls: dict[str, Callable[[], object]] = {"rollout": rollout}
    if arguments.mean_new is not None:
        calls["batch_by_batch"] = bench.batch_by_batch
    work = rollout_work(
        bench.model,
        arguments.prompt,
        bench.lengths,
        *_slots_and_itemsize(bench, arguments),
    )
    tokens = int(bench.lengths.sum())
    if not arguments.keep_in_flight:
        result = measure(calls, work, tokens, arguments)
        return result | usage_result(usages[1:])  # the first turn compiles
    rewards = {"accuracy": Weighted(Coin(0.0))}
    with (
        Pool(rewards, arguments.workers, deadline=10.0) as pool,
        contextlib.closing(
            InFlightSteps(
                bench.engine,
                Judge(pool, rewards, "accuracy"),
                bench.problems,
                bench.request(),
                bench.params,
            )
        ) as steps,
    ):
        calls["in_flight"] = steps.step
        result = measure(calls, work, tokens, arguments)
        return result | usage_result(usages[1:]) | steps.result()


class _Trainer:
    """Makes GRPO steps one after another, and keeps what each took.

    update_seconds: of each step's update
    utilisation: of the last update
    usages: of each step's sampling
    """

    def __init__(self, bench: Bench, judge: Judge, kl: float, packed: bool = False):
        self._bench = bench
        self._judge = judge
        self._objective = GRPO(kl=kl)
        self._packer = bench.packer if packed else None
        self._update: Program = bench.programs.update
        if packed and bench.packed_update:
            self._update = bench.packed_update
        self._state: TrainState = bench.programs.init_state(bench.params)
        self.update_seconds: list[float] = []
        self.utilisation = 0.0
        self.usages: list[SamplingUsage] = []

    def step(self) -> None:
        """Samples all problems' groups, has them judged, and makes one update."""
        bench = self._bench
        groups, usage = bench.sample_and_judge(self._state.params, self._judge)
        started = time.perf_counter()
        batch = make_batch(groups, len(groups))
        if self._packer:
            batch = self._packer(batch)
        # The parameters that were loaded are the reference of the KL.
        self._state, metrics = self._update(
            self._state,
            bench.params,
            to_device(batch, bench.programs.row_sharding),
            self._objective,
            1.0,
        )
        self.utilisation = float(jax.device_get(metrics)["update/utilisation"])
        self.update_seconds.append(time.perf_counter() - started)
        self.usages.append(usage)

    def update_result(self, prefix: str = "") -> Result:
        """Returns the median time of an update, and the share of its columns that hold a token."""
        # The first turn compiles.
        return {
            f"{prefix}update_s": statistics.median(self.update_seconds[1:]),
            f"{prefix}update_utilisation": self.utilisation,
        }


def bench_step(arguments: argparse.Namespace) -> Result:
    """Times a GRPO step: groups are sampled, a coin rewards them, AdamW makes one update.

    The loss has a KL to a reference. With --pack a step is also timed whose update is on bins, with
    --reward-seconds one whose reward takes so long for each completion.
    """
    bench = make_bench(arguments)
    work = step_work(
        bench.model,
        arguments.prompt,
        bench.lengths,
        *_slots_and_itemsize(bench, arguments),
    )
    with contextlib.ExitStack() as pools:

        def make_trainer(seconds: float = 0.0, packed: bool = False) -> _Trainer:
            rewards = {"accuracy": Weighted(Coin(seconds))}
            pool = pools.enter_context(
                Pool(rewards, arguments.workers, deadline=10.0 + seconds)
            )
            judge = Judge(pool, rewards, "accuracy")
            return _Trainer(bench, judge, arguments.kl, packed)

        # The first is what is measured; the others are compared with it in the same turns.
        trainers = {"step": make_trainer()}
        if bench.packer:
            trainers["packed"] = make_trainer(packed=True)
        if arguments.reward_seconds:
            trainers["slow_reward"] = make_trainer(arguments.reward_seconds)
        calls = {name: trainer.step for name, trainer in trainers.items()}
        result = measure(calls, work, int(bench.lengths.sum()), arguments)
    result |= usage_result(trainers["step"].usages[1:])
    result |= trainers["step"].update_result()
    if bench.packer:
        result |= trainers["packed"].update_result("packed_")
    return result


def _slots_and_itemsize(bench: Bench, arguments: argparse.Namespace) -> tuple[int, int]:
    """Returns the number of slots, and the bytes of a number."""
    return bench.programs.slot_counts[0], jnp.dtype(arguments.dtype).itemsize


def usage_result(usages: list[SamplingUsage]) -> Result:
    """Returns the share of computed slots that made a token, and the median time of sampling."""
    tokens = sum(usage.tokens for usage in usages)
    computed = sum(usage.slot_steps for usage in usages)
    return {
        "utilisation": tokens / computed,
        "rollout_s": statistics.median(usage.seconds for usage in usages),
    }
