"""Checks of the objective: its methods, and that its ratio is of what it is taken for."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxgrpo.config import overrides
from jaxgrpo.config.bounds import ROUNDING
from jaxgrpo.config.schema import Config
from jaxgrpo.config.sizes import (
    max_trained_age,
    sampler_precision,
    trained_group_size,
)
from jaxgrpo.errors import UserError
from jaxgrpo.losses import Corrected

OBJECTIVE_METHODS = ("advantages", "token_weights", "token_loss")
"""Methods that an objective must have."""

OLD_METHOD_NAMES = {"token_weights": "weights"}
"""The old name of a method, by its present one."""


def check_methods(name: str, value: object, methods: tuple[str, ...]) -> None:
    """Raises UserError if a part of the config lacks one of the methods, or has its old name."""
    missing = []
    for method in methods:
        old_name = OLD_METHOD_NAMES.get(method, "")
        # Nobody would call the old method of a class that inherits the new one.
        if _first_of(type(value), (method, old_name)) == old_name:
            missing.append(f"{method}() in the place of {old_name}()")
        elif not callable(getattr(value, method, None)):
            missing.append(f"{method}()")
    if missing:
        raise UserError(
            f"{name} is a {overrides.path_of(type(value))}: it must have {', '.join(missing)}"
        )


def _first_of(cls: type, methods: tuple[str, ...]) -> str | None:
    """Returns the method that the most derived class has, the first if it has several."""
    for ancestor in cls.__mro__:
        for method in methods:
            if callable(vars(ancestor).get(method)):
                return method
    return None


def check_objective(config: Config) -> None:
    """Raises UserError for an objective whose ratio would not be what it is taken for."""
    layers = list(_layers(config.objective))
    _check_group_size(layers, config)
    _check_several_updates(config, layers)
    is_corrected = any(isinstance(layer, Corrected) for layer in layers)
    if config.batch.old_logprobs == "sampler":
        _check_sampler_ratio(config, layers, is_corrected)
        return
    off_policy = _off_policy(config)
    if off_policy and not is_corrected:
        # The sampler's log-probabilities would do as well, unless they are refused, too.
        rounding = ROUNDING[sampler_precision(config)]
        refused = _narrow_clip(layers, rounding) or _without_ratio(layers)
        other = "" if refused else ", or set batch.old_logprobs to 'sampler'"
        raise UserError(
            f"{off_policy.setting}, and batch.old_logprobs 'trainer': the ratio of tokens "
            f"of {off_policy.policies} would be 1; put Corrected(...) around the objective{other}"
        )


class _OffPolicy(NamedTuple):
    """Why tokens are not drawn from the policy that is trained: the setting, and how to undo it."""

    setting: str
    policies: str
    undo: str


def _off_policy(config: Config) -> _OffPolicy | None:
    """Returns the first reason; None: tokens are the policy's own, up to rounding."""
    if max_trained_age(config):
        return _OffPolicy(
            "sampling.keep_in_flight is on",
            "older policies",
            "sampling.keep_in_flight to false or batch.mask_older to 0",
        )
    if config.sampling.weights == "int8":
        return _OffPolicy(
            "sampling.weights is 'int8'",
            "an int8 policy",
            "sampling.weights to 'dtype'",
        )
    return None


def _check_group_size(layers: list[object], config: Config) -> None:
    """Raises UserError for an objective of groups of another size than the run's.

    layers: the objective and those inside
    """
    group_size = trained_group_size(config)
    setting = "filter.train_rows" if config.filter.train_rows else "batch.group_size"
    for layer in layers:
        own = getattr(layer, "group_size", group_size)
        if own != group_size:
            raise UserError(
                f"objective has {type(layer).__name__}.group_size={own}, and {setting} is "
                f"{group_size}: change one of the two, they must be the same"
            )


def _check_several_updates(config: Config, layers: list[object]) -> None:
    """Raises UserError for several updates with a batch and an objective without a ratio."""
    batch = config.batch
    plain = _without_ratio(layers)
    if plain and batch.updates * batch.epochs > 1:
        raise UserError(
            f"batch.updates is {batch.updates} and batch.epochs {batch.epochs}, and {plain} has no "
            "importance ratio: after the first update the completions would count as the new "
            "policy's; set both to 1, or take an objective with a ratio"
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
    off_policy = _off_policy(config)
    if off_policy:
        # Without a correction, the trainer's own ratio would not know of the other policy.
        hint += " and put Corrected(...) around the objective"
    plain = _without_ratio(layers)
    if off_policy and plain:
        raise UserError(
            f"{off_policy.setting}, and {plain} has no importance ratio: tokens of "
            f"{off_policy.policies} would count as the present one's; {hint}, or set "
            f"{off_policy.undo}"
        )
    # Before any update the ratio is exp(scorer - sampler): off from 1 by about the rounding.
    precision = sampler_precision(config)
    rounding = ROUNDING[precision]
    narrow = _narrow_clip(layers, rounding)
    if narrow:
        raise UserError(
            f"objective has {narrow}, and batch.old_logprobs is 'sampler': in {precision} "
            f"sampler and scorer differ by up to {rounding:g} for rounding "
            f"alone, which so narrow a range would clip; {hint}"
        )


def _layers(objective: object) -> Iterator[object]:
    """Yields an objective and, where it wraps another, those inside."""
    yield objective
    if hasattr(objective, "objective"):
        check_methods("objective.objective", objective.objective, OBJECTIVE_METHODS)
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
