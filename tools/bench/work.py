"""The work of sampling and of a GRPO step, whoever does it."""

import numpy as np

from jaxgrpo.models import transformer
from jaxgrpo.models.model_config import ModelConfig
from tools.bench.turns import Work


def rollout_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Returns the work of sampling.

    prompt: tokens of each prompt
    lengths: Int[P G], tokens of the completions of each prompt
    slots: rows that are sampled side by side
    itemsize: bytes of a number
    """
    parameters = transformer.parameter_count(transformer.shapes(model))
    flops = 2.0 * parameters * np.sum(prompt + lengths)
    # Each decode step of all slots fetches the parameters once ...
    steps = np.sum(lengths) / min(slots, lengths.size)
    parameter_bytes = steps * parameters * itemsize
    # ... and each token the keys and values of all before it: of half its row's, on average.
    token_bytes = 2 * model.layers * model.kv_heads * model.head_width * itemsize
    cache_bytes = np.sum(lengths * (prompt + (lengths + 1) / 2)) * token_bytes
    return Work(flops, float(parameter_bytes + cache_bytes))


def step_work(
    model: ModelConfig, prompt: int, lengths: np.ndarray, slots: int, itemsize: int
) -> Work:
    """Returns the work of a GRPO step; parameters as in `rollout_work`."""
    rollout = rollout_work(model, prompt, lengths, slots, itemsize)
    parameters = transformer.parameter_count(transformer.shapes(model))
    # Reference and update read each prompt once for its group.
    tokens = prompt * len(lengths) + np.sum(lengths)
    # FLOPs a parameter and token: the reference's forward pass 2, the update 6.
    flops = rollout.flops + 8.0 * parameters * tokens
    return Work(flops, rollout.bytes)
