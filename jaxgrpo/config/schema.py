"""A run's settings as plain dataclasses.

A new setting is two edits: its field, with its bounds beside it (see bounds.py), and a line
`name: meaning` in the class's docstring, which --help shows. A longer meaning goes on in lines
that are indented further.
"""

from dataclasses import dataclass, field

from jaxgrpo.config.bounds import Marks, setting
from jaxgrpo.errors import FixedFields
from jaxgrpo.losses import GRPO, Objective
from jaxgrpo.models.lora import Lora
from jaxgrpo.problems import Problems, Source, Weighted

DTYPES = ("float32", "bfloat16")


@dataclass
class Sampling(FixedFields):
    """Settings of the sampler: how completions are drawn.

    temperature: divides the logits, in the sampler and in the scorer alike
    prompt_width: W, in tokens
    max_new_tokens: N, in tokens
    slots: rows that are sampled side by side (0: twice the rows of a batch)
    chunk: tokens of a row between two looks at which rows have ended, at most
    weights: matrices of the copy of the policy that is sampled from: "dtype": as the config's dtype
        has them; "int8", with a scale for each output: half the bytes of bfloat16
    stop: texts that end a completion, which holds them; they may be of special tokens
    keep_in_flight: whether completions that a step did not need go on at the next (else: dropped)
    max_age: with keep_in_flight, the most steps between a token's choice and the update on it
    max_logprob_gap: nats; a run whose sampler and scorer differ by more at its first step stops
        (None: by dtype, GAPS)
    """

    temperature: float = setting(
        1.0,
        above=0,
        why="log-probabilities at 0 are infinite; for nearly greedy samples take 0.1",
    )
    prompt_width: int = setting(256, at_least=1, measures=True)
    max_new_tokens: int = setting(256, at_least=1, measures=True)
    slots: int = setting(0, at_least=0)
    chunk: int = setting(32, at_least=1)
    weights: str = setting("dtype", one_of=("dtype", "int8"), measures=True)
    stop: tuple[str, ...] = setting((), measures=True)
    keep_in_flight: bool = False
    max_age: int = setting(2, at_least=1)
    max_logprob_gap: float | None = setting(None, above=0, may_change=True)


@dataclass
class Filter(FixedFields):
    """Filter of the groups that train the policy, by pass rate p (arXiv 2504.03380).

    rule: "band" keeps low <= p <= high, "dapo" keeps 0 < p < 1 (arXiv 2503.14476), "variance" keeps
        groups whose rewards have a variance above min_variance, "off" keeps all
    low: the band's lower end
    high: the band's upper end
    min_variance: with rule "variance", the greatest that is not kept; rewards are in float32
    refill: whether further prompts are sampled until the batch is full (else: exactly a batch's
        prompts are, and the groups that are not kept leave it)
    max_prompts: the refill's bound, in prompts sampled a step as a multiple of the batch's groups
    ahead: problems in flight, at most, as a multiple of those that a step is likely to need yet, by
        the share of groups that passed before (0: as many as there are slots for)
    select: of the groups that pass, "launch": the first in the order of launch; "variance": those
        of the greatest variance, when as many prompts were sampled as may be; "finish": the first
        to end, which favours short answers
    early_verdicts: completions of a group that are sampled and judged first; the others are if the
        group may still pass (0: all are sampled at once) (arXiv 2506.09016)
    early_chance: how likely it must be to pass, by these and the run's earlier verdicts (see order)
    train_rows: completions of a group that are trained on, those of the greatest variance of the
        reward (0: all) (arXiv 2504.13818)
    move_steps: steps in which the ends move evenly to last_low and last_high (0: they stay)
    last_low: the lower end then
    last_high: the upper end then
    target_kept: share of groups to be kept, towards which both ends move outwards or inwards (0:
        they do not)
    target_rate: how far they move in a step, for each unit by which the share is missed
    beta: of the optimal policy that the metric filter/divergence speaks of; nothing else reads it
    """

    rule: str = setting("band", one_of=("band", "dapo", "variance", "off"))
    low: float = 0.2
    high: float = 0.8
    min_variance: float = setting(0.0, at_least=0)
    refill: bool = True
    max_prompts: float = setting(
        4.0,
        at_least=1,
        why="a step samples at least one prompt for each group of its batch",
    )
    ahead: float = setting(0.0, at_least=0)
    select: str = setting("launch", one_of=("launch", "variance", "finish"))
    early_verdicts: int = setting(0, at_least=0)
    early_chance: float = setting(0.3, above=0, at_most=1)
    train_rows: int = setting(0, at_least=0)
    move_steps: int = setting(0, at_least=0)
    last_low: float = 0.2
    last_high: float = 0.8
    target_kept: float = setting(0.0, at_least=0, below=1)
    target_rate: float = setting(0.1, above=0)
    beta: float = setting(1.0, above=0, may_change=True)


