"""A run's settings as plain dataclasses; reading a config file, overriding it from the command line, checking it.

A config is a Python file with `get_config()` that returns a `Config`. The command line changes values
(`--config.sampling.temperature=0.8`); files change code. --help shows a docstring's line `name: ...` with its setting.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter, ge, gt, le, lt
from pathlib import Path
from typing import Any

from jaxgrpo.config import command_line
from jaxgrpo.config import overrides as settings
from jaxgrpo.config.overrides import describe
from jaxgrpo.errors import UserError
from jaxgrpo.losses import GRPO, Corrected, Objective
from jaxgrpo.models.lora import TARGETS, Lora
from jaxgrpo.problems import Source, Weighted


@dataclass
class Sampling:
    """How completions are drawn.

    temperature: divides the logits, in the sampler and in the scorer alike
    prompt_width: W, in tokens
    max_new_tokens: N, in tokens
    slots: rows that are sampled side by side (0: twice the rows of a batch)
    chunk: tokens of a row between two looks at which rows have ended, at most
    stop: texts that end a completion, which holds them; they may be of special tokens
    keep_in_flight: whether completions that a step did not need go on at the next (else: dropped)
    max_age: with keep_in_flight, the most steps between a token's choice and the update on it
    max_logprob_gap: nats; a run whose sampler and scorer differ by more at its first step stops (None: by dtype, GAPS)
    """

    temperature: float = 1.0
    prompt_width: int = 256
    max_new_tokens: int = 256
    slots: int = 0
    chunk: int = 32
    stop: tuple[str, ...] = ()
    keep_in_flight: bool = False
    max_age: int = 2
    max_logprob_gap: float | None = None


GAPS = {"float32": 1e-3, "bfloat16": 0.25}
"""What 99 of 100 tokens' log-probabilities may differ by between sampler and scorer, in nats."""

ROUNDING = {"float32": 1e-5, "bfloat16": 0.01}
"""What they do differ by for rounding alone, in nats: of the embedded model on a CPU 2e-6 and
0.008."""


@dataclass
class Filter:
    """Which groups train the policy, by pass rate p (arXiv 2504.03380).

    rule: "band" keeps low <= p <= high, "dapo" keeps 0 < p < 1 (arXiv 2503.14476), "off" keeps all
    low: the band's lower end
    high: the band's upper end
    max_prompts: the refill's bound, in prompts sampled a step as a multiple of the batch's groups
    """

    rule: str = "band"
    low: float = 0.2
    high: float = 0.8
    max_prompts: float = 4.0


@dataclass
class Batch:
    """What an update is made of.

    groups: prompts in an update
    group_size: completions of each prompt, G
    micro_batch: rows of one forward pass (0: all groups * group_size rows at once)
    mask_truncated: whether completions cut off count in advantages alone, and not in the loss
    old_logprobs: whose log-probabilities the ratio is taken to: the "sampler"'s or the "trainer"'s
    """

    groups: int = 8
    group_size: int = 8
    micro_batch: int = 0
    mask_truncated: bool = False
    old_logprobs: str = "sampler"


@dataclass
class Optimizer:
    """AdamW. The rate is a function of the step, also over steps that have nothing to train on.

    learning_rate: at the end of the warm-up
    warmup_steps: of linear warm-up
    schedule: what follows: "constant", or "linear" or "cosine" down to 0 at the last step
    weight_decay: on matrices
    b1: decay of the gradient's running mean
    b2: decay of its square's
    max_grad_norm: gradients are clipped to this global norm
    params_dtype: what the trained parameters are stored in, "float32" or "bfloat16" (rounded at random: optimizer.store)
    state_dtype: the same of the two running means
    """

    learning_rate: float = 1e-6
    warmup_steps: int = 10
    schedule: str = "constant"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    max_grad_norm: float = 1.0
    params_dtype: str = "float32"
    state_dtype: str = "float32"


