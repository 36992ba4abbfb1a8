"""A run's newest checkpoint -> a Hugging Face folder that transformers loads, or a LoRA run's adapters for PEFT.

    python -m tools.export --run OUT --to DIR
    python -m tools.export --run OUT --to DIR --adapter

Every parameter is written in the dtype that it has in the run's model. Of a LoRA run, the merged model is written in float32:
W lies on bfloat16's grid, where rounding W + scale A B would lose most of a small change. --dtype bfloat16 does it all the same
and says how much is lost; --adapter loses nothing and is small.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.build import model_folder
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import overrides
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, sharded_shapes
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.types import Params


def read_run(run: Path) -> dict[str, Any]:
    """A run's settings, the model it began with as `folder`, whether its layers are `stacked`, its Lora as `lora`. UserError if
    there is no run."""
    path = run / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run} holds no run (no config.json): give the --config.out of a training run"
        )
    try:
        config = json.loads(path.read_text())
        folder = model_folder(config["model"])
        stacked = config.get("compute", {}).get("scan_layers", False)
        adapters = config.get("lora", overrides.describe(lora.OFF))
        adapters = Lora(adapters["rank"], adapters["alpha"], tuple(adapters["targets"]))
        return {**config, "folder": folder, "stacked": stacked, "lora": adapters}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no run's ({type(error).__name__}: {error}): give the --config.out of one"
        ) from error


def export(
    run: Path, target: Path, adapter: bool = False, dtype: str | None = None
) -> tuple[int, float]:
    """Writes the folder; returns the step it is of, and the share of a LoRA run's change that rounding to dtype lost.

    adapter: write the adapters alone, not merged into the model's matrices
    dtype: of all tensors (None: float32 for merged adapters, else each as it is in the run's model)

    Raises UserError if there is no run, no checkpoint, or the folder exists.
    """
    config = read_run(run)
    source, adapters = config["folder"], config["lora"]
    if adapter and not adapters.rank:
        raise UserError(
            f"{run} trained every parameter (lora.rank is 0), so that there is no adapter: leave out --adapter"
        )
    if adapter and dtype not in (None, "float32"):
        raise UserError(
            f"--adapter writes float32, which --dtype {dtype} is not: leave out one of the two"
        )
    shapes = transformer.shapes(hf_folder.load_config(source))
    layout = transformer.stack if config["stacked"] else transformer.unstack
    like = jax.eval_shape(lambda base: lora.init(adapters, layout(base), jax.random.key(0)), shapes)
    with Checkpoints(run) as checkpoints:
        restored = jax.device_get(checkpoints.restore_params(sharded_shapes(make_mesh(), like)))
        step = checkpoints.latest()
    trained = transformer.unstack(restored)
    if adapter:
        hf_folder.save_adapters(trained, adapters, source, target)
        return step, 0.0
    if not adapters.rank:
        hf_folder.save(trained, source, target, dtype=dtype)
        return step, 0.0
    base = hf_folder.load_params(source)
    merged = lora.merge(lora.attach(base, trained), adapters.scale)
    hf_folder.save(merged, source, target, dtype=dtype or "float32")
    return step, lost_by_rounding(base, merged, dtype or "float32")


def lost_by_rounding(base: Params, merged: Params, dtype: str) -> float:
    """Returns |round(merged) - merged| / |merged - base|: the share of a change that is lost where it is stored in dtype."""
    lost = changed = 0.0
    before = named_leaves(base)
    for name, leaf in named_leaves(merged).items():
        change = np.asarray(leaf, np.float32) - np.asarray(before[name], np.float32)
        if change.any():
            lost += float(
                np.sum(np.square(np.asarray(leaf.astype(jnp.dtype(dtype)), np.float32) - leaf))
            )
            changed += float(np.sum(np.square(change)))
    return (lost / changed) ** 0.5 if changed else 0.0


def main(argv: list[str]) -> None:
    """Exports as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="the --config.out of a training run"
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="the folder to write; it must not be there yet"
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="a LoRA run's adapters alone, as a folder that peft loads",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of all tensors; by default float32 for a LoRA run, else each as it is in the run's model",
    )
    arguments = parser.parse_args(argv)
    step, lost = export(arguments.run, arguments.to, arguments.adapter, arguments.dtype)
    print(f"{arguments.to}: step {step} of {arguments.run}, {jax.device_count()} device(s)")
    if lost > 0.01:
        mend = "--dtype float32 keeps it, --adapter writes the adapters alone"
        print(
            f"rounding to {arguments.dtype} lost {lost:.0%} of what the adapters had changed; {mend}"
        )


if __name__ == "__main__":
    run_main(main)
