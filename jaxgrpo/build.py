"""A config brought to life: problems, verifiers, tokenizer, model, compiled programs.

Training and evaluation both stand on it. Things are made in the order in which they can be found
wrong most cheaply: nothing touches a device before all input is checked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import Config, Sampling, validate
from jaxgrpo.config.sizes import (
    micro_batch_size,
    num_slots,
    off_policy_note,
    rows_per_update,
    trained_group_size,
)
from jaxgrpo.data.pass_rates import problems_within
from jaxgrpo.data.prompt_filter import PromptFilter
from jaxgrpo.device.logits import as_ranges
from jaxgrpo.device.specs import UpdateSpec, dividing_rows
from jaxgrpo.distributed import compilation_cache
from jaxgrpo.distributed.mesh import make_mesh, row_devices, to_device
from jaxgrpo.errors import UserError
from jaxgrpo.files import fetched
from jaxgrpo.models import hf_folder, lora
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.problems import Problem, Problems, Task, Weighted, notes_of
from jaxgrpo.program_specs import (
    build_optimizer,
    check_shares,
    model_spec,
    sampling_spec,
)
from jaxgrpo.programs import Programs, SamplingPrograms, compile_programs
from jaxgrpo.rewards import languages
from jaxgrpo.rewards.maths.golds import notes_on_golds
from jaxgrpo.rewards.workers.pool import Pool
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.judge import Judge
from jaxgrpo.rollout.packing import Packer
from jaxgrpo.text import tokenizer
from jaxgrpo.text.tokenizer import Tokenizer
from jaxgrpo.types import Params
from jaxgrpo.updates import UpdateRule

MEASURED = {
    "language/target_word_ratio": Weighted(languages.target_word_ratio, 0.0),
    "language/english_word_ratio": Weighted(languages.english_word_ratio, 0.0),
}
"""Computed for every completion, whatever the rewards are: nobody should have to ask to see a
language collapse."""


@dataclass(frozen=True)
class Run:
    """A config brought to life.

    heldout: the problems of an evaluation, the same at every one
    notes: lines that the person should read before the run begins
    """

    config: Config
    network: ModelConfig
    task: Task
    heldout: Sequence[Problem]
    prompt_filter: PromptFilter
    judge: Judge
    engine: Engine
    programs: Programs
    model_folder: Path
    notes: Sequence[str]

    def load_params(self) -> Params:
        """Returns the model folder's parameters, placed on the mesh, in the dtype of training."""
        return hf_folder.load_params(self.model_folder, self.programs.params_like)

    def load_reference(self) -> Params:
        """Returns the reference that the config names, placed on the mesh."""
        folder = model_folder(self.config.reference)
        params = hf_folder.load_params(folder, self.programs.reference_like)
        return self.programs.make_other_reference(params)

    def policy(self, reference: Params, trained: Params) -> Params:
        """Returns the policy: adapters beside the reference, or what is trained alone."""
        return lora.attach(reference, trained) if self.config.lora.rank else trained

    def close(self) -> None:
        """Ends the verifier's worker processes."""
        self.judge.pool.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def build_run(config: Config, trains: bool = True) -> Run:
    """Returns everything that a run needs, checked. trains: else it has held-out problems alone.

    Raises UserError for whatever is wrong with the config, data, rewards or model.
    """
    # 1. Settings, model folder and tokenizer: files are read, tensors are not.
    validate(config)
    folder = model_folder(config.model)
    network, tokens = match_tokenizer(
        folder, hf_folder.check_folder(folder), tokenizer.load(folder)
    )
    check_positions(config.sampling, folder)

    # 2. Problems, of which the first are checked.
    problems: Problems = []
    if trains:
        problems = problems_within(
            config.data.train(),
            config.order.pass_rates,
            config.order.low,
            config.order.high,
        )
    task = Task(problems, config.rewards, config.solved_by)
    heldout = config.data.heldout() if config.evaluation.problems else []
    prompt_filter = make_prompt_filter(config, folder, network, tokens)
    notes: list[str | None] = []
    if trains:
        notes += [off_policy_note(config), prompt_filter.check(problems, "training")]
    if config.evaluation.problems:
        notes.append(prompt_filter.check(heldout, "held-out"))
    notes += [*notes_of(config.data), *notes_on_golds(task, heldout)]

    # 3. Programs, which need the devices, and worker processes.
    compilation_cache.enable()
    reference = reference_network(config, tokens)
    programs = build_programs(config, network, tokens.eos_ids, reference=reference)
    return make_run(
        config, network, folder, task, heldout, prompt_filter, programs, notes
    )