@dataclass
class Verifier:
    """The worker processes that compute rewards.

    workers: how many of them; where several processes train, each has so many
    deadline: seconds that one call of a reward may take
    max_missing: the greatest share of a step's verdicts that may be missing; beyond it the run stops
    """

    workers: int = 2
    deadline: float = 10.0
    max_missing: float = 0.1


@dataclass
class Evaluation:
    """Before and after training.

    problems: held-out problems, at most (0: no evaluation)
    samples: completions of each
    temperature: at which they are drawn (0: always the likeliest token)
    top_k: only the k likeliest tokens (0: all)
    top_p: only the likeliest tokens that together have this probability
    min_p: only tokens at least this probable, as a share of the likeliest
    """

    problems: int = 256
    samples: int = 4
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@dataclass
class Compute:
    """What an update costs: time to compile, time, memory. None of it changes what is computed, beyond rounding.

    scan_layers: whether it scans over the layers, their parameters stacked: shorter to compile; unrolled may be faster
    remat: what the backward pass finds of a layer: "none": all; "dots": matrix products; "full": nothing but its input
    """

    scan_layers: bool = False
    remat: str = "none"


@dataclass
class Mesh:
    """Sizes of the device mesh's axes; one of them may be -1: what is left of the devices.

    data: rows are split, parameters copied
    fsdp: rows and parameters are split
    tensor: matrices are split, within a process
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass
class Distributed:
    """Processes that train together: all started with the same settings, but for `process`.

    coordinator: "auto": as a TPU pod, Slurm or Open MPI says; "off": this process alone; or process 0's host:port
    processes: with host:port, how many there are
    process: with host:port, which of them this one is, from 0
    """

    coordinator: str = "auto"
    processes: int = 1
    process: int = 0


@dataclass
class Config:
    """A run.

    data: where problems come from
    rewards: by name (letters, digits, - and _); summed by weight for the advantages
    solved_by: the reward whose value 1.0 counts as solved: the pass rate
    out: the folder it writes and resumes from
    model: a Hugging Face folder ("": the embedded one)
    system: a system message before every prompt ("": none)
    dtype: of matrix products and of what sampler and reference hold: "float32", on TPUs and GPUs, too, or "bfloat16"
    seed: all randomness is a function of it
    steps: of training; each makes an update unless its filter keeps nothing
    save_every: steps between checkpoints
    keep_checkpoints: the newest ones that are kept
    show_rollouts_every: steps between logged samples (0: none)
    """

    data: Source
    rewards: dict[str, Weighted]
    solved_by: str = "accuracy"
    out: str = "out"
    model: str = ""
    system: str = ""
    dtype: str = "float32"
    seed: int = 0
    steps: int = 100
    objective: Objective = field(default_factory=GRPO)
    batch: Batch = field(default_factory=Batch)
    sampling: Sampling = field(default_factory=Sampling)
    filter: Filter = field(default_factory=Filter)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora = field(default_factory=Lora)
    verifier: Verifier = field(default_factory=Verifier)
    evaluation: Evaluation = field(default_factory=Evaluation)
    mesh: Mesh = field(default_factory=Mesh)
    compute: Compute = field(default_factory=Compute)
    distributed: Distributed = field(default_factory=Distributed)
    save_every: int = 20
    keep_checkpoints: int = 2
    show_rollouts_every: int = 10


def parse_command_line(argv: list[str], program: str = "jaxgrpo.train") -> Config:
    """The config that `--config FILE --config.name=value ...` asks for. --help prints the settings and exits with 0.

    Raises UserError for anything that `load` refuses, an unknown flag, and no --config.
    """
    path, overrides, wants_help = command_line.split(argv)
    if path is None and wants_help:
        print(command_line.help_text(program))
        sys.exit(0)
    if path is None:
        raise UserError(
            f"no config file given; run python -m {program} --config FILE, for example configs/quickstart.py"
        )
    if wants_help:
        print(command_line.help_text(program, settings.override(_read(path), overrides)))
        sys.exit(0)
    return load(path, overrides)


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a file, with `--config.name=value` flags applied, checked. Raises UserError."""
    config = settings.override(_read(path), overrides)
    validate(config)
    return config


