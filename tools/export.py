"""A run's newest checkpoint -> a Hugging Face folder that transformers loads, or a LoRA run's adapters for PEFT.

    python -m tools.export --run OUT --to DIR
    python -m tools.export --run OUT --to DIR --adapter
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from jaxgrpo import settings
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.mesh import make_mesh, tree_like
from jaxgrpo.models import lora, transformer, weights
from jaxgrpo.models.lora import Lora
from jaxgrpo.run import model_folder


def read_run(run: Path) -> dict[str, Any]:
    """A run's settings, the model it began with as `folder`, whether its layers are `stacked`, its Lora as `lora`. UserError if
    there is no run."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} holds no run (no config.json): give the --config.out of a training run")
    try:
        config = json.loads(path.read_text())
        folder = model_folder(config["model"])
        stacked = config.get("compute", {}).get("scan_layers", False)
        adapters = config.get("lora", settings.describe(lora.OFF))
        adapters = Lora(adapters["rank"], adapters["alpha"], tuple(adapters["targets"]))
        return {**config, "folder": folder, "stacked": stacked, "lora": adapters}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no run's ({type(error).__name__}: {error}): give the --config.out of one") from error


def export(run: Path, target: Path, adapter: bool = False) -> int:
    """Writes the folder and returns the step it is of. UserError if there is no run, no checkpoint, or the folder exists.

    adapter: write the adapters alone, not merged into the model's matrices.
    """
    config = read_run(run)
    source, adapters = config["folder"], config["lora"]
    if adapter and not adapters.rank:
        raise UserError(f"{run} trained every parameter (lora.rank is 0), so that there is no adapter: leave out --adapter")
    shapes = transformer.shapes(weights.load_config(source))
    layout = transformer.stack if config["stacked"] else transformer.unstack
    like = jax.eval_shape(lambda base: lora.init(adapters, layout(base), jax.random.key(0)), shapes)
    with Checkpoints(run) as checkpoints:
        restored = jax.device_get(checkpoints.restore_params(tree_like(make_mesh(), like)))
        step = checkpoints.latest()
    trained = transformer.unstack(restored)
    if adapter:
        weights.save_adapters(trained, adapters, source, target)
    else:
        base = weights.load_params(source) if adapters.rank else {}
        weights.save(lora.merge(lora.join(base, trained), adapters.scale), source, target)
    return step


def main(argv: list[str]) -> None:
    """Exports as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tools.export", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the --config.out of a training run")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write; it must not be there yet")
    parser.add_argument("--adapter", action="store_true", help="a LoRA run's adapters alone, as a folder that peft loads")
    arguments = parser.parse_args(argv)
    step = export(arguments.run, arguments.to, arguments.adapter)
    print(f"{arguments.to}: step {step} of {arguments.run}, {jax.device_count()} device(s)")


if __name__ == "__main__":
    run_main(main)
