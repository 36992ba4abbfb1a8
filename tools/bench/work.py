"""The work of sampling and of a GRPO step on rows of known lengths."""

import numpy as np

from jaxgrpo.models import transformer
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.performance import Work, sampling_work, update_flops
from jaxgrpo.rollout.protocols import SamplingUsage


def rollout_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Returns the work of sampling, in which prompts count in every row.

    prompt: tokens of each prompt
    lengths: Int[P G], tokens of the completions of each prompt
    slots: rows that are sampled side by side
    itemsize: bytes of a number
    """
    parameters = transformer.parameter_count(transformer.shapes(model))
    usage = SamplingUsage(
        tokens=int(np.sum(lengths)),
        prompt_tokens=prompt * lengths.size,
        steps=float(np.sum(lengths) / min(slots, lengths.size)),
        context_tokens=float(np.sum(lengths * (prompt + (lengths + 1) / 2))),
        weight_bytes=parameters * itemsize,
    )
    return sampling_work(model, parameters, usage, itemsize)


def step_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Returns the work of a GRPO step with a reference; parameters as in `rollout_work`."""
    rollout = rollout_work(model, prompt, lengths, slots, itemsize)
    parameters = transformer.parameter_count(transformer.shapes(model))
    update = update_flops(
        # Reference and update read each prompt once for its group.
        tokens=int(prompt * len(lengths) + np.sum(lengths)),
        parameters=parameters,
        trained=parameters,
        scored=parameters,
    )
    return Work(rollout.flops + update, rollout.bytes)
