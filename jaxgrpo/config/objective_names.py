"""Objectives by name, for the command line alone: `--config.objective=dapo`.

A config file holds the objective itself. A name stands for its class with the paper's coefficients;
what a class has no default for is the run's own.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import TypeVar

from jaxgrpo import losses
from jaxgrpo.config import overrides
from jaxgrpo.config.schema import Config
from jaxgrpo.config.sft_schema import SFTConfig
from jaxgrpo.config.sizes import trained_group_size
from jaxgrpo.errors import UserError
from jaxgrpo.losses import Objective

AnyConfig = TypeVar("AnyConfig", Config, SFTConfig)

OBJECTIVES: dict[str, type] = {
    "grpo": losses.GRPO,
    "dr_grpo": losses.DrGRPO,
    "dapo": losses.DAPO,
    "gspo": losses.GSPO,
    "gspo_token": losses.GSPOToken,
    "rloo": losses.RLOO,
    "reinforce_plus_plus": losses.ReinforcePlusPlus,
    "reinforce_plus_plus_baseline": losses.ReinforcePlusPlusBaseline,
    "cispo": losses.CISPO,
    "ppo": losses.PPO,
    "maxrl": losses.MaxRL,
    "dppo": losses.DPPO,
    "scale_rl": losses.ScaleRL,
}
"""The objectives that have a name. Those around another one have none: a file says around what."""


def override(config: AnyConfig, flags: Iterable[str]) -> AnyConfig:
    """Returns a config with flags `--config.a.b=value` applied, as `overrides.override` does.

    `--config.objective=NAME` is applied before the flags of the objective's own settings, and after
    all others: it replaces the config's objective, and whatever that was around.

    Raises UserError as `overrides.override` does, and for an objective that has no name.
    """
    if not isinstance(config, Config):
        return overrides.override(config, flags)
    names: list[str] = []
    settings: list[str] = []
    others: list[str] = []
    for flag in flags:
        match = re.fullmatch(r"--config\.objective=(.*)", flag, re.DOTALL)
        if match:
            names.append(match[1])
        elif flag.startswith("--config.objective."):
            settings.append(flag)
        else:
            others.append(flag)
    config = overrides.override(config, others)
    if names:
        config = dataclasses.replace(
            config, objective=make_objective(names[-1], config)
        )
    return overrides.override(config, settings)


def make_objective(name: str, config: Config) -> Objective:
    """Returns the objective of a name, with its defaults.

    Raises UserError if there is none.
    """
    cls = _find(name)
    of_the_run: dict[str, int | float] = {
        "budget": float(config.sampling.max_new_tokens),
        "group_size": trained_group_size(config),
    }
    required = {
        field.name: of_the_run[field.name]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING
    }
    objective: Objective = cls(**required)
    return objective


def _find(name: str) -> type:
    """Returns the class of a name, whichever way it is written: dr_grpo, Dr-GRPO, DrGRPO."""
    plain = {_plain(known): known for known in OBJECTIVES}
    if _plain(name) in plain:
        return OBJECTIVES[plain[_plain(name)]]
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    hint = (
        f"did you mean {plain[near[0]]}?"
        if near
        else f"choose one of {', '.join(OBJECTIVES)}; a config file can hold any other"
    )
    raise UserError(
        f"--config.objective={name}: there is no objective of that name; {hint}"
    )


def _plain(name: str) -> str:
    """Returns a name without what may be written in several ways."""
    return re.sub(r"[\s_-]", "", name.lower().replace("+", "plus"))
