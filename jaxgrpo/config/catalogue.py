"""What a config can hold besides settings: objectives, sources of problems and rewards.

Found in the package itself, so that what is added there is listed. Nothing here runs them.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

from jaxgrpo import data, rewards
from jaxgrpo.config import overrides
from jaxgrpo.config.objective_names import OBJECTIVES

COMPLETION = ("text", "texts", "completion", "completions")
"""What the second parameter of a reward is called; the first is the problem."""


class Setting(NamedTuple):
    """A field of something that a config can hold.

    default: as one would type it; None where the field must be given
    about: its meaning
    """

    default: str | None
    about: str


class Entry(NamedTuple):
    """Something that a config can hold.

    name: as a flag or a config file writes it
    about: the first sentence of its docstring
    settings: its fields by name
    """

    name: str
    about: str
    settings: dict[str, Setting]


def objectives() -> list[Entry]:
    """Returns the objectives that have a name."""
    return [_entry(cls, name) for name, cls in OBJECTIVES.items()]


def sources() -> list[Entry]:
    """Returns the package's sources of problems."""
    return [
        _entry(thing, path)
        for path, thing in _public_things(data)
        if isinstance(thing, type)
        and not inspect.isabstract(thing)
        and hasattr(thing, "train")
        and hasattr(thing, "heldout")
    ]


def reward_functions() -> list[Entry]:
    """Returns the package's rewards: functions, and dataclasses whose instances are rewards."""
    return [
        _entry(thing, path)
        for path, thing in _public_things(rewards)
        if _is_reward(thing)
    ]


def _public_things(package: ModuleType) -> Iterator[tuple[str, object]]:
    """Yields the public classes and functions of a package, by "module.name", in order."""
    for module in _modules(package):
        for name, thing in vars(module).items():
            is_own = getattr(thing, "__module__", None) == module.__name__
            if is_own and callable(thing) and not name.startswith("_"):
                yield _import_path(module, name), thing


def _import_path(module: ModuleType, name: str) -> str:
    """Returns where people import a thing of a module from: its folder, if that offers it."""
    folder = module.__name__.rpartition(".")[0]
    offered = getattr(importlib.import_module(folder), name, None)
    place = folder if offered is getattr(module, name) else module.__name__
    return f"{place}.{name}"


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    """Yields the modules of a package that can be imported here."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # Builders are for TFDS, which they would import; workers only run rewards.
        if found.name.endswith("_builder") or ".workers" in found.name:
            continue
        try:
            yield importlib.import_module(found.name)
        except ImportError:
            # A library that is an extra is missing.
            continue


def _is_reward(thing: object) -> bool:
    """Returns whether a thing is called with a problem and a completion."""
    if isinstance(thing, type):
        if not dataclasses.is_dataclass(thing) or "__call__" not in vars(thing):
            return False
        _, *parameters = inspect.signature(thing.__call__).parameters
    else:
        parameters = list(inspect.signature(thing).parameters)  # type: ignore[arg-type]
    return (
        len(parameters) == 2
        and parameters[0] == "problem"
        and parameters[1] in COMPLETION
    )


def _entry(thing: object, name: str) -> Entry:
    """Returns what a person should know of a class or a function."""
    settings = {}
    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            if field.init:
                default = overrides.default_of(field)
                is_required = default is dataclasses.MISSING
                settings[field.name] = Setting(
                    default=None if is_required else overrides.shown(default),
                    about=overrides.doc_of(thing, field.name),
                )
    return Entry(name, first_sentence(thing), settings)


def first_sentence(thing: object) -> str:
    """Returns the first sentence of a docstring, on one line; "" without one."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    # A stop that no capital follows is part of a layout, as in `<think> ... </think>`.
    first, *_ = re.split(
        r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()), maxsplit=1
    )
    return first
