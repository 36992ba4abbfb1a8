"""A config of supervised training brought to life: examples, model, compiled programs.

All input is checked before a device is touched. A `Run` has what reinforcement learning has, too,
so that evaluations are the same.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from jaxgrpo.build import (
    Run,
    check_positions,
    make_prompt_filter,
    make_run,
    match_tokenizer,
    model_folder,
)
from jaxgrpo.config import Config, SFTConfig, validate_sft
from jaxgrpo.data.examples import ExampleMaker
from jaxgrpo.data.order import ProblemOrder, ProblemStream
from jaxgrpo.device.specs import UpdateSpec, dividing_rows
from jaxgrpo.distributed import compilation_cache
from jaxgrpo.distributed.mesh import make_mesh, row_devices
from jaxgrpo.models import hf_folder
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.problems import Problems, Task, notes_of
from jaxgrpo.program_specs import (
    build_optimizer,
    check_shares,
    model_spec,
    sampling_spec,
)
from jaxgrpo.programs import Programs, compile_programs
from jaxgrpo.rewards.maths.golds import notes_on_golds
from jaxgrpo.sft.packing import count_batches, pack
from jaxgrpo.text import tokenizer
from jaxgrpo.types import TrainBatch

HeldoutBatches = Mapping[str, Sequence[TrainBatch]]
"""The packed held-out examples of each language, on the host."""


@dataclass(frozen=True)
class SFTRun:
    """A config of supervised training brought to life.

    run: its model, programs and evaluations; run.config.steps is the last step
    make_example: makes an example of a problem
    heldout: examples whose loss is measured, none without an evaluation
    """

    config: SFTConfig
    run: Run
    make_example: ExampleMaker
    heldout: HeldoutBatches

    def batches(self, stream: ProblemStream) -> Iterator[TrainBatch]:
        """Yields the packed batches of a stream's problems, without end.

        The last batch of a pass holds what is left of it: its steps can be counted, and further
        passes change nothing about it.
        """
        packing = self.config.packing
        pad_id = self.run.engine.tokenizer.pad_id
        for _, problems in itertools.groupby(stream, key=lambda _: stream.epoch):
            examples = map(self.make_example, problems)
            yield from pack(examples, packing.rows, packing.width, pad_id)

    def __enter__(self) -> "SFTRun":
        return self

    def __exit__(self, *error: object) -> None:
        self.run.close()


def build(config: SFTConfig) -> SFTRun:
    """Returns everything that supervised training needs, checked.

    Raises UserError for whatever is wrong with the config, data, rewards or model.
    """
    # 1. Settings, model folder and tokenizer: files are read, tensors are not.
    validate_sft(config)
    folder = model_folder(config.model)
    network, tokens = match_tokenizer(
        folder, hf_folder.check_folder(folder), tokenizer.load(folder)
    )
    make_example = ExampleMaker(
        tokenizer=tokens,
        system=config.system,
        solution=config.solution,
        width=config.packing.width,
        vocab_size=network.vocab_size,
        positions=hf_folder.max_positions(folder) or None,
    )

    # 2. Examples, of which the first are checked, and with them the number of steps.
    problems = config.data.train()
    heldout = config.data.heldout() if config.evaluation.problems else []
    notes = [make_example.check(problems, "training")]
    if config.evaluation.problems:
        notes.append(make_example.check(heldout, "held-out"))
    notes += notes_of(config.data)
    steps = config.steps or _count_steps(config, make_example, problems)
    rl_config = config.to_config(steps)
    task = Task(problems, config.rewards, config.solved_by)
    prompt_filter = make_prompt_filter(rl_config, folder, network, tokens)
    if config.rewards:
        check_positions(rl_config.sampling, folder)
        notes += notes_on_golds(task, heldout)
        if config.evaluation.problems:
            notes.append(prompt_filter.check(heldout, "held-out"))

    # 3. Programs, which need the devices, and worker processes.
    compilation_cache.enable()
    programs = _build_programs(config, rl_config, network, tokens.eos_ids)
    run = make_run(
        rl_config, network, folder, task, heldout, prompt_filter, programs, notes
    )
    heldout_batches = _heldout_batches(config, make_example, heldout)
    return SFTRun(config, run, make_example, heldout_batches)


def _build_programs(
    config: SFTConfig,
    rl_config: Config,
    network: ModelConfig,
    eos_ids: tuple[int, ...],
) -> Programs:
    """Returns the programs of packed batches.

    Raises UserError for sizes that the devices cannot share.
    """
    packing = config.packing
    sizes = {
        "packing.rows": packing.rows,
        "packing.micro_batch": packing.micro_batch,
        "sampling.slots": config.sampling.slots,
    }
    # A CPU is divided into as many devices as divide every number of rows.
    rows = dividing_rows(network, *sizes.values())
    mesh = make_mesh(**vars(config.mesh), rows=rows)
    check_shares(sizes, row_devices(mesh))
    update = UpdateSpec(
        micro_batch=packing.micro_batch,
        # A row holds several prompts: none is read apart, and completions count anywhere in it.
        prompt_width=None,
        # The scorer's, which are the loss of held-out examples; the update does not need any.
        old_logprobs="trainer",
        remat=config.compute.remat,
        scores_reference=False,
    )
    return compile_programs(
        model_spec(rl_config, network, mesh),
        sampling_spec(rl_config, eos_ids),
        update,
        build_optimizer(rl_config),
    )


def _count_steps(
    config: SFTConfig, make_example: ExampleMaker, problems: Problems
) -> int:
    """Returns the optimizer steps that the passes over the problems take."""
    packing = config.packing
    order = ProblemOrder(problems, config.seed)
    # 0 for an example that is left out. A problem is made into tokens once, whatever the passes.
    length_by_id: dict[str, int] = {}
    steps = 0
    for epoch in range(config.epochs):
        lengths = []
        for _ in tqdm(
            range(len(problems)),
            "reading examples",
            leave=False,
            # None: hidden where there is no terminal.
            disable=True if config.quiet or epoch else None,
        ):
            (problem,) = order.take(1)
            if problem.id not in length_by_id:
                length_by_id[problem.id] = make_example.accepted_length(problem)
            lengths.append(length_by_id[problem.id])
        fitting = filter(None, lengths)
        steps += count_batches(fitting, packing.rows, packing.width)
    return steps


def _heldout_batches(
    config: SFTConfig, make_example: ExampleMaker, problems: Problems
) -> HeldoutBatches:
    """Returns the first held-out examples that fit, as many as are evaluated, packed."""
    fitting = filter(make_example.accepts, (problems[i] for i in range(len(problems))))
    examples = defaultdict(list)
    for problem in itertools.islice(fitting, config.evaluation.problems):
        examples[problem.language].append(make_example(problem))
    packing = config.packing
    pad_id = make_example.tokenizer.pad_id
    return {
        language: list(pack(examples[language], packing.rows, packing.width, pad_id))
        for language in sorted(examples)
    }
