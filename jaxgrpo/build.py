"""What a training run and an evaluation both stand on: problems that fit, verifiers, tokenizer, model, compiled programs.

Made in the order in which things can be found wrong most cheaply: nothing touches a device before all input is checked.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxgrpo import config as settings
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.distributed.mesh import make_mesh, row_devices
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.problems import Problem, Problems, Task, Weighted
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rewards.languages import consistency
from jaxgrpo.rewards.workers.pool import Pool
from jaxgrpo.rollout.collect import Judge
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.text import tokenizer
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code
from jaxgrpo.types import Params

MEASURED = {
    "language/target_word_ratio": Weighted(consistency.target_word_ratio, 0.0),
    "language/english_word_ratio": Weighted(consistency.english_word_ratio, 0.0),
}
"""Computed for every completion whatever the rewards are: nobody should have to ask to see a language collapse."""

HINTS = {"held-out": "set --config.evaluation.problems=0, or hold some out (--config.data)"}
"""What to do where there are no problems of a kind."""

SCANNED = 10_000
"""How many problems are checked before a run begins: against the prompt width, and for a language
that can be told. The rest are checked when their turn comes, and passed over if they do not fit."""


@dataclass(frozen=True)
class PromptFilter:
    """The problems of a sequence whose prompt fits the width and the vocabulary, and whose language can be told.

    vocabulary: rows of the model's embedding; a tokenizer may have special tokens that a text model has no row for
    """

    tokenizer: tokenizer.Tokenizer
    system: str
    width: int
    vocabulary: int
    most: int | None = None
    """The greatest width that the model has positions for beside the new tokens; None: not
    known."""

    def ids(self, problem: Problem) -> list[int]:
        """Returns the tokens of its prompt as it is asked."""
        return self.tokenizer.prompt(problem.prompt, self.system, problem.language)

    def fits(self, problem: Problem) -> bool:
        ids = self.ids(problem)
        known = max(ids, default=0) < self.vocabulary
        return known and len(ids) <= self.width and language_code(problem.language) is not None

    def check(self, problems: Problems, what: str) -> str | None:
        """A line that counts the prompts that are left out, if any is.

        Raises UserError if there is no problem, if none fits, or if a language cannot be told.
        """
        scanned = min(len(problems), SCANNED)
        prompts = [self.ids(_in_known_language(problems[i])) for i in range(scanned)]
        if not prompts:
            hint = HINTS.get(what, "check --config.data")
            raise UserError(f"{what}: there are no problems; {hint}")
        foreign = sum(max(ids, default=0) >= self.vocabulary for ids in prompts)
        if foreign == scanned:
            raise UserError(
                f"all {scanned:,} {what} prompts hold tokens past the model's {self.vocabulary:,} rows: give the tokenizer's "
                "own model in --config.model"
            )
        lengths = [len(ids) for ids in prompts if max(ids, default=0) < self.vocabulary]
        long = sum(length > self.width for length in lengths)
        among = f"{long:,} of {'the first ' if scanned < len(problems) else ''}{scanned:,} {what} prompts"
        greatest = f"{max(lengths)} takes all"
        if self.most is not None and max(lengths) > self.most:
            greatest = (
                f"{self.most} is what the model has positions for, beside sampling.max_new_tokens"
            )
        if long == len(lengths):
            raise UserError(
                f"{among} are longer than sampling.prompt_width={self.width} tokens, the shortest {min(lengths)}: "
                f"{self._mend(min(lengths), greatest)}"
            )
        notes = []
        if long:
            notes.append(f"{among} are longer than {self.width} tokens and left out; {greatest}")
        if foreign:
            notes.append(
                f"{foreign:,} {what} prompts hold tokens that the model has no row for, and are left out"
            )
        return "; ".join(notes) or None

    def _mend(self, shortest: int, greatest: str) -> str:
        if self.most is not None and shortest > self.most:
            return f"{greatest}; lower that, take shorter problems, or another model"
        return f"raise it; {greatest}"

    def first(self, problems: Problems, count: int) -> list[Problem]:
        """The first `count` problems that fit, or as many as there are."""
        candidates = (problems[i] for i in range(len(problems)))
        return list(itertools.islice(filter(self.fits, candidates), count))


@dataclass(frozen=True)
class Run:
    """A config brought to life."""

    config: settings.Config
    task: Task
    heldout: Problems
    fitting: PromptFilter
    judge: Judge
    engine: Engine
    steps: Programs
    model_folder: Path
    notes: Sequence[str]
    """What the person should know before it begins."""

    def load_params(self) -> Params:
        """The model folder's parameters, each in its place on the mesh and in the dtype that the run trains them in."""
        return hf_folder.load_params(self.model_folder, self.steps.params_like)

    def close(self) -> None:
        self.judge.pool.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def build_run(config: settings.Config) -> Run:
    """Everything that a run needs, checked. UserError for whatever is wrong with the config, data, rewards or model."""
    settings.validate(config)
    folder = model_folder(config.model)
    model, tokens = match_tokenizer(folder, hf_folder.check_folder(folder), tokenizer.load(folder))
    _check_positions(config.sampling, folder)
    task = Task(config.data.train(), config.rewards, config.solved_by)
    heldout = config.data.heldout() if config.evaluation.problems else []
    positions = hf_folder.max_positions(folder)
    most = positions - config.sampling.max_new_tokens if positions else None
    fitting = PromptFilter(
        tokens, config.system, config.sampling.prompt_width, model.vocab_size, most
    )
    notes = [fitting.check(task.problems, "training")]
    if config.evaluation.problems:
        notes.append(fitting.check(heldout, "held-out"))
    steps = build_programs(config, model, tokens.eos_ids)
    pool = Pool(config.rewards | MEASURED, config.verifier.workers, config.verifier.deadline)
    return Run(
        config=config,
        task=task,
        heldout=heldout,
        fitting=fitting,
        judge=Judge(pool, config.rewards, config.solved_by),
        engine=Engine(
            steps,
            tokens,
            config.sampling.prompt_width,
            config.sampling.max_new_tokens,
            config.seed,
            config.system,
        ),
        steps=steps,
        model_folder=folder,
        notes=[note for note in notes if note],
    )


