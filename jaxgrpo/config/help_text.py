"""What --help prints: how to call a program, what can be set, and what it means."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping

from jaxgrpo.config import catalogue, overrides
from jaxgrpo.config.catalogue import Entry
from jaxgrpo.config.schema import Config
from jaxgrpo.config.sft_schema import AnyConfig

MAX_FLAG_WIDTH = 48
"""Columns that flags may take before their meanings are no longer aligned."""


def help_of_config(program: str, config: AnyConfig) -> str:
    """Returns how to call a program, what a config holds, and its settings with their values."""
    return "\n\n".join([_usage(program), _held(config), _flags(config)])


def help_of_all(program: str, shipped: Iterable[str], config: AnyConfig) -> str:
    """Returns how to call a program, and everything that a config can hold, with the defaults.

    shipped: names of the configs that come with the package
    config: of defaults, of the program's kind
    """
    objectives = (
        "Objectives by name: --config.objective=NAME, then --config.objective.setting=value. "
        "Those around another one,\nsuch as Regularised and Corrected, are for a config file."
    )
    parts = [
        _usage(program),
        "--config takes a Python file with get_config(), or the name of one that is here:\n"
        + _wrapped(", ".join(sorted(shipped)), "  "),
        "Settings, and their defaults. With --config FILE, --help lists that file's.",
        _flags(config),
        *(
            [objectives, _entries(catalogue.objectives(), "--config.objective.")]
            if isinstance(config, Config)
            else []
        ),
        "Sources of problems, for `data` of a config file: their fields are --config.data.NAME.",
        _entries(catalogue.sources(), "--config.data."),
        "Rewards, for `rewards` of a config file: {NAME: Weighted(reward, weight)}. The weight is "
        "--config.rewards.NAME.weight, and a\nreward's own fields --config.rewards.NAME.function.*",
        _entries(catalogue.reward_functions(), "function."),
    ]
    return "\n\n".join(parts)


def _usage(program: str) -> str:
    """Returns how to call a program."""
    return f"usage: python -m {program} --config FILE [--config.name=value ...]"


def _held(config: AnyConfig) -> str:
    """Returns a line for what a config holds besides settings: problems, objective, rewards."""
    names = ("data", "solution", "objective")
    things = {name: getattr(config, name) for name in names if hasattr(config, name)}
    things |= {
        f"rewards.{name}": reward.function for name, reward in config.rewards.items()
    }
    lines = []
    for name, thing in things.items():
        named = thing if hasattr(thing, "__qualname__") else type(thing)
        about = catalogue.first_sentence(named)
        lines.append(f"  {name}: {overrides.path_of(thing)}  {about}".rstrip())
    return "\n".join(lines)


def _flags(config: AnyConfig) -> str:
    """Returns every setting of a config with its value and meaning."""
    return _rows(
        {
            f"--config.{name}={overrides.shown(field.value)}": field.doc
            for name, field in overrides.fields(config).items()
        }
    )


def _entries(entries: Iterable[Entry], prefix: str) -> str:
    """Returns what each entry is, and its settings under it.

    prefix: of its settings' names
    """
    parts = []
    for entry in entries:
        rows = {}
        for name, setting in entry.settings.items():
            value = "" if setting.default is None else f"={setting.default}"
            rows[f"  {prefix}{name}{value}"] = setting.about
        parts.append(
            f"  {entry.name}: {entry.about}" + ("\n" + _rows(rows) if rows else "")
        )
    return "\n".join(parts)


def _rows(meanings: Mapping[str, str]) -> str:
    """Returns flags with their meanings beside them."""
    # Only a few flags, of long texts and tuples, are wider.
    width = min(max(map(len, meanings)), MAX_FLAG_WIDTH)
    return "\n".join(
        f"  {flag:{width}}  {doc}".rstrip() for flag, doc in meanings.items()
    )


def _wrapped(text: str, indent: str) -> str:
    """Returns a text in lines of the terminal's width."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
