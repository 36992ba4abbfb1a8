"""Checks of a config: types, the bounds beside each field, and what goes together.

`validate` is all of it. Each check raises a UserError for the first thing that is wrong.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterator

from jaxgrpo.config import overrides
from jaxgrpo.config.bounds import ROUNDING, bounds_of
from jaxgrpo.config.objectives import check_group_size, check_moving
from jaxgrpo.config.schema import Batch, Config, Distributed, Filter, Mesh
from jaxgrpo.errors import UserError, check_choice
from jaxgrpo.losses import Corrected
from jaxgrpo.models.lora import TARGETS
from jaxgrpo.problems import Weighted


def validate(config: Config) -> None:
    """Raises UserError for the first thing that cannot work and can be known without a device."""
    _check_types(config)
    _check_marks(config)
    _check_stop(config.sampling.stop)
    _check_batch(config.batch)
    _check_objective(config)
    _check_filter(config.filter, config.batch.group_size)
    _check_rewards(config.rewards, config.solved_by)
    _check_lora(config.lora.targets)
    _check_mesh(config.mesh)
    _check_distributed(config.distributed)


# 1. Each setting by itself: its type, its bounds.


SOURCE_METHODS = ("train", "heldout")
"""Methods that a source of problems must have."""

OBJECTIVE_METHODS = ("advantages", "token_weights", "token_loss")
"""Methods that an objective must have."""

RENAMED_METHODS = {"token_weights": "weights"}
"""Methods' names, and the names that they had before."""


def shown_class(cls: type) -> str:
    """Returns a class's "module:name", for ours the module that people import it from."""
    return overrides.path_of(cls).replace(f"{Config.__module__}:", f"{__package__}:")


def _check_types(config: Config) -> None:
    """Raises UserError if a group or a setting is of another type than declared."""
    for part in dataclasses.fields(Config):
        value = getattr(config, part.name)
        cls = part.type
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            continue
        if not isinstance(value, cls):
            raise UserError(
                f"{part.name} is {value!r}: it must be a {shown_class(cls)}(...)"
            )
    # Protocols: data and objective are whatever has their methods.
    _check_methods("data", config.data, SOURCE_METHODS)
    _check_methods("objective", config.objective, OBJECTIVE_METHODS)
    for name, setting in _own_settings(config):
        if not overrides.has_type(setting, setting.value):
            raise UserError(
                f"{name} is {setting.value!r}: it must be {setting.expected}"
            )


def _own_settings(config: Config) -> Iterator[tuple[str, overrides.Field]]:
    """Yields all settings by name but those of the data: a source checks its own."""
    for name, setting in overrides.fields(config).items():
        if not name.startswith("data."):
            yield name, setting


def _check_methods(name: str, value: object, methods: tuple[str, ...]) -> None:
    """Raises UserError if a part of the config lacks one of the methods, or has its old name."""
    missing = []
    for method in methods:
        old_name = RENAMED_METHODS.get(method, "")
        # Nobody would call the old method of a class that inherits the new one.
        if callable(getattr(value, old_name, None)):
            missing.append(f"{method}() in the place of {old_name}()")
        elif not callable(getattr(value, method, None)):
            missing.append(f"{method}()")
    if missing:
        raise UserError(
            f"{name} is a {overrides.path_of(type(value))}: it must have {', '.join(missing)}"
        )


def _check_marks(config: Config) -> None:
    """Raises UserError if a setting breaks what the marks beside its field say."""
    for name, setting in _own_settings(config):
        choices = setting.marks.get("one_of")
        if choices is not None:
            check_choice(name, setting.value, choices)
        _check_number(name, setting)


HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}
"""What must hold of (value, bound)."""


def _check_number(name: str, setting: overrides.Field) -> None:
    """Raises UserError if a number is not within its setting's bounds, or not finite."""
    value = setting.value
    if not isinstance(value, int | float):
        return
    bounds = bounds_of(setting.marks)
    texts = {mark: _bound_text(mark, bound) for mark, bound in bounds.items()}
    for mark, bound in bounds.items():
        if math.isfinite(value) and HOLDS[mark](value, bound):
            continue
        # The bound that is broken comes first, then the other: one message says the whole range.
        others = [text for other, text in texts.items() if other != mark]
        required = " and ".join([texts[mark], *others])
        or_none = ", or None" if setting.optional else ""
        why = f": {setting.marks['why']}" if "why" in setting.marks else ""
        raise UserError(f"{name} is {value}: it must be {required}{or_none}{why}")


def _bound_text(mark: str, bound: int | float) -> str:
    """Returns a bound as people say it: "at least 0"."""
    number = "2**32" if bound == 2**32 else str(bound)
    return f"{mark.replace('_', ' ')} {number}"


# 2. Settings that have to suit each other.


