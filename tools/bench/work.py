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
    lengths: tokens of each row's completion
    slots: rows that are sampled side by side
    itemsize: bytes of a number
    """
    parameters = transformer.parameter_count(transformer.shapes(model))
    flops = 2.0 * parameters * np.sum(prompt + lengths)
    # Each decode step of all slots fetches the parameters once ...
    steps = np.sum(lengths) / min(slots, len(lengths))
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
    # FLOPs a parameter and token: sampling 2, the reference's forward pass 2, the update 6.
    return Work(5 * rollout.flops, rollout.bytes)
