"""Writes a checkpoint of a run as a Hugging Face folder, or a LoRA run's adapters for PEFT.

    python -m jaxgrpo.export --run OUT --to DIR
    python -m jaxgrpo.export --run OUT --to DIR --adapter

Every parameter is written in the dtype that it has in the run's model. A LoRA run's merged model is
written in float32: W is rounded to bfloat16, and rounding W + scale A B in the same way would lose
most of a small change. --dtype bfloat16 does it all the same and says how much is lost; --adapter
loses nothing and is small.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.build import model_folder
from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.config import overrides
from jaxgrpo.config.command_line import run_main
from jaxgrpo.distributed.mesh import make_mesh, named_leaves, sharded_shapes
from jaxgrpo.errors import UserError
from jaxgrpo.files import fetched_file, written_folder
from jaxgrpo.models import hf_folder, lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.types import Params


@dataclass(frozen=True)
class SavedRun:
    """What a run's checkpoints are read by.

    folder: of the model that the run began with
    adapters: LoRA's, if those were trained
    is_stacked: its checkpoints hold stacked layers
    system: the system message before every prompt
    """

    folder: Path
    adapters: Lora
    is_stacked: bool
    system: str


def read_run(run: str | Path) -> SavedRun:
    """Returns what a run's config.json says of its checkpoints.

    Raises UserError if there is no run.
    """
    path = fetched_file(run, "config.json")
    if not path.is_file():
        raise UserError(
            f"{run} holds no run (no config.json): give the --config.out of a training run"
        )
    try:
        config = json.loads(path.read_text())
        folder = model_folder(config["model"])
        # Older runs have none of the other settings.
        adapters = config.get("lora", overrides.describe(lora.NO_LORA))
        return SavedRun(
            folder=folder,
            adapters=Lora(
                adapters["rank"], adapters["alpha"], tuple(adapters["targets"])
            ),
            is_stacked=config.get("compute", {}).get("scan_layers", False),
            system=config.get("system", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no run's ({type(error).__name__}: {error}): give the --config.out of one"
        ) from error


def export(
    run: str | Path,
    target: str | Path,
    adapter: bool = False,
    dtype: str | None = None,
    step: int | None = None,
) -> tuple[int, float]:
    """Writes the folder `target` from a checkpoint of a run.

    adapter: writes the adapters alone, not merged into the model's matrices
    dtype: of all tensors; None: float32 for merged adapters, else each as it is in the run's model
    step: of the checkpoint; None: the newest

    Returns the checkpoint's step, and the share of a LoRA run's change that rounding to dtype lost.
    Raises UserError if there is no run, if it has no such checkpoint, or if the folder exists.
    """
    saved = read_run(run)
    source = saved.folder
    adapters = saved.adapters
    if adapter and not adapters.rank:
        raise UserError(
            f"{run} trained every parameter (lora.rank is 0), so that there is no adapter: "
            "leave out --adapter"
        )
    if adapter and dtype not in (None, "float32"):
        raise UserError(
            f"--adapter writes float32, which --dtype {dtype} is not: leave out one of the two"
        )

    step, trained = _restore_trained(run, saved, step)
    with written_folder(target) as folder:
        if adapter:
            hf_folder.save_adapters(trained, adapters, source, folder)
            return step, 0.0
        if not adapters.rank:
            hf_folder.save(trained, source, folder, dtype=dtype)
            return step, 0.0

        base = hf_folder.load_params(source)
        merged = lora.merge(lora.attach(base, trained), adapters.scale)
        merged_dtype = dtype or "float32"
        hf_folder.save(merged, source, folder, dtype=merged_dtype)
        return step, lost_by_rounding(base, merged, merged_dtype)


def _restore_trained(
    run: str | Path, saved: SavedRun, step: int | None
) -> tuple[int, Params]:
    """Returns a checkpoint's step and its trained parameters on the host, not stacked.

    step: None: the newest
    """
    layout = transformer.stack if saved.is_stacked else transformer.unstack

    def init(base: Params) -> Params:
        return lora.init_trainable(saved.adapters, layout(base), jax.random.key(0))

    # Shapes alone: a checkpoint is restored into a tree like the one that was trained.
    network = hf_folder.load_config(saved.folder)
    like = jax.eval_shape(init, transformer.shapes(network))
    with Checkpoints(run) as checkpoints:
        step = checkpoints.newest() if step is None else step
        shapes = sharded_shapes(make_mesh(), like)
        restored = jax.device_get(checkpoints.restore_params(shapes, step))
    return step, transformer.unstack(restored)


def lost_by_rounding(base: Params, merged: Params, dtype: str) -> float:
    """Returns the share of a change that is lost where the result is stored in dtype.

    It is |round(merged) - merged| / |merged - base| over all parameters that changed.
    """
    lost = 0.0
    changed = 0.0
    base_leaves = named_leaves(base)
    for path, leaf in named_leaves(merged).items():
        change = np.asarray(leaf, np.float32) - np.asarray(
            base_leaves[path], np.float32
        )
        if not change.any():
            continue
        rounded = np.asarray(leaf.astype(jnp.dtype(dtype)), np.float32)
        lost += float(np.sum(np.square(rounded - leaf)))
        changed += float(np.sum(np.square(change)))
    return (lost / changed) ** 0.5 if changed else 0.0


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the command line's arguments: run, to, step, adapter, dtype."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxgrpo.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--run", required=True, help="the --config.out of a training run"
    )
    parser.add_argument(
        "--to",
        required=True,
        help="the folder to write; it must not be there yet",
    )
    parser.add_argument(
        "--step", type=int, help="the checkpoint to write; by default the newest"
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="a LoRA run's adapters alone, as a folder that peft loads",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of all tensors; by default float32 for a LoRA run, "
        "else each as it is in the run's model",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Exports as the command line says, and prints what was written and lost."""
    arguments = parse(argv)
    step, lost = export(
        arguments.run, arguments.to, arguments.adapter, arguments.dtype, arguments.step
    )
    print(
        f"{arguments.to}: step {step} of {arguments.run}, {jax.device_count()} device(s)"
    )
    if lost > 0.01:
        hint = "--dtype float32 keeps it, --adapter writes the adapters alone"
        print(
            f"rounding to {arguments.dtype} lost {lost:.0%} of what the adapters had changed; "
            f"{hint}"
        )


if __name__ == "__main__":
    run_main(main)