def make_prompt_filter(
    config: Config, folder: Path, network: ModelConfig, tokens: Tokenizer
) -> PromptFilter:
    """Returns what accepts the problems that a run can ask.

    folder: the model's
    """
    positions = hf_folder.max_positions(folder)
    return PromptFilter(
        tokenizer=tokens,
        system=config.system,
        width=config.sampling.prompt_width,
        vocab_size=network.vocab_size,
        max_width=positions - config.sampling.max_new_tokens if positions else None,
    )


def make_run(
    config: Config,
    network: ModelConfig,
    folder: Path,
    task: Task,
    heldout: Problems,
    prompt_filter: PromptFilter,
    programs: Programs,
    notes: Iterable[str | None],
) -> Run:
    """Returns the run of parts that have been checked, with its workers and its engine.

    folder: the model's
    heldout: all held-out problems; those that are evaluated are taken of them here
    notes: lines for its start; None: none
    """
    pool = Pool(
        config.rewards | MEASURED, config.verifier.workers, config.verifier.deadline
    )
    engine = Engine(
        programs,
        prompt_filter.tokenizer,
        config.sampling.prompt_width,
        config.sampling.max_new_tokens,
        config.seed,
        config.system,
    )
    return Run(
        config=config,
        network=network,
        task=task,
        heldout=prompt_filter.take(heldout, config.evaluation.problems),
        prompt_filter=prompt_filter,
        judge=Judge(pool, config.rewards, config.solved_by),
        engine=engine,
        programs=programs,
        model_folder=folder,
        notes=[note for note in notes if note],
    )


def build_programs(
    config: Config,
    network: ModelConfig,
    eos_ids: tuple[int, ...],
    devices: list[jax.Device] | None = None,
    reference: ModelConfig | None = None,
) -> Programs:
    """Returns the programs of a run; they need no data and no weights.

    devices: that they are for; None: those here
    reference: the reference's network, where it is not the policy's

    Raises UserError for sizes that the devices cannot share.
    """
    slots = num_slots(config)
    # A CPU is divided into as many devices as divide every number of rows.
    rows = dividing_rows(
        network, rows_per_update(config), config.batch.micro_batch, slots
    )
    mesh = make_mesh(**vars(config.mesh), devices=devices, rows=rows)
    _check_shards(config, row_devices(mesh))
    model = model_spec(config, network, mesh)
    sampling = sampling_spec(config, eos_ids)
    update = UpdateSpec(
        micro_batch=micro_batch_size(config),
        group_size=trained_group_size(config),
        prompt_width=config.sampling.prompt_width,
        pack=config.batch.pack,
        old_logprobs=config.batch.old_logprobs,
        remat=config.compute.remat,
    )
    other = replace(model, network=reference) if reference else None
    return compile_programs(model, sampling, update, build_optimizer(config), other)


def update_rule(config: Config, programs: Programs) -> UpdateRule:
    """Returns the updates that a step makes with its batch."""
    return UpdateRule(
        groups=config.batch.groups,
        updates=config.batch.updates,
        epochs=config.batch.epochs,
        target_kl=config.batch.target_kl,
        seed=config.seed,
        packer=make_packer(config, programs),
    )


def make_packer(config: Config, programs: Programs) -> Packer | None:
    """Returns what packs the rows of an update into bins; None: they are not packed."""
    if not config.batch.pack:
        return None
    return Packer(
        group_size=trained_group_size(config),
        prompt_width=config.sampling.prompt_width,
        columns=config.batch.pack,
        bins_at_once=programs.bins_at_once,
    )


def match_tokenizer(
    folder: Path, network: ModelConfig, tokens: Tokenizer
) -> tuple[ModelConfig, Tokenizer]:
    """Returns a folder's network and tokenizer, made to go together.

    Rows of the embedding that no token has are the network's `unused_ids`. Added tokens past its
    last row, such as the image token of Gemma 3's text models, are neither padding nor end tokens.

    Raises UserError if the tokenizer is another model's.
    """
    rows = network.vocab_size
    ids = set(tokens.hf.get_vocab().values())
    without_row = {id_ for id_ in ids if id_ >= rows}
    eos_ids = tuple(id_ for id_ in tokens.eos_ids if id_ not in without_row)
    added = set(tokens.hf.get_added_vocab().values())
    if without_row - added or without_row & set(tokens.bos_ids) or not eos_ids:
        raise UserError(
            f"{folder}: the tokenizer has {len(ids):,} tokens up to id {max(ids):,}, the model "
            f"only {rows:,} rows: one of the two is another model's; copy the model's own "
            "tokenizer files there"
        )
    # Padding is masked, so any token that the model has will do.
    pad_id = tokens.pad_id if tokens.pad_id < rows else min(eos_ids)
    unused = as_ranges(set(range(rows)) - ids)
    return replace(network, unused_ids=unused), replace(
        tokens, eos_ids=eos_ids, pad_id=pad_id
    )


