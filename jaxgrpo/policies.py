"""Policies by the paths that people give: a run, one of its checkpoints, a model's folder."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo.build import model_folder
from jaxgrpo.checkpoint import saved_steps
from jaxgrpo.config import Config, text_settings
from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.errors import UserError
from jaxgrpo.files import CHECKPOINTS, fetched, file_versions, with_addresses


@dataclass(frozen=True)
class Policy:
    """A policy that is to be measured.

    name: as people read it: "out/quickstart, step 10" or "FOLDER, untrained"
    model: the model's folder
    out: the folder of its run; None: there is none, the model itself is meant
    step: of the checkpoint; None: the model itself
    """

    name: str
    model: Path
    out: str | None
    step: int | None

    def key(self, config: Config) -> str:
        """Returns a name for what this policy writes with these settings, in all processes alike.

        Files count by their sizes and times, for parameters are too large to be read for it.
        """
        files = file_versions(self.model)
        if self.step is not None:
            files += file_versions(f"{self.out}/{CHECKPOINTS}/{self.step}")
        content = json.dumps([text_settings(config), sorted(files)])
        key = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        return gather_json(key)[0]


def find_policies(config: Config) -> list[Policy]:
    """Returns the policies that a config's evaluation is of.

    Raises UserError for a path that is nothing of the kind.
    """
    paths = config.evaluation.policies
    if not paths:
        return [_of_run(config.out, config.model)]
    return [_find(os.path.expanduser(path), config) for path in paths]


def with_model(config: Config, policy: Policy) -> Config:
    """Returns the config with the policy's model."""
    if policy.model == model_folder(config.model):
        return config
    return replace(config, model=str(policy.model))


def _find(path: str, config: Config) -> Policy:
    """Returns the policy that a path means."""
    path = path.rstrip("/")
    if saved_steps(path) is not None:
        return _of_run(path, config.model)
    if match := re.fullmatch(rf"(?:(.+)/)?{CHECKPOINTS}/(\d+)", path):
        return _of_checkpoint(match[1] or ".", int(match[2]), config.model)
    folder = fetched(path, deep=False)
    if list(folder.glob("*.safetensors")):
        return Policy(f"{path}, untrained", folder, None, None)
    raise UserError(
        f"evaluation.policies has {path!r}: it must be the --config.out of a run with "
        "checkpoints, one of them as OUT/checkpoints/STEP, or a model's folder with .safetensors"
    )


def _of_run(out: str, model: str) -> Policy:
    """Returns a run's newest checkpoint, or the model itself where there is none."""
    steps = saved_steps(out)
    if not steps:
        folder = model_folder(model)
        name = with_addresses(f"{folder}, untrained")
        return Policy(name, folder, None, None)
    return _of_checkpoint(out, steps[-1], model)


def _of_checkpoint(out: str, step: int, model: str) -> Policy:
    """Returns a checkpoint of a run."""
    steps = saved_steps(out) or []
    if step not in steps:
        raise UserError(
            f"{out}/checkpoints has no step {step}: it has {', '.join(map(str, steps)) or 'none'}"
        )
    return Policy(f"{out}, step {step}", model_folder(model), out, step)