def _check_stop(stop: tuple[str, ...]) -> None:
    """Raises UserError for a stop text that is none, or empty."""
    if not all(isinstance(text, str) and text for text in stop):
        raise UserError(
            f"sampling.stop is {stop!r}: it must hold texts, none of them empty"
        )


def _check_batch(batch: Batch) -> None:
    """Raises UserError if micro-batches do not divide the rows of a batch."""
    rows = batch.groups * batch.group_size
    size = batch.micro_batch
    if not size or rows % size == 0:
        return
    divisors = [divisor for divisor in range(1, rows + 1) if rows % divisor == 0]
    below = max(divisor for divisor in divisors if divisor < size)
    # A size of more than all rows has no divisor above it.
    above = min((divisor for divisor in divisors if divisor > size), default=rows)
    near = " and ".join(map(str, sorted({below, above})))
    raise UserError(
        f"batch.micro_batch is {size}: it must divide "
        f"groups * group_size = {batch.groups} * {batch.group_size} = {rows}; "
        f"the nearest that do are {near}"
    )


def _check_filter(band: Filter, group_size: int) -> None:
    """Raises UserError for a band that is none, or that no pass rate of a group lies in."""
    ends = f"filter.low is {band.low} and filter.high {band.high}"
    if not 0 <= band.low <= band.high <= 1:
        raise UserError(f"{ends}: they must hold 0 <= low <= high <= 1")
    # Every pass rate that a group can have. Without one in the band, no group would ever train.
    rates = [count / group_size for count in range(group_size + 1)]
    if band.rule == "band" and not any(band.low <= rate <= band.high for rate in rates):
        # 0 and 1 are rates, so that there is one on each side.
        below = max(rate for rate in rates if rate < band.low)
        above = min(rate for rate in rates if rate > band.high)
        raise UserError(
            f"{ends}: no pass rate of {group_size} completions lies there; set filter.low to "
            f"{below!r} or filter.high to {above!r}"
        )


def _check_lora(targets: tuple[str, ...]) -> None:
    """Raises UserError for targets that are no matrices of a layer, and for none at all."""
    unknown = [repr(target) for target in targets if target not in TARGETS]
    if unknown or not targets:
        problem = (
            f"there is no {', '.join(unknown)}"
            if unknown
            else "nothing would be trained"
        )
        raise UserError(
            f"lora.targets is {targets!r}: {problem}; choose of {', '.join(TARGETS)}"
        )


def _check_mesh(mesh: Mesh) -> None:
    """Raises UserError for an axis without a size, and for two that would take what is left."""
    sizes = dataclasses.asdict(mesh)
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise UserError(
                f"mesh.{name} is {size}: it must be at least 1, "
                "or -1 for what is left of the devices"
            )
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(
            f"mesh.{' and mesh.'.join(rest)} are -1: only one axis can take what is left of the "
            "devices"
        )


def _check_distributed(distributed: Distributed) -> None:
    """Raises UserError for a coordinator that is no address, and for a process out of range."""
    coordinator = distributed.coordinator
    count = distributed.processes
    number = distributed.process
    is_default = (count, number) == (1, 0)
    if coordinator in ("auto", "off"):
        # Whoever numbers the processes means to name the coordinator, too.
        if not is_default:
            hint = "give the coordinator as host:port, the same on all processes"
            raise UserError(
                f"distributed.processes is {count} and process {number}, "
                f"with distributed.coordinator {coordinator!r}: {hint}"
            )
        return
    # An IPv6 address has colons, too: the port comes after the last one.
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        others = "auto, off, or " if is_default else ""
        raise UserError(
            f"distributed.coordinator is {coordinator!r}: it must be {others}a host:port, as "
            "10.0.0.2:8476"
        )
    if not 0 <= number < count:
        raise UserError(
            f"distributed.process is {number} of distributed.processes={count}: "
            f"it must be 0 to {count - 1}"
        )


# 3. Rewards and their names.


def _check_rewards(rewards: object, solved_by: str) -> None:
    """Raises UserError for rewards that are none, and for one that cannot be weighted."""
    if not isinstance(rewards, dict) or not rewards:
        raise UserError(
            f"rewards is {rewards!r}: it must be {{name: Weighted(function, weight)}} with at "
            "least one"
        )
    if solved_by not in rewards:
        raise UserError(
            f"solved_by is {solved_by!r}: it must name one of the rewards, "
            f"{', '.join(map(str, rewards))}"
        )
    for name, reward in rewards.items():
        # The name first: it is in the messages about the rest.
        _check_name(name, rewards, solved_by)
        if not isinstance(reward, Weighted) or not callable(reward.function):
            raise UserError(
                f"rewards[{name!r}] is {reward!r}: it must be a Weighted(function, weight)"
            )
        if not math.isfinite(reward.weight):
            raise UserError(
                f"rewards.{name}.weight is {reward.weight}: it must be finite"
            )