def reference_network(config: Config, tokens: Tokenizer) -> ModelConfig | None:
    """Returns the network of the folder that is the reference; None: it is the model's.

    tokens: the model's tokenizer

    Raises UserError if the folder cannot be read, or its tokenizer is another.
    """
    if not config.reference:
        return None
    folder = model_folder(config.reference)
    network, other = match_tokenizer(
        folder, hf_folder.check_folder(folder), tokenizer.load(folder)
    )
    check_positions(config.sampling, folder)
    mine = tokens.hf.get_vocab()
    theirs = other.hf.get_vocab()
    differing = mine.items() ^ theirs.items()
    if differing:
        token = min(text for text, _ in differing)
        raise UserError(
            f"{folder}: its tokenizer has {len(theirs):,} tokens, the model's {len(mine):,}, and "
            f"{token!r} is {theirs.get(token)} there and {mine.get(token)} here: the reference "
            "scores the model's own tokens; give a reference of the same family"
        )
    return network


def model_folder(model: str) -> Path:
    """Returns the Hugging Face folder that a config's `model` means; of a bucket's, its copy."""
    return fetched(model, deep=False).expanduser() if model else hf_folder.EMBEDDED


def load_policy(
    programs: SamplingPrograms,
    folder: Path,
    has_adapters: bool,
    out: str | Path | None = None,
    step: int | None = None,
) -> tuple[Params, int | None]:
    """Returns a policy's parameters, and the step of the checkpoint that they are from.

    They are the newest checkpoint's, with adapters beside the model's own; where there is no
    checkpoint they are the model's own, and the step is None.

    out, step: a run's folder (None: without a run), and its checkpoint's step (None: the newest)

    Raises UserError where the run has no checkpoint of that step.
    """
    trained: Params = None
    if out is not None:
        with Checkpoints(out) as checkpoints:
            step = checkpoints.latest() if step is None else step
            if step is not None:
                trained = checkpoints.restore_params(programs.trained_like, step)
    if trained is not None and not has_adapters:
        return trained, step
    params = hf_folder.load_params(folder, programs.params_like)
    if not has_adapters:
        return params, step
    reference = programs.make_reference(params)
    if trained is None:
        # Adapters that change nothing: the programs are compiled for a policy that has some.
        trained = _zeros(programs.trained_like)
    return lora.attach(reference, trained), step


def _zeros(like: Params) -> Params:
    """Returns arrays of zeros in the places and dtypes of jax.ShapeDtypeStruct."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return to_device(zeros, jax.tree.map(lambda leaf: leaf.sharding, like))


def check_positions(sampling: Sampling, folder: Path) -> None:
    """Raises UserError if a row may have more tokens than the model was made for."""
    width = sampling.prompt_width
    new_tokens = sampling.max_new_tokens
    positions = hf_folder.max_positions(folder)
    if not positions or width + new_tokens <= positions:
        return
    if positions > width:
        hint = f"lower sampling.max_new_tokens to {positions - width}"
    else:
        hint = f"lower both, to {positions} together"
    raise UserError(
        f"sampling.prompt_width={width} and sampling.max_new_tokens={new_tokens} are "
        f"{width + new_tokens} tokens, more than the {positions} positions that {folder} was made "
        f"for: {hint}"
    )


def _check_shards(config: Config, shards: int) -> None:
    """Raises UserError for a first axis that the devices cannot share evenly."""
    size = "filter.train_rows" if config.filter.train_rows else "batch.group_size"
    rows = f"batch.groups * {size}"
    if config.batch.updates > 1:
        rows += " / batch.updates"
    sizes = {
        rows: rows_per_update(config),
        "batch.micro_batch": config.batch.micro_batch,
        "sampling.slots": num_slots(config),
    }
    check_shares(sizes, shards)