def _read(path: str) -> Config:
    config = command_line.call(path, "get_config")
    if not isinstance(config, Config):
        raise UserError(
            f"{path}: get_config() returned a {type(config).__name__}; it must return a {settings.path_of(Config)}"
        )
    return config


AT_LEAST = {
    0: "seed steps batch.micro_batch sampling.slots optimizer.learning_rate optimizer.warmup_steps "
    "optimizer.weight_decay optimizer.b1 optimizer.b2 lora.rank evaluation.problems evaluation.temperature "
    "evaluation.top_k evaluation.min_p verifier.max_missing show_rollouts_every",
    1: "batch.groups sampling.prompt_width sampling.max_new_tokens sampling.chunk sampling.max_age "
    "filter.max_prompts verifier.workers evaluation.samples distributed.processes save_every "
    "keep_checkpoints",
    2: "batch.group_size",
}
ABOVE_ZERO = (
    "sampling.temperature optimizer.max_grad_norm lora.alpha verifier.deadline evaluation.top_p"
)
UPPER: dict[str, tuple[Callable[[float], bool], str]] = {
    "optimizer.b1 optimizer.b2": (partial(gt, 1), "below 1"),
    "evaluation.top_p evaluation.min_p verifier.max_missing": (partial(ge, 1), "at most 1"),
    "seed": (partial(gt, 2**32), "below 2**32"),
}
DTYPES = ("float32", "bfloat16")
ONE_OF = {
    "batch.old_logprobs": ("sampler", "trainer"),
    "compute.remat": ("none", "dots", "full"),
    "dtype": DTYPES,
    "filter.rule": ("band", "dapo", "off"),
    "optimizer.params_dtype": DTYPES,
    "optimizer.schedule": ("constant", "linear", "cosine"),
    "optimizer.state_dtype": DTYPES,
}
WHY = {
    "batch.group_size": ": GRPO compares the completions of a prompt with each other",
    "sampling.temperature": ": log-probabilities at 0 are infinite; for nearly greedy samples take 0.1",
    "filter.max_prompts": ": a step samples at least one prompt for each group of its batch",
}


def validate(config: Config) -> None:
    """Raises UserError for the first thing that cannot work and can be known without a device."""
    _check_types(config)
    _check_numbers(config)
    if config.sampling.max_logprob_gap is not None:
        _check_each(config, "sampling.max_logprob_gap", lambda value: value > 0, "above 0, or None")
    if not all(isinstance(text, str) and text for text in config.sampling.stop):
        raise UserError(
            f"sampling.stop is {config.sampling.stop!r}: it must hold texts, none of them empty"
        )
    _check_batch(config.batch)
    _check_objective(config)
    _check_filter(config.filter, config.batch.group_size)
    _check_rewards(config.rewards, config.solved_by)
    _check_lora(config.lora.targets)
    _check_mesh(config.mesh)
    _check_distributed(config.distributed)


METHODS = ("advantages", "token_weights", "token_loss")
"""What makes an objective."""


def _check_types(config: Config) -> None:
    for part in dataclasses.fields(Config):
        value, cls = getattr(config, part.name), part.type
        # Of the others, whatever has the right methods will do.
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not isinstance(value, cls):
            raise UserError(f"{part.name} is {value!r}: it must be a {settings.path_of(cls)}(...)")
    _check_methods("data", config.data, ("train", "heldout"))
    _check_methods("objective", config.objective, METHODS)
    for name, setting in settings.fields(config).items():
        if not name.startswith("data.") and not settings.has_type(
            setting, setting.value
        ):  # a source checks its own
            raise UserError(f"{name} is {setting.value!r}: it must be {setting.expected}")