TAKEN = ("mean", "accuracy")
"""Names of metrics, reward/NAME, that are no reward's."""


def _check_name(name: object, rewards: dict, solved_by: str) -> None:
    """Raises UserError for a reward's name that means something else on the command line or among
    the metrics."""
    is_word = isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name) is not None
    if is_word and name not in TAKEN:
        return
    if name == "accuracy" and solved_by == name:
        return
    also = ""
    if name == "accuracy":
        why = f"reward/accuracy is always the pass rate, of solved_by={solved_by!r}"
        also = f" or set solved_by to {name!r}"
    elif name == "mean":
        why = "reward/mean is always the mean of the weighted sum"
    else:
        why = (
            "a name is letters, digits, - and _, for --config.rewards.NAME.weight and the metric "
            "reward/NAME"
        )
    free = _free_name(str(name), rewards)
    raise UserError(f"rewards has a {name!r}: {why}; call it {free!r}{also}")


def _free_name(name: str, rewards: dict) -> str:
    """Returns a name like this one that a reward may have, and that none has."""
    free = re.sub(r"\W+", "_", name).strip("_")
    if not free or free in TAKEN:
        free = f"{free}_reward".strip("_")
    # Two names may become one, as a/b and a.b do.
    while free in rewards:
        free += "_2"
    return free


# 4. The objective, whose ratio has to be of what it is taken for.


def _check_objective(config: Config) -> None:
    """Raises UserError for an objective whose ratio would not be what it is taken for."""
    layers = list(_layers(config.objective))
    check_group_size(layers, config.batch.group_size)
    check_moving(layers)
    is_corrected = any(isinstance(layer, Corrected) for layer in layers)
    if config.batch.old_logprobs == "sampler":
        _check_sampler_ratio(config, layers, is_corrected)
    elif config.sampling.keep_in_flight and not is_corrected:
        # The sampler's log-probabilities would do as well, unless they are refused, too.
        refused = _narrow_clip(layers, ROUNDING[config.dtype]) or _without_ratio(layers)
        other = "" if refused else ", or set batch.old_logprobs to 'sampler'"
        raise UserError(
            "sampling.keep_in_flight is on, and batch.old_logprobs 'trainer': the ratio of tokens "
            f"of older policies would be 1; put Corrected(...) around the objective{other}"
        )


def _check_sampler_ratio(
    config: Config, layers: list[object], is_corrected: bool
) -> None:
    """Raises UserError for an objective that a ratio to the sampler's log-probabilities breaks."""
    # Corrected weights a token by old / sampler, which is 1 where the old ones are the sampler's.
    if is_corrected:
        raise UserError(
            "objective is Corrected(...) and batch.old_logprobs 'sampler': there is nothing "
            "to correct; set batch.old_logprobs to 'trainer'"
        )
    hint = "set batch.old_logprobs to 'trainer'"
    if config.sampling.keep_in_flight:
        # Without a correction, the trainer's own ratio would not know that tokens are old.
        hint += " and put Corrected(...) around the objective"
    plain = _without_ratio(layers)
    if config.sampling.keep_in_flight and plain:
        raise UserError(
            f"sampling.keep_in_flight is on, and {plain} has no importance "
            "ratio: tokens of older policies would count as the present one's; "
            f"{hint}, or set sampling.keep_in_flight to false"
        )
    # Before any update the ratio is exp(scorer - sampler): off from 1 by about the rounding.
    rounding = ROUNDING[config.dtype]
    narrow = _narrow_clip(layers, rounding)
    if narrow:
        raise UserError(
            f"objective has {narrow}, and batch.old_logprobs is 'sampler': in {config.dtype} "
            f"sampler and scorer differ by up to {rounding:g} for rounding "
            f"alone, which so narrow a range would clip; {hint}"
        )


def _layers(objective: object) -> Iterator[object]:
    """Yields an objective and, where it wraps another, those inside."""
    yield objective
    if hasattr(objective, "objective"):
        _check_methods("objective.objective", objective.objective, OBJECTIVE_METHODS)
        yield from _layers(objective.objective)


def _without_ratio(layers: list[object]) -> str:
    """Returns the name of the first objective that has no importance ratio, "" without one."""
    for layer in layers:
        if not getattr(layer, "has_ratio", True):
            return type(layer).__name__
    return ""


def _narrow_clip(layers: list[object], rounding: float) -> str:
    """Returns the first end of a clip range that is nearer to 1 than `rounding`, "" without one.

    It is named as "GSPO.clip_low=0.0003".
    """
    for layer in layers:
        for name in ("clip_low", "clip_high"):
            value = getattr(layer, name, None)
            if isinstance(value, int | float) and value < rounding:
                return f"{type(layer).__name__}.{name}={value:g}"
    return ""
