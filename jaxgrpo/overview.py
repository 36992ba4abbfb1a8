"""What a run is about to do, in a few lines: devices, model, data, rewards, batch, folders."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from jaxgrpo import console
from jaxgrpo.build import Run
from jaxgrpo.config.sizes import batch_line, num_slots
from jaxgrpo.models.transformer import parameter_count

LABEL_WIDTH = 10
"""Columns of what a line is about."""


def overview(run: Run) -> str:
    """Returns lines of what a run is about to do, each at most console.WIDTH wide."""
    parts = {
        "devices": devices(run),
        "model": model(run),
        "data": _data(run),
        "rewards": ", ".join(_rewards(run)),
        "sampling": _sampling(run),
        "batch": batch_line(run.config),
        "update": _update(run),
        "folders": folders(run),
    }
    return as_lines(parts)


def as_lines(parts: Mapping[str, str]) -> str:
    """Returns texts under their labels, in lines that are at most console.WIDTH wide."""
    lines = [
        textwrap.fill(
            text,
            console.WIDTH,
            initial_indent=label.ljust(LABEL_WIDTH),
            subsequent_indent=" " * LABEL_WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in parts.items()
    ]
    return "\n".join(lines)


def devices(run: Run) -> str:
    """Returns "8 x TPU v5 lite, data=4 fsdp=2"."""
    mesh = run.programs.row_sharding.mesh
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    text = f"{mesh.size} x {jax.devices()[0].device_kind}"
    if axes:
        text += f", {axes}"
    processes = jax.process_count()
    return f"{text}, {processes} processes" if processes > 1 else text


def model(run: Run) -> str:
    """Returns the model's folder, size and dtype, and what of it is trained."""
    network = run.network
    parameters = console.format_count(parameter_count(run.programs.params_like))
    text = (
        f"{_short(run.model_folder)}, {parameters} parameters, {network.layers} "
        f"layer{'s' * (network.layers > 1)}, {run.config.dtype}"
    )
    if run.config.lora.rank:
        trained = console.format_count(parameter_count(run.programs.trained_like))
        text += f"; trained: {trained} of adapters, rank {run.config.lora.rank}"
    if run.config.init_from:
        text += f"; begins with {run.config.init_from}"
    return text


def _data(run: Run) -> str:
    """Returns the source of problems, and how many it has."""
    name = type(run.config.data).__name__
    text = f"{name}, {len(run.task.problems):,} problems to train on"
    evaluation = run.config.evaluation
    if not evaluation.problems:
        return f"{text}, no evaluation"
    count = f"{len(run.heldout):,} held out, {evaluation.samples} samples each"
    return f"{text}; evaluated on {count}"


def _rewards(run: Run) -> Iterator[str]:
    """Yields each reward with its weight, and "(solved)" at the one that decides the pass rate."""
    for name, reward in run.config.rewards.items():
        solves = " (solved)" if name == run.config.solved_by else ""
        yield f"{reward.weight:g} {name}{solves}"


def _sampling(run: Run) -> str:
    """Returns the widths and the slots of sampling, the filter and the order."""
    config = run.config
    sampling = config.sampling
    rule = config.filter.rule
    if rule == "band":
        rule = f"{config.filter.low:g} to {config.filter.high:g} solved"
    if not config.filter.refill:
        rule += ", no refill"
    if config.order.by != "seed":
        rule += f"; asked by {config.order.by}"
    return (
        f"prompts of up to {sampling.prompt_width:,} tokens, completions of up to "
        f"{sampling.max_new_tokens:,}, {num_slots(config):,} at once; filter {rule}"
    )


def _update(run: Run) -> str:
    """Returns the objective, the learning rate and the steps."""
    config = run.config
    optimizer = config.optimizer
    return (
        f"{type(config.objective).__name__}, learning rate {optimizer.learning_rate:g} "
        f"{optimizer.schedule}, {config.steps:,} steps"
    )


def folders(run: Run) -> str:
    """Returns where the run writes, and where compiled programs are kept."""
    text = run.config.out
    cache = jax.config.values["jax_compilation_cache_dir"]
    return f"{text}; compiled programs in {_short(Path(cache))}" if cache else text


def _short(path: Path) -> str:
    """Returns a path from the folder here or from home, where it is below one of them."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    if path.is_relative_to(Path.home()):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)