@dataclass
class Order(FixedFields):
    """Order in which training problems are asked, and which of them are passed over.

    by: which problems of a window are asked first. "seed": the order is random; "difficulty": the
        easiest, as is known beforehand; "estimate": the easiest, by the verdicts of the run;
        "chance": the likeliest to pass the filter, by these (arXiv 2510.26374)
    window: problems that are compared with each other (0: a whole pass over the data)
    share: of a window that is asked; the others are passed over until the next pass
    review: of what is asked, the share that was asked least often, whatever it promises
    pass_rates: a file of pass rates that were measured, for "difficulty" ("": problems' levels)
    low: problems of a lower measured pass rate are never asked
    high: problems of a higher one neither
    prior_solved: pseudo-verdicts "solved" that the estimate of a problem begins with
    prior_failed: the same of "not solved"
    kind_weight: pseudo-verdicts that those on all problems of a language and level count for
    decay: what earlier verdicts are multiplied by with each step
    rest: passes over the data in which a problem is passed over once its pass rate was 0 or at
        least `retire`, and twice as many each further time (0: none is)
    retire: see rest (arXiv 2510.13786)
    """

    by: str = setting("seed", one_of=("seed", "difficulty", "estimate", "chance"))
    window: int = setting(64, at_least=0)
    share: float = setting(1.0, above=0, at_most=1)
    review: float = setting(0.02, at_least=0, at_most=1)
    pass_rates: str = ""
    low: float = 0.0
    high: float = 1.0
    prior_solved: float = setting(1.0, above=0)
    prior_failed: float = setting(1.0, above=0)
    kind_weight: float = setting(2.0, at_least=0)
    decay: float = setting(0.98, above=0, at_most=1)
    rest: int = setting(0, at_least=0)
    retire: float = setting(0.9, above=0, at_most=1)


@dataclass
class Batch(FixedFields):
    """Batch of a step: groups of completions, and the updates that are made with them.

    groups: prompts in a batch
    group_size: completions of each prompt, G
    updates: optimizer steps that the batch's groups are divided into, an equal number for each
    epochs: how often the batch is gone over, each time with the groups in another order
    target_kl: no further update is made with a batch once KL(old || policy), in nats a token, was
        above this in the last one (0: all are made)
    micro_batch: rows of one forward pass (0: all rows of an update at once); with pack, bins (0:
        one a device)
    pack: columns of the bins into which an update's rows are packed, several in each, so that it
        computes hardly any padding (0: rows are read as they are)
    mask_truncated: whether completions cut off count in advantages alone, and not in the loss
    mask_older: with sampling.keep_in_flight, completions with a token chosen more than so many
        steps before count in advantages alone (None: of any age, up to sampling.max_age)
    old_logprobs: whose log-probabilities the ratio is taken to: the "sampler"'s or the "trainer"'s
    """

    groups: int = setting(8, at_least=1)
    group_size: int = setting(
        8,
        at_least=2,
        why="GRPO compares the completions of a prompt with each other",
    )
    updates: int = setting(1, at_least=1)
    epochs: int = setting(1, at_least=1)
    target_kl: float = setting(0.0, at_least=0)
    micro_batch: int = setting(0, at_least=0)
    pack: int = setting(0, at_least=0)
    mask_truncated: bool = False
    mask_older: int | None = setting(None, at_least=0)
    old_logprobs: str = setting("sampler", one_of=("sampler", "trainer"))


