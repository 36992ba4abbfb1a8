"""A run's settings as plain dataclasses; reading a config file, overriding it from the command line, checking it.

A config is a Python file with `get_config()` that returns a `Config`. The command line changes values
(`--config.sampling.temperature=0.8`); files change code.
"""

from dataclasses import dataclass, field

from jaxgrpo.losses.grpo import GRPO
from jaxgrpo.problems import Source, Weighted


@dataclass
class Sampling:
    """How completions are drawn.

    temperature divides the logits, in the sampler and in the scorer alike; prompt_width W and max_new_tokens are in
    tokens; prompts is the number of prompts a launch samples at once (0: as many as the batch has groups).
    """

    temperature: float = 1.0
    prompt_width: int = 256
    max_new_tokens: int = 256
    prompts: int = 0


@dataclass
class Filter:
    """Which groups train the policy, by pass rate p (arXiv 2504.03380).

    rule: "band" keeps low <= p <= high, "dapo" keeps 0 < p < 1 (arXiv 2503.14476), "off" keeps all.
    max_prompts: the refill's bound, in prompts sampled a step as a multiple of the batch's groups.
    """

    rule: str = "band"
    low: float = 0.2
    high: float = 0.8
    max_prompts: float = 4.0


@dataclass
class Batch:
    """groups: prompts in an update (N); group_size: completions of each (G); micro_batch: rows of one forward pass
    (0: all groups * group_size rows at once)."""

    groups: int = 8
    group_size: int = 8
    micro_batch: int = 0


@dataclass
class Optimizer:
    """AdamW. warmup_steps of linear warm-up, then schedule "constant", "linear" or "cosine" down to 0 at the last step;
    gradients are clipped to a global norm of max_grad_norm."""

    learning_rate: float = 1e-6
    warmup_steps: int = 10
    schedule: str = "constant"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    max_grad_norm: float = 1.0


@dataclass
class Verifier:
    """The worker processes that compute rewards: how many, and the seconds one verdict may take."""

    workers: int = 2
    deadline: float = 10.0


@dataclass
class Evaluation:
    """Before and after training: `problems` held-out problems, `samples` completions of each at `temperature`."""

    problems: int = 256
    samples: int = 4
    temperature: float = 1.0


@dataclass
class Mesh:
    """Sizes of the device mesh's axes; one of them may be -1: what is left of the devices."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass
class Config:
    """A run. `out` is the folder it writes and resumes from; `model` a Hugging Face folder ("" is the embedded one);
    `system` a system message before every prompt ("" for none); `rewards` are summed by weight for the advantages, and
    `solved_by` names the one whose value 1.0 counts as solved (the pass rate)."""

    data: Source
    rewards: dict[str, Weighted]
    solved_by: str = "accuracy"
    out: str = "out"
    model: str = ""
    system: str = ""
    dtype: str = "float32"
    seed: int = 0
    steps: int = 100
    objective: GRPO = field(default_factory=GRPO)
    batch: Batch = field(default_factory=Batch)
    sampling: Sampling = field(default_factory=Sampling)
    filter: Filter = field(default_factory=Filter)
    optimizer: Optimizer = field(default_factory=Optimizer)
    verifier: Verifier = field(default_factory=Verifier)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    save_every: int = 20
    keep_checkpoints: int = 2
    show_rollouts_every: int = 10