def _check_methods(name: str, value: Any, methods: tuple[str, ...]) -> None:
    missing = [f"{method}()" for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise UserError(
            f"{name} is a {settings.path_of(type(value))}: it must have {', '.join(missing)}"
        )


def _check_numbers(config: Config) -> None:
    for low, names in AT_LEAST.items():
        _check_each(config, names, partial(le, low), f"at least {low}")
    _check_each(config, ABOVE_ZERO, partial(lt, 0), "above 0")
    for names, (holds, what) in UPPER.items():
        _check_each(config, names, holds, what)
    for name, values in ONE_OF.items():
        value = attrgetter(name)(config)
        if value not in values:
            raise UserError(f"{name} is {value!r}: it must be one of {', '.join(values)}")


def _check_each(config: Config, names: str, holds: Callable[[float], bool], what: str) -> None:
    for name in names.split():
        value = attrgetter(name)(config)
        if not (math.isfinite(value) and holds(value)):
            raise UserError(
                f"{name} is {value}: it must be {what}{_other_end(name, what)}{WHY.get(name, '')}"
            )


def _other_end(name: str, what: str) -> str:
    """Returns the rest of a number's range, so that one message says all of it."""
    lower = [f"at least {low}" for low, names in AT_LEAST.items() if name in names.split()]
    lower += ["above 0"] if name in ABOVE_ZERO.split() else []
    upper = [above for names, (_, above) in UPPER.items() if name in names.split()]
    return "".join(f" and {end}" for end in lower + upper if end != what)


def _check_batch(batch: Batch) -> None:
    rows, size = batch.groups * batch.group_size, batch.micro_batch
    if size and rows % size:
        divisors = [d for d in range(1, rows + 1) if rows % d == 0]
        near = {
            max(d for d in divisors if d < size),
            min((d for d in divisors if d > size), default=rows),
        }
        raise UserError(
            f"batch.micro_batch is {size}: it must divide groups * group_size = {batch.groups} * {batch.group_size} "
            f"= {rows}; the nearest that do are {' and '.join(map(str, sorted(near)))}"
        )


def _check_objective(config: Config) -> None:
    """Raises UserError for an objective whose ratio would not be what it is taken for."""
    layers = list(_layers(config.objective))
    corrected = any(isinstance(layer, Corrected) for layer in layers)
    plain = next((layer for layer in layers if not getattr(layer, "has_ratio", True)), None)
    narrow = _narrow_clip(layers, ROUNDING[config.dtype])
    if config.batch.old_logprobs == "sampler":
        if corrected:
            raise UserError(
                "objective is Corrected(...) and batch.old_logprobs 'sampler': there is nothing "
                "to correct; set batch.old_logprobs to 'trainer'"
            )
        # Without a correction, the trainer's own ratio would not know that tokens are old.
        mend = "set batch.old_logprobs to 'trainer'"
        if config.sampling.keep_in_flight:
            mend += " and put Corrected(...) around the objective"
        if config.sampling.keep_in_flight and plain is not None:
            raise UserError(
                f"sampling.keep_in_flight is on, and {type(plain).__name__} has no importance "
                "ratio: tokens of older policies would count as the present one's; "
                f"{mend}, or set sampling.keep_in_flight to false"
            )
        if narrow:
            raise UserError(
                f"objective has {narrow}, and batch.old_logprobs is 'sampler': in {config.dtype} "
                f"sampler and scorer differ by up to {ROUNDING[config.dtype]:g} for rounding "
                f"alone, which so narrow a range would clip; {mend}"
            )
    elif config.sampling.keep_in_flight and not corrected:
        other = "" if narrow or plain is not None else ", or set batch.old_logprobs to 'sampler'"
        raise UserError(
            "sampling.keep_in_flight is on, and batch.old_logprobs 'trainer': the ratio of tokens "
            f"of older policies would be 1; put Corrected(...) around the objective{other}"
        )


def _layers(objective: Any) -> Iterator[Any]:
    """Yields an objective and, where it wraps another, those inside."""
    yield objective
    if hasattr(objective, "objective"):
        _check_methods("objective.objective", objective.objective, METHODS)
        yield from _layers(objective.objective)


def _narrow_clip(layers: list[Any], least: float) -> str:
    """Returns the first end of a clip range that is nearer to 1 than `least`, as
    "GSPO.clip_low=0.0003"; "" without one."""
    for layer in layers:
        for name in ("clip_low", "clip_high"):
            value = getattr(layer, name, None)
            if isinstance(value, int | float) and value < least:
                return f"{type(layer).__name__}.{name}={value:g}"
    return ""


def _check_filter(rule: Filter, group_size: int) -> None:
    band = f"filter.low is {rule.low} and filter.high {rule.high}"
    if not 0 <= rule.low <= rule.high <= 1:
        raise UserError(f"{band}: they must hold 0 <= low <= high <= 1")
    rates = [count / group_size for count in range(group_size + 1)]
    if rule.rule == "band" and not any(rule.low <= rate <= rule.high for rate in rates):
        below = max(rate for rate in rates if rate < rule.low)
        above = min(rate for rate in rates if rate > rule.high)
        raise UserError(
            f"{band}: no pass rate of {group_size} completions lies there; set filter.low to "
            f"{below!r} or filter.high to {above!r}"
        )


def _check_rewards(rewards: Any, solved_by: str) -> None:
    if not isinstance(rewards, dict) or not rewards:
        raise UserError(
            f"rewards is {rewards!r}: it must be {{name: Weighted(function, weight)}} with at least one"
        )
    if solved_by not in rewards:
        raise UserError(
            f"solved_by is {solved_by!r}: it must name one of the rewards, "
            f"{', '.join(map(str, rewards))}"
        )
    for name, reward in rewards.items():
        _check_name(name, rewards, solved_by)
        if not isinstance(reward, Weighted) or not callable(reward.function):
            raise UserError(
                f"rewards[{name!r}] is {reward!r}: it must be a Weighted(function, weight)"
            )
        if not math.isfinite(reward.weight):
            raise UserError(f"rewards.{name}.weight is {reward.weight}: it must be finite")


def _check_name(name: Any, rewards: dict, solved_by: str) -> None:
    """Raises UserError for a reward's name that the command line or the metrics have another
    meaning for."""
    if (
        isinstance(name, str)
        and re.fullmatch(r"\w[\w-]*", name)
        and name not in ("mean", "accuracy")
    ):
        return
    if name == "accuracy" and solved_by == name:
        return
    if name == "accuracy":
        why = f"reward/accuracy is always the pass rate, of solved_by={solved_by!r}"
        also = f" or set solved_by to {name!r}"
    elif name == "mean":
        why, also = "reward/mean is always the mean of the weighted sum", ""
    else:
        why, also = (
            "a name is letters, digits, - and _, for --config.rewards.NAME.weight and the metric "
            "reward/NAME",
            "",
        )
    free = re.sub(r"\W+", "_", str(name)).strip("_")
    free = free if free and free not in ("mean", "accuracy") else f"{free}_reward".strip("_")
    while free in rewards:
        free += "_2"
    raise UserError(f"rewards has a {name!r}: {why}; call it {free!r}{also}")


def _check_lora(targets: tuple[str, ...]) -> None:
    unknown = [repr(target) for target in targets if target not in TARGETS]
    if unknown or not targets:
        wrong = f"there is no {', '.join(unknown)}" if unknown else "nothing would be trained"
        raise UserError(f"lora.targets is {targets!r}: {wrong}; choose of {', '.join(TARGETS)}")


def _check_mesh(mesh: Mesh) -> None:
    sizes = dataclasses.asdict(mesh)
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(
                f"mesh.{name} is {size}: it must be at least 1, or -1 for what is left of the devices"
            )
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(
            f"mesh.{' and mesh.'.join(rest)} are -1: only one axis can take what is left of the devices"
        )


def _check_distributed(several: Distributed) -> None:
    coordinator, count, which = several.coordinator, several.processes, several.process
    if coordinator in ("auto", "off"):
        if (count, which) != (1, 0):
            mend = "give the coordinator as host:port, the same on all processes"
            raise UserError(
                f"distributed.processes is {count} and process {which}, with distributed.coordinator {coordinator!r}: {mend}"
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        alone = "auto, off, or " if (count, which) == (1, 0) else ""
        raise UserError(
            f"distributed.coordinator is {coordinator!r}: it must be {alone}a host:port, as "
            "10.0.0.2:8476"
        )
    if not 0 <= which < count:
        raise UserError(
            f"distributed.process is {which} of distributed.processes={count}: it must be 0 to {count - 1}"
        )


MAY_DIFFER = {
    "out",
    "steps",
    "save_every",
    "keep_checkpoints",
    "show_rollouts_every",
    "verifier.workers",
    "verifier.max_missing",
    "sampling.max_logprob_gap",
    "compute.remat",
    "mesh",
    "distributed",
}
"""What a resumed run may change, single settings and groups of them: none of it changes what is
computed, beyond rounding; two of them are the bounds at which it stops."""

POLICY = {"model", "lora", "compute.scan_layers"}
"""What a checkpoint's parameters are read by."""

MEASURING = {
    "data",
    "rewards",
    "solved_by",
    "system",
    "dtype",
    "seed",
    "optimizer.params_dtype",
    "sampling.prompt_width",
    "sampling.max_new_tokens",
    "sampling.stop",
    "evaluation",
}
"""What an evaluation of the same policy depends on."""


def save(config: Config, out: str) -> None:
    """Writes the config's description to OUT/config.json, whole or not at all."""
    path = Path(out) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    text = json.dumps(describe(config), indent=2, ensure_ascii=False) + "\n"
    # Half a surrogate pair is not UTF-8; with a backslash it is JSON's own way to write it.
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(partial, path)


def check_same(config: Config, out: str) -> None:
    """Raises UserError if OUT/config.json is there and describes a config that computes something else."""
    # A schedule that ends at the last step depends on which step that is.
    allowed = MAY_DIFFER if config.optimizer.schedule == "constant" else MAY_DIFFER - {"steps"}
    changed = {
        name: values for name, values in _changes(config, out).items() if not _is_of(name, allowed)
    }
    if changed:
        raise UserError(
            f"{out} holds a run with other settings: {_listed(changed)}; give another "
            "--config.out, or go back"
        )


def compare(config: Config, out: str) -> str | None:
    """Returns a line that says in which settings this evaluation differs from the run in OUT, None
    if in none that matters.

    Raises UserError if OUT/config.json is there and its policy is read by other settings than
    these.
    """
    changes = _changes(config, out)
    policy = {name: values for name, values in changes.items() if _is_of(name, POLICY)}
    if policy:
        raise UserError(
            f"{out} holds a run whose policy has other settings: {_listed(policy)}; give another "
            "--config.out, or go back"
        )
    measured = {name: values for name, values in changes.items() if _is_of(name, MEASURING)}
    return (
        f"measured with other settings than the run in {out}: {_listed(measured)}"
        if measured
        else None
    )


def _changes(config: Config, out: str) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ from OUT/config.json: by name, what they were and what they
    are; {} without a file.

    A setting that the file lacks, since the run began before there was one, had its default.
    """
    path = Path(out) / "config.json"
    if not path.exists():
        return {}
    try:
        written = settings.flat(dict(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        mend = "give another --config.out, or remove it if you know that the settings are the same"
        raise UserError(f"{path} cannot be read ({error}); {mend}") from error
    now = settings.flat(describe(config))
    defaults = settings.defaults(config)
    begun = {name: defaults[name] for name in now if name in defaults} | written
    names = [*now, *(begun.keys() - now.keys())]
    return {
        name: (begun.get(name), now.get(name)) for name in names if begun.get(name) != now.get(name)
    }


def _is_of(name: str, these: set[str]) -> bool:
    """Returns whether a setting is one of these, or in a group that is."""
    return bool({name, name.split(".")[0]} & these)


def _listed(changes: dict[str, tuple[Any, Any]]) -> str:
    listed = ", ".join(
        f"{name} (then {then!r}, now {now!r})" for name, (then, now) in list(changes.items())[:3]
    )
    return listed + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
