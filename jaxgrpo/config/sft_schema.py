"""Settings of supervised fine-tuning. What it shares with reinforcement learning has one name.

SFTConfig(data=GSM8K(), model="Qwen2.5-0.5B", epochs=2, packing=Packing(rows=32, width=1024))
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxgrpo.config.bounds import Marks, setting
from jaxgrpo.config.schema import (
    DTYPES,
    NO_PROBLEMS,
    Compute,
    Config,
    Distributed,
    Evaluation,
    Mesh,
    Optimizer,
    Sampling,
    Verifier,
)
from jaxgrpo.data.examples import Solution
from jaxgrpo.errors import FixedFields
from jaxgrpo.models.lora import Lora
from jaxgrpo.problems import Problem, Source, Weighted


@dataclass
class Packing(FixedFields):
    """Rows of an optimizer step, into which examples are packed whole.

    rows: of a step
    width: tokens of a row, and of an example at most, its prompt included
    micro_batch: rows of one forward pass (0: all rows of a step at once)
    """

    rows: int = setting(8, at_least=1)
    width: int = setting(1024, at_least=2)
    micro_batch: int = setting(0, at_least=0)


@dataclass
class EvaluationSampling(FixedFields):
    """Sizes of the completions that evaluations sample.

    prompt_width: W, in tokens
    max_new_tokens: N, in tokens
    slots: rows that are sampled side by side
    stop: texts that end a completion, which holds them
    """

    prompt_width: int = setting(256, at_least=1, measures=True)
    max_new_tokens: int = setting(256, at_least=1, measures=True)
    slots: int = setting(128, at_least=1)
    stop: tuple[str, ...] = setting((), measures=True)


def _optimizer() -> Optimizer:
    """Returns the optimizer's defaults, of which supervised training takes larger steps."""
    return Optimizer(learning_rate=1e-5, schedule="cosine")


@dataclass
class SFTConfig(FixedFields):
    """All settings of supervised fine-tuning.

    data: where problems with worked solutions come from
    solution: a function of a problem that returns the completion to learn
    rewards: by name; with them evaluations sample completions, too, and judge them
    solved_by: the reward whose value 1.0 counts as solved
    out: the folder it writes and resumes from
    model: a Hugging Face folder ("": the embedded one)
    init_from: the folder of another run, whose newest parameters and optimizer moments this run
        begins with at step 0 ("": the model's parameters)
    system: a system message before every prompt ("": none)
    dtype: of matrix products: "float32", on TPUs and GPUs, too, or "bfloat16"
    seed: all randomness is a function of it
    epochs: passes over the data
    steps: optimizer steps, whatever the epochs are (0: as many as they take, for which all examples
        are read first)
    save_every: steps between checkpoints
    keep_checkpoints: the newest ones that are kept
    trackers: where metrics go besides metrics.jsonl: "tensorboard", "wandb", "mlflow"
    quiet: whether nothing is printed; files are written all the same
    """

    data: Source = field(metadata=Marks(measures=True))
    solution: Callable[[Problem], str] = field(
        default_factory=Solution, metadata=Marks(measures=True)
    )
    rewards: dict[str, Weighted] = field(
        default_factory=dict, metadata=Marks(measures=True)
    )
    solved_by: str = setting("accuracy", measures=True)
    out: str = setting("out", may_change=True)
    model: str = setting("", reads_policy=True)
    init_from: str = ""
    system: str = setting("", measures=True)
    dtype: str = setting("float32", one_of=DTYPES, measures=True)
    seed: int = setting(0, at_least=0, below=2**32, measures=True)
    epochs: int = setting(1, at_least=1, may_change=True)
    steps: int = setting(0, at_least=0, may_change=True)
    packing: Packing = field(default_factory=Packing)
    optimizer: Optimizer = field(default_factory=_optimizer)
    lora: Lora = field(default_factory=Lora, metadata=Marks(reads_policy=True))
    evaluation: Evaluation = field(
        default_factory=Evaluation, metadata=Marks(may_change=True)
    )
    sampling: EvaluationSampling = field(default_factory=EvaluationSampling)
    verifier: Verifier = field(default_factory=Verifier)
    mesh: Mesh = field(default_factory=Mesh, metadata=Marks(may_change=True))
    compute: Compute = field(default_factory=Compute)
    distributed: Distributed = field(
        default_factory=Distributed, metadata=Marks(may_change=True)
    )
    save_every: int = setting(100, at_least=1, may_change=True)
    keep_checkpoints: int = setting(2, at_least=1, may_change=True)
    trackers: tuple[str, ...] = setting(("tensorboard",), may_change=True)
    quiet: bool = setting(False, may_change=True)

    def to_config(self, steps: int = 0) -> Config:
        """Returns the config of a run that has the same model, mesh, optimizer and evaluations.

        steps: of training, where they follow from the epochs
        """
        mine = {part.name for part in dataclasses.fields(self)}
        names = [part.name for part in dataclasses.fields(Config) if part.name in mine]
        shared = {name: getattr(self, name) for name in names}
        shared["sampling"] = Sampling(**vars(self.sampling))
        shared["steps"] = steps or self.steps
        return Config(**shared)


AnyConfig = Config | SFTConfig
"""A config of either kind of training."""


def any_sft_config() -> SFTConfig:
    """Returns a config of defaults, without problems: for names and meanings."""
    return SFTConfig(data=NO_PROBLEMS)