def _in_known_language(problem: Problem) -> Problem:
    """Returns the problem. Raises UserError if its language cannot be told, so not measured."""
    if language_code(problem.language) is None:
        raise UserError(
            f"the problem {problem.id!r} has the language {problem.language!r}, which cannot be "
            f"told; its source must give one of {' '.join(sorted(LANGUAGE_CODES))}"
        )
    return problem


def build_programs(
    config: settings.Config, model: ModelConfig, ends: tuple[int, ...], devices: list | None = None
) -> Programs:
    """The programs of a run, of a network and the ids that end its completions; they need no data and no weights.

    devices: that they are for (None: those here). UserError for sizes that the devices cannot share.
    """
    slots = config.sampling.slots or 2 * config.batch.groups * config.batch.group_size
    rows = math.gcd(config.batch.groups * config.batch.group_size, config.batch.micro_batch, slots)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices, rows=rows)
    _check_shards(config, row_devices(mesh), slots)
    return compile_programs(
        model,
        make_optimizer(config),
        mesh,
        prompt_width=config.sampling.prompt_width,
        new_tokens=config.sampling.max_new_tokens,
        micro_batch=config.batch.micro_batch,
        group_size=config.batch.group_size,
        old_logprobs=config.batch.old_logprobs,
        ends=ends,
        slots=slots,
        chunk=config.sampling.chunk,
        dtype=jnp.dtype(config.dtype),
        params_dtype=jnp.dtype(config.optimizer.params_dtype),
        state_dtype=jnp.dtype(config.optimizer.state_dtype),
        scan_layers=config.compute.scan_layers,
        remat=config.compute.remat,
        adapters=config.lora,
    )


def match_tokenizer(
    folder: Path, model: ModelConfig, tokens: tokenizer.Tokenizer
) -> tuple[ModelConfig, tokenizer.Tokenizer]:
    """Returns a folder's network and tokenizer, made to go together.

    Rows of the embedding that no token has are the network's `unused_ids`. Added tokens past its last row, such as the image
    token of Gemma 3's text models, are neither padding nor ends.

    Raises UserError if the tokenizer is another model's.
    """
    rows = model.vocab_size
    ids = set(tokens.hf.get_vocab().values())
    foreign = {id for id in ids if id >= rows}
    ends = tuple(id for id in tokens.eos_ids if id not in foreign)
    added = set(tokens.hf.get_added_vocab().values())
    if foreign - added or foreign & set(tokens.bos_ids) or not ends:
        raise UserError(
            f"{folder}: the tokenizer has {len(ids):,} tokens up to id {max(ids):,}, the model only {rows:,} rows: one of the "
            "two is another model's; copy the model's own tokenizer files there"
        )
    pad = tokens.pad_id if tokens.pad_id < rows else min(ends)
    unused = tuple(_ranges(sorted(set(range(rows)) - ids)))
    return replace(model, unused_ids=unused), replace(tokens, eos_ids=ends, pad_id=pad)


def _ranges(ids: list[int]) -> Iterator[tuple[int, int]]:
    """Yields sorted ids as (first, end) pairs."""
    firsts = [id for i, id in enumerate(ids) if i == 0 or ids[i - 1] != id - 1]
    lasts = [id for i, id in enumerate(ids) if i == len(ids) - 1 or ids[i + 1] != id + 1]
    for first, last in zip(firsts, lasts, strict=True):
        yield first, last + 1


def model_folder(model: str) -> Path:
    """The Hugging Face folder that a config's `model` means."""
    return Path(model).expanduser() if model else hf_folder.EMBEDDED


def make_optimizer(config: settings.Config) -> Any:
    """The optimizer that a config describes."""
    o = config.optimizer
    rate = schedule(o.schedule, o.learning_rate, o.warmup_steps, config.steps)
    return adamw(rate, o.b1, o.b2, o.weight_decay, o.max_grad_norm)


def _check_positions(sampling: settings.Sampling, folder: Path) -> None:
    """Raises UserError if a row may have more tokens than the model was made for."""
    width, new, most = (
        sampling.prompt_width,
        sampling.max_new_tokens,
        hf_folder.max_positions(folder),
    )
    if not most or width + new <= most:
        return
    mend = (
        f"lower sampling.max_new_tokens to {most - width}"
        if most > width
        else f"lower both, to {most} together"
    )
    raise UserError(
        f"sampling.prompt_width={width} and sampling.max_new_tokens={new} are {width + new} "
        f"tokens, more than the {most} positions that {folder} was made for: {mend}"
    )


def _check_shards(config: settings.Config, shards: int, slots: int) -> None:
    """Raises UserError for a first axis that the devices cannot share evenly."""
    batch = config.batch
    sizes = {
        "batch.groups * batch.group_size": batch.groups * batch.group_size,
        "batch.micro_batch": batch.micro_batch,
        "sampling.slots": slots,
    }
    for name, size in sizes.items():
        if size % shards:
            raise UserError(
                f"{name} is {size}: it must be a multiple of mesh.data * mesh.fsdp = {shards} devices"
            )