@dataclass
class Optimizer(FixedFields):
    """AdamW. The rate is a function of the step, also over steps that have nothing to train on.

    learning_rate: at the end of the warm-up
    warmup_steps: of linear warm-up
    schedule: what follows: "constant", or "linear" or "cosine" down to 0 at the last step
    weight_decay: on matrices
    b1: decay of the gradient's running mean
    b2: decay of its square's
    max_grad_norm: gradients are clipped to this global norm
    params_dtype: what the trained parameters are stored in, "float32" or "bfloat16" (rounded at
        random: optimizer.store)
    state_dtype: the same of the two running means
    """

    learning_rate: float = setting(1e-6, at_least=0, may_change=True)
    warmup_steps: int = setting(10, at_least=0)
    schedule: str = setting("constant", one_of=("constant", "linear", "cosine"))
    weight_decay: float = setting(0.0, at_least=0)
    b1: float = setting(0.9, at_least=0, below=1)
    b2: float = setting(0.99, at_least=0, below=1)
    max_grad_norm: float = setting(1.0, above=0)
    params_dtype: str = setting("float32", one_of=DTYPES, measures=True)
    state_dtype: str = setting("float32", one_of=DTYPES)


@dataclass
class Verifier(FixedFields):
    """Worker processes that compute rewards.

    workers: how many of them; where several processes train, each has so many
    deadline: seconds that one call of a reward may take
    max_missing: the greatest share of a step's verdicts that may be missing; beyond it the run
        stops
    """

    workers: int = setting(2, at_least=1, may_change=True)
    deadline: float = setting(10.0, above=0)
    max_missing: float = setting(0.1, at_least=0, at_most=1, may_change=True)


@dataclass
class Evaluation(FixedFields):
    """Evaluation on held-out problems, before and after training.

    problems: held-out problems, at most (0: no evaluation)
    samples: completions of each
    temperature: at which they are drawn (0: always the likeliest token)
    top_k: only the k likeliest tokens (0: all)
    top_p: only the likeliest tokens that together have this probability
    min_p: only tokens at least this probable, as a share of the likeliest
    every: steps between evaluations while training (0: only before and after)
    keep_best: with every, the score by which the best checkpoint is kept, too: accuracy, pass_at_K
        or maj_at_N ("": none is)
    sets: further data sets by name, of which jaxgrpo.evaluate measures the held-out problems, too
    policies: what jaxgrpo.evaluate measures: runs, OUT, their checkpoints, OUT/checkpoints/STEP,
        and folders of models (none: the config's out)
    """

    problems: int = setting(256, at_least=0, measures=True)
    samples: int = setting(4, at_least=1, measures=True)
    temperature: float = setting(1.0, at_least=0, measures=True)
    top_k: int = setting(0, at_least=0, measures=True)
    top_p: float = setting(1.0, above=0, at_most=1, measures=True)
    min_p: float = setting(0.0, at_least=0, at_most=1, measures=True)
    every: int = setting(0, at_least=0, may_change=True)
    keep_best: str = setting("", may_change=True)
    sets: dict[str, Source] = field(
        default_factory=dict, metadata=Marks(may_change=True)
    )
    policies: tuple[str, ...] = setting((), may_change=True)


@dataclass
class Compute(FixedFields):
    """Cost of an update: time to compile, time, memory.

    None of it changes what is computed, beyond rounding.

    scan_layers: whether it scans over the layers, their parameters stacked: shorter to compile;
        unrolled may be faster
    remat: what the backward pass finds of a layer: "none": all; "dots": matrix products; "full":
        nothing but its input
    attention: kernel of prompts and updates. "auto": JAX's splash kernel on TPUs, dense elsewhere;
        "cudnn": cuDNN's on NVIDIA GPUs, in bfloat16, which holds less
    """

    scan_layers: bool = setting(False, reads_policy=True)
    remat: str = setting("none", one_of=("none", "dots", "full"), may_change=True)
    attention: str = setting("auto", one_of=("auto", "cudnn"), may_change=True)


