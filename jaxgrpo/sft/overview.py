"""What supervised training is about to do, in a few lines."""

from jaxgrpo import overview as shared
from jaxgrpo.sft.build import SFTRun
from jaxgrpo.sft.packing import count_examples


def overview(sft_run: SFTRun) -> str:
    """Returns lines of what a run is about to do, each at most console.WIDTH wide."""
    run = sft_run.run
    return shared.as_lines(
        {
            "devices": shared.devices(run),
            "model": shared.model(run),
            "data": _data(sft_run),
            "batch": _batch(sft_run),
            "update": _update(sft_run),
            "folders": shared.folders(run),
        }
    )


def _data(sft_run: SFTRun) -> str:
    """Returns the source of examples, how many it has, and what is evaluated."""
    config = sft_run.config
    name = type(config.data).__name__
    text = f"{name}, {len(sft_run.run.task.problems):,} problems to learn from"
    if not sft_run.heldout:
        return f"{text}, no evaluation"
    batches = (batch for held in sft_run.heldout.values() for batch in held)
    text += f"; the loss of {sum(map(count_examples, batches)):,} held out"
    if config.rewards:
        text += f", of which {config.evaluation.samples} samples each are judged"
    return text


def _batch(sft_run: SFTRun) -> str:
    """Returns the sizes of a step."""
    packing = sft_run.config.packing
    return (
        f"{packing.rows} rows of {packing.width:,} tokens a step, into which examples are packed, "
        f"micro-batches of {packing.micro_batch or packing.rows}"
    )


def _update(sft_run: SFTRun) -> str:
    """Returns the loss, the learning rate and the steps."""
    config = sft_run.config
    text = (
        "loss on completions only, learning rate "
        f"{config.optimizer.learning_rate:g} {config.optimizer.schedule}, "
        f"{sft_run.run.config.steps:,} steps"
    )
    if config.steps:
        return text
    return f"{text}: {config.epochs} epoch{'s' * (config.epochs > 1)}"
