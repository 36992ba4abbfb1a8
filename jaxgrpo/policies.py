"""Policies by the paths that people give: a run, one of its checkpoints, a model's folder."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxgrpo.build import model_folder
from jaxgrpo.config import Config, text_settings
from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.errors import UserError


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
    out: Path | None
    step: int | None

    def key(self, config: Config) -> str:
        """Returns a name for what this policy writes with these settings, in all processes alike.

        Files count by their sizes and times, for parameters are too large to be read for it.
        """
        folders = [self.model]
        if self.step is not None:
            folders.append(_checkpoint(self.out, self.step))
        content = json.dumps([text_settings(config), _files(folders)])
        key = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        return gather_json(key)[0]


def find_policies(config: Config) -> list[Policy]:
    """Returns the policies that a config's evaluation is of.

    Raises UserError for a path that is nothing of the kind.
    """
    paths = config.evaluation.policies
    if not paths:
        return [_of_run(Path(config.out), config.model)]
    return [_find(Path(path).expanduser(), config) for path in paths]


def with_model(config: Config, policy: Policy) -> Config:
    """Returns the config with the policy's model."""
    if policy.model == model_folder(config.model):
        return config
    return replace(config, model=str(policy.model))


def _find(path: Path, config: Config) -> Policy:
    """Returns the policy that a path means."""
    if (path / "checkpoints").is_dir():
        return _of_run(path, config.model)
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return _of_checkpoint(path.parent.parent, int(path.name), config.model)
    if list(path.glob("*.safetensors")):
        return Policy(f"{path}, untrained", path, None, None)
    raise UserError(
        f"evaluation.policies has {str(path)!r}: it must be the --config.out of a run with "
        "checkpoints, one of them as OUT/checkpoints/STEP, or a model's folder with .safetensors"
    )


def _of_run(out: Path, model: str) -> Policy:
    """Returns a run's newest checkpoint, or the model itself where there is none."""
    steps = _steps(out)
    if not steps:
        folder = model_folder(model)
        return Policy(f"{folder}, untrained", folder, None, None)
    return _of_checkpoint(out, steps[-1], model)


def _of_checkpoint(out: Path, step: int, model: str) -> Policy:
    """Returns a checkpoint of a run."""
    steps = _steps(out)
    if step not in steps:
        raise UserError(
            f"{out}/checkpoints has no step {step}: it has {', '.join(map(str, steps)) or 'none'}"
        )
    return Policy(f"{out}, step {step}", model_folder(model), out, step)


def _steps(out: Path) -> list[int]:
    """Returns the steps of a run's checkpoints, in order."""
    # Orbax would open the devices, before the run has divided a CPU among them. A save that is not
    # complete has another name.
    folders = (out / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def _checkpoint(out: Path | None, step: int) -> Path:
    assert out is not None, "a step is of a run"
    return out / "checkpoints" / str(step)


def _files(folders: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns path, size and time of change of all files in some folders."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    stats = [(str(path.resolve()), path.stat()) for path in sorted(files)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
