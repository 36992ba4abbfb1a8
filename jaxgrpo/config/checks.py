"""Checks of a config: types, the bounds beside each field, and what goes together.

`validate` is all of it. Each check raises a UserError for the first thing that is wrong.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Iterator

from jaxgrpo import scores
from jaxgrpo.config import overrides
from jaxgrpo.config.bounds import bounds_of
from jaxgrpo.config.filter_checks import check_filter, check_order
from jaxgrpo.config.objective_checks import (
    OBJECTIVE_METHODS,
    check_methods,
    check_objective,
)
from jaxgrpo.config.schema import (
    Batch,
    Config,
    Distributed,
    Evaluation,
    Mesh,
    Sampling,
)
from jaxgrpo.config.sft_schema import AnyConfig, SFTConfig
from jaxgrpo.config.sizes import trained_group_size
from jaxgrpo.errors import UserError, check_choice
from jaxgrpo.models.lora import TARGETS
from jaxgrpo.problems import Weighted


def validate(config: Config) -> None:
    """Raises UserError for the first thing that cannot work and can be known without a device."""
    _check_each(config)
    _check_batch(config.batch, trained_group_size(config))
    _check_pack(config.batch.pack, config.sampling)
    check_methods("objective", config.objective, OBJECTIVE_METHODS)
    check_objective(config)
    _check_rewards(config.rewards, config.solved_by)
    check_filter(config)
    check_order(config.order)
    _check_shared(config)
    if config.lora.rank and config.reference:
        raise UserError(
            f"lora.rank is {config.lora.rank} and reference {config.reference!r}: adapters are "
            "trained beside the frozen model, which is the reference then; set lora.rank to 0, or "
            "reference to ''"
        )


def validate_sft(config: SFTConfig) -> None:
    """Raises UserError as `validate`, for a config of supervised training."""
    _check_each(config)
    if not callable(config.solution):
        raise UserError(
            f"solution is {config.solution!r}: it must be a function of a problem that returns the "
            "completion to learn, such as Solution()"
        )
    packing = config.packing
    if packing.micro_batch and packing.rows % packing.micro_batch:
        nearest = _nearest_divisors(packing.rows, packing.micro_batch)
        raise UserError(
            f"packing.micro_batch is {packing.micro_batch}: it must divide "
            f"packing.rows={packing.rows}; the nearest that do are {nearest}"
        )
    if config.rewards != {}:
        _check_rewards(config.rewards, config.solved_by)
    elif config.evaluation.keep_best:
        raise UserError(
            f"evaluation.keep_best is {config.evaluation.keep_best!r}, and without rewards nothing "
            "is sampled that could be scored; set it to '', or rewards in the config file"
        )
    _check_shared(config)


def _check_shared(config: AnyConfig) -> None:
    """Raises UserError for groups of settings, of any kind of config, that cannot work."""
    _check_stop(config.sampling.stop)
    _check_evaluation(config.evaluation)
    _check_lora(config.lora.targets)
    _check_mesh(config.mesh)
    _check_distributed(config.distributed)


# 1. Each setting by itself: its type, its bounds.


SOURCE_METHODS = ("train", "heldout")
"""Methods that a source of problems must have."""


def shown_class(cls: type) -> str:
    """Returns a class's "module:name", for ours the module that people import it from."""
    for module in (Config.__module__, SFTConfig.__module__):
        if cls.__module__ == module:
            return f"{__package__}:{cls.__qualname__}"
    return overrides.path_of(cls)


def _check_each(config: AnyConfig) -> None:
    """Raises UserError for a setting that is of another type, or breaks its own marks."""
    _check_types(config)
    _check_marks(config)


def _check_types(config: AnyConfig) -> None:
    """Raises UserError if a group or a setting is of another type than declared."""
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        cls = part.type
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            continue
        if not isinstance(value, cls):
            raise UserError(
                f"{part.name} is {value!r}: it must be a {shown_class(cls)}(...)"
            )
    # A protocol: data is whatever has its methods.
    check_methods("data", config.data, SOURCE_METHODS)
    for name, setting in _own_settings(config):
        if not overrides.has_type(setting, setting.value):
            raise UserError(
                f"{name} is {setting.value!r}: it must be {setting.expected}"
            )


def _own_settings(config: AnyConfig) -> Iterator[tuple[str, overrides.Field]]:
    """Yields all settings by name but those of data sets: a source checks its own."""
    for name, setting in overrides.fields(config).items():
        if not name.startswith(("data.", "evaluation.sets.")):
            yield name, setting


def _check_marks(config: AnyConfig) -> None:
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


def _check_batch(batch: Batch, group_size: int) -> None:
    """Raises UserError if updates do not divide the groups, or micro-batches an update's rows.

    group_size: completions of a group that are trained on
    """
    if batch.groups % batch.updates:
        raise UserError(
            f"batch.updates is {batch.updates}: it must divide batch.groups={batch.groups}; "
            f"the nearest that do are {_nearest_divisors(batch.groups, batch.updates)}"
        )
    groups = batch.groups // batch.updates
    rows = groups * group_size
    size = batch.micro_batch
    # Bins need not divide: as many as a micro-batch lacks are left empty.
    if not size or batch.pack or rows % size == 0:
        return
    product = f"groups * group_size = {groups} * {group_size}"
    if batch.updates > 1:
        product = f"groups / updates * group_size = {groups} * {group_size}"
    raise UserError(
        f"batch.micro_batch is {size}: it must divide {product} = {rows}; "
        f"the nearest that do are {_nearest_divisors(rows, size)}"
    )


def _check_pack(pack: int, sampling: Sampling) -> None:
    """Raises UserError for bins that a prompt and its completion may not fit into."""
    width = sampling.prompt_width
    new_tokens = sampling.max_new_tokens
    if pack and pack < width + new_tokens:
        raise UserError(
            f"batch.pack is {pack}: a bin must have room for sampling.prompt_width + "
            f"sampling.max_new_tokens = {width} + {new_tokens} columns; set it to at least "
            f"{width + new_tokens}, or to 0"
        )


def _nearest_divisors(number: int, size: int) -> str:
    """Returns the divisors of a number next to a size that does not divide it: "4 and 8"."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    below = max(divisor for divisor in divisors if divisor < size)
    # A size of more than the number has no divisor above it.
    above = min((divisor for divisor in divisors if divisor > size), default=number)
    return " and ".join(map(str, sorted({below, above})))


HELDOUT = "heldout"
"""The name of the config's own held-out problems among the data sets of an evaluation."""


def _check_evaluation(evaluation: Evaluation) -> None:
    """Raises UserError for data sets that are none, and for a best that is never measured."""
    for name, source in evaluation.sets.items():
        is_word = isinstance(name, str) and re.fullmatch(r"\w[\w-]*", name)
        if not is_word or name == HELDOUT:
            raise UserError(
                f"evaluation.sets has a {name!r}: a name is letters, digits, - and _, and "
                f"{HELDOUT!r} is that of the config's own held-out problems"
            )
        check_methods(f"evaluation.sets.{name}", source, ("heldout",))
    if not evaluation.keep_best:
        return
    names = tuple(scores.names(evaluation.samples))
    check_choice("evaluation.keep_best", evaluation.keep_best, names)
    if not evaluation.every or not evaluation.problems:
        setting = "every" if evaluation.problems else "problems"
        raise UserError(
            f"evaluation.keep_best is {evaluation.keep_best!r} and evaluation.{setting} 0: no "
            f"checkpoint is evaluated; set evaluation.{setting} to at least 1, or "
            "evaluation.keep_best to ''"
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