@dataclass
class Mesh(FixedFields):
    """Sizes of the device mesh's axes; one of them may be -1: what is left of the devices.

    data: rows are split, parameters copied
    fsdp: rows and parameters are split
    tensor: matrices are split, within a process
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass
class Distributed(FixedFields):
    """Processes that train together: all started with the same settings, but for `process`.

    coordinator: "auto": as a TPU pod, Slurm or Open MPI says; "off": this process alone; or
        process 0's host:port
    processes: with host:port, how many there are
    process: with host:port, which of them this one is, from 0
    """

    coordinator: str = "auto"
    processes: int = setting(1, at_least=1)
    process: int = 0


class _NoProblems:
    """A source without problems."""

    def train(self) -> Problems:
        """Returns no problems."""
        return ()

    heldout = train


NO_PROBLEMS: Source = _NoProblems()
"""Stands for a source where there is no run."""


@dataclass
class Config(FixedFields):
    """All settings of a run.

    data: where problems come from
    rewards: by name (letters, digits, - and _); summed by weight for the advantages
    solved_by: the reward whose value 1.0 counts as solved: the pass rate
    out: the folder it writes and resumes from
    model: a Hugging Face folder ("": the embedded one)
    reference: the folder of the policy that KL is taken to, such as a teacher's, with the same
        tokenizer ("": the model, as the run found it)
    init_from: the folder of another run, whose newest parameters and optimizer moments this run
        begins with at step 0 ("": the model's parameters)
    system: a system message before every prompt ("": none)
    dtype: of matrix products and of what sampler and reference hold: "float32", on TPUs and GPUs,
        too, or "bfloat16"
    seed: all randomness is a function of it
    steps: of training; each makes an update unless its filter keeps nothing
    save_every: steps between checkpoints
    keep_checkpoints: the newest ones that are kept
    show_rollouts_every: steps between those whose completions are written down (0: none)
    save_rollouts: what is written of such a step: "few": one completion of each of four groups;
        "all": every completion of every group
    trackers: where metrics go besides metrics.jsonl: "tensorboard", "wandb", "mlflow"
    quiet: whether nothing is printed; files are written all the same
    """

    # Two have no default: there is no run without problems and rewards.
    data: Source = field(metadata=Marks(measures=True))
    rewards: dict[str, Weighted] = field(metadata=Marks(measures=True))
    solved_by: str = setting("accuracy", measures=True)
    out: str = setting("out", may_change=True)
    model: str = setting("", reads_policy=True)
    reference: str = ""
    init_from: str = ""
    system: str = setting("", measures=True)
    dtype: str = setting("float32", one_of=DTYPES, measures=True)
    seed: int = setting(0, at_least=0, below=2**32, measures=True)
    steps: int = setting(100, at_least=0, may_change=True)
    # Groups of settings, each a class above or of the module that uses it.
    objective: Objective = field(default_factory=GRPO)
    batch: Batch = field(default_factory=Batch)
    sampling: Sampling = field(default_factory=Sampling)
    filter: Filter = field(default_factory=Filter)
    order: Order = field(default_factory=Order)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora = field(default_factory=Lora, metadata=Marks(reads_policy=True))
    verifier: Verifier = field(default_factory=Verifier)
    evaluation: Evaluation = field(
        default_factory=Evaluation, metadata=Marks(may_change=True)
    )
    mesh: Mesh = field(default_factory=Mesh, metadata=Marks(may_change=True))
    compute: Compute = field(default_factory=Compute)
    distributed: Distributed = field(
        default_factory=Distributed, metadata=Marks(may_change=True)
    )
    # What is written, and how often.
    save_every: int = setting(20, at_least=1, may_change=True)
    keep_checkpoints: int = setting(2, at_least=1, may_change=True)
    show_rollouts_every: int = setting(10, at_least=0, may_change=True)
    save_rollouts: str = setting("few", one_of=("few", "all"), may_change=True)
    trackers: tuple[str, ...] = setting(("tensorboard",), may_change=True)
    quiet: bool = setting(False, may_change=True)


def any_config() -> Config:
    """Returns a config of defaults, with neither problems nor rewards: for names and meanings."""
    return Config(data=NO_PROBLEMS, rewards={})
