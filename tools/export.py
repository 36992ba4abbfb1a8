"""A run's newest checkpoint -> a Hugging Face folder that transformers loads.

    python -m tools.export --run OUT --to DIR
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.mesh import make_mesh, tree_like
from jaxgrpo.models import transformer, weights
from jaxgrpo.run import model_folder


def read_run(run: Path) -> dict[str, Any]:
    """A run's settings, the model it began with as `folder`, whether its layers are `stacked`. UserError if there is no run."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} holds no run (no config.json): give the --config.out of a training run")
    try:
        config = json.loads(path.read_text())
        folder = model_folder(config["model"])
        return {**config, "folder": folder, "stacked": config.get("compute", {}).get("scan_layers", False)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no run's ({type(error).__name__}: {error}): give the --config.out of one") from error


def export(run: Path, target: Path) -> int:
    """Writes the folder and returns the step it is of. UserError if there is no run, no checkpoint, or the folder exists."""
    settings = read_run(run)
    shapes = transformer.shapes(weights.load_config(settings["folder"]))
    if settings["stacked"]:
        shapes = jax.eval_shape(transformer.stack, shapes)
    with Checkpoints(run) as checkpoints:
        params = jax.device_get(checkpoints.restore_params(tree_like(make_mesh(), shapes)))
        weights.save(transformer.unstack(params), settings["folder"], target)
        return checkpoints.latest()


def main(argv: list[str]) -> None:
    """Exports as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the --config.out of a training run")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write; it must not be there yet")
    arguments = parser.parse_args(argv)
    step = export(arguments.run, arguments.to)
    print(f"{arguments.to}: step {step} of {arguments.run}, {jax.device_count()} device(s)")


if __name__ == "__main__":
    run_main(main)
