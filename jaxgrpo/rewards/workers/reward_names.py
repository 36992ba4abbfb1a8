"""Names of rewards: `reward_name` makes one, `find_reward` imports the reward, in any process."""

import dataclasses
import importlib
import json
import operator
from collections.abc import Callable

from jaxgrpo.errors import UserError
from jaxgrpo.problems import BatchedReward, Reward


def reward_name(function: Reward | BatchedReward) -> str:
    """Returns the "module:qualname" by which another process can import a reward.

    The name of a dataclass's instance is its class's, with its settings in JSON behind it; settings
    that are rewards are given by their names. `find_reward` is the inverse.

    Raises UserError if no name leads to the reward.
    """
    has_settings = dataclasses.is_dataclass(function) and not isinstance(function, type)
    named_object = type(function) if has_settings else function
    module = getattr(named_object, "__module__", None)
    qualname = getattr(named_object, "__qualname__", None)
    # "<" is part of <lambda> and <locals>.
    if not module or not qualname or module == "__main__" or "<" in qualname:
        raise UserError(
            f"reward {function!r} cannot be imported by a worker process: make it a function at "
            "the top level of a module that is not the main program (no lambda, no nested "
            "function, no partial)"
        )
    name = f"{module}:{qualname}"
    if has_settings:
        name += json.dumps(vars(function), default=_encode_setting)
    if find_reward(name) != function:
        raise UserError(
            f"reward {name}: importing that name finds another object than the one given"
        )
    return name


def _encode_setting(value: object) -> dict[str, str]:
    """Returns the JSON form of a setting that is a reward. Raises UserError for anything else."""
    if not callable(value):
        raise UserError(
            f"a reward's setting is {value!r}: it must be a JSON value, a tuple of them, or "
            "another reward"
        )
    return {"reward": reward_name(value)}


def find_reward(name: str) -> Callable:
    """Imports a reward by its name, "module:qualname".

    A reward that is an instance of a class is named with its settings,
    'module:qualname{"tolerance": 0.01}'. Settings are JSON, and nothing in them is executed. Lists
    become tuples, for settings have no lists. {"reward": name} becomes the reward of that name, for
    a reward may be made of others.

    Raises UserError if there is no such reward.
    """
    path, brace, settings = name.partition("{")
    module_name, _, qualname = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # a user's module can raise anything, SystemExit too
        reason = _one_line(error)
        raise UserError(
            f"reward {name}: importing {module_name} failed with {reason}"
        ) from error
    try:
        reward = operator.attrgetter(qualname)(module)
    except AttributeError:
        raise UserError(
            f"reward {name}: {module_name} has no {qualname} at its top level"
        ) from None
    if brace:
        values = json.loads(brace + settings)
        try:
            reward = reward(
                **{field: _decode_setting(value) for field, value in values.items()}
            )
        except Exception as error:
            reason = _one_line(error)
            raise UserError(
                f"reward {name} cannot be made from its settings: {reason}"
            ) from error
    if not callable(reward):
        raise UserError(
            f"reward {name} is a {type(reward).__name__}, not a function of (problem, text)"
        )
    return reward


def _one_line(error: BaseException) -> str:
    """Returns an error's name and message without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _decode_setting(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(_decode_setting, value))
    if isinstance(value, dict) and value.keys() == {"reward"}:
        return find_reward(value["reward"])
    return value
