"""The work of a step, and how near it comes to the peaks of the devices that do it.

Work is what has to be done, whoever does it: FLOPs of products with the parameters, each token
once, and bytes that decoding has to read. Recomputation, padding and the products of queries with
keys are no part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgrpo.build import Run
from jaxgrpo.models.model_config import ModelConfig
from jaxgrpo.models.transformer import parameter_count
from jaxgrpo.plan.chips import CHIPS
from jaxgrpo.rollout.collect import Collection
from jaxgrpo.rollout.groups import Group
from jaxgrpo.rollout.protocols import SamplingUsage
from jaxgrpo.types import TrainBatch


@dataclass(frozen=True)
class Work:
    """Work that has to be done.

    flops: 2 for each parameter and token of a forward pass, 6 with a gradient
    bytes: what decoding has to fetch: for each step of all slots the parameters once, and for each
        token the keys and values of its row so far
    """

    flops: float
    bytes: float

    def floor_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Returns the least seconds it can take at these rates."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


class Peak(NamedTuple):
    """A device's peak by its maker: FLOP/s of bfloat16 products, bytes/s of its memory."""

    flops_per_s: float
    bytes_per_s: float


PEAKS = {chip.kind: Peak(chip.flops, chip.bandwidth) for chip in CHIPS.values()} | {
    "NVIDIA H100 80GB HBM3": Peak(989e12, 3.35e12),
    "NVIDIA H200": Peak(989e12, 4.8e12),
}
"""Peaks by JAX's device_kind. Those of GPUs are for dense products, by NVIDIA's data sheets of the
SXM modules. Nobody knows that of a CPU."""


def sampling_work(
    network: ModelConfig,
    parameters: int,
    usage: SamplingUsage,
    itemsize: int,
    devices: int = 1,
) -> Work:
    """Returns a device's work of sampling.

    parameters: numbers of the network
    usage: its counts of tokens and steps, and the bytes that a device has of the parameters
    itemsize: bytes of a number in the caches
    devices: that share products and caches
    """
    tokens = usage.prompt_tokens + usage.tokens
    token_bytes = 2 * network.layers * network.kv_heads * network.head_width * itemsize
    return Work(
        flops=2.0 * parameters * tokens / devices,
        bytes=float(
            usage.steps * usage.weight_bytes
            + usage.context_tokens * token_bytes / devices
        ),
    )


def update_flops(
    tokens: int, parameters: int, trained: int, scored: int, passes: float = 1.0
) -> float:
    """Returns the FLOPs of the updates with a batch.

    tokens: of the batch, prompts included
    trained: parameters that are trained, all of them or adapters
    scored: parameters of the networks that score the batch once, beside the gradient
    passes: how often gradients are taken of the whole batch
    """
    # Forward, gradients of activations, gradients of parameters: 2 FLOPs each.
    return tokens * (passes * (4.0 * parameters + 2.0 * trained) + 2.0 * scored)


def batch_tokens(groups: Sequence[Group]) -> int:
    """Returns the tokens of the groups' rows, each prompt once."""
    tokens = 0
    for group in groups:
        prompt = group.attention_mask[0] & ~group.completion_mask[0]
        tokens += int(prompt.sum() + group.completion_mask.sum())
    return tokens


def rates(
    sampling: Work,
    flops: float,
    step_seconds: float,
    decode_seconds: float,
    peak: Peak | None,
) -> dict[str, float]:
    """Returns a device's rates as metrics, and its shares of the peak where there is one.

        perf/flops_per_s       FLOPs of the step, over its seconds
        perf/decode_bandwidth  bytes that decoding had to read, over the seconds in which a call of
                               decode was under way; prefills that wait before it are in them
        perf/mfu, perf/mbu     both as shares of the peak

    flops: a device's of the whole step
    """
    flops_per_s = flops / step_seconds
    bytes_per_s = sampling.bytes / decode_seconds if decode_seconds else 0.0
    absolute = {
        "perf/flops_per_s": flops_per_s,
        "perf/decode_bandwidth": bytes_per_s,
    }
    if peak is None:
        return absolute
    return absolute | {
        "perf/mfu": flops_per_s / peak.flops_per_s,
        "perf/mbu": bytes_per_s / peak.bytes_per_s,
    }


def step_metrics(
    run: Run,
    collected: Collection,
    update_metrics: Mapping[str, float],
    step_seconds: float,
) -> dict[str, float]:
    """Returns the metrics perf/... of a step: see `rates`.

    update_metrics: those of the step's updates; none where there was no update
    """
    config = run.config
    programs = run.programs
    devices = jax.device_count()
    parameters = parameter_count(programs.params_like)
    usage = collected.usage
    itemsize = jnp.dtype(config.dtype).itemsize
    sampling = sampling_work(run.network, parameters, usage, itemsize, devices)
    # Some of a batch's updates may have been left out.
    passes = update_metrics.get("update/count", 1.0) / config.batch.updates
    scored = parameter_count(programs.reference_like)
    if config.batch.old_logprobs == "trainer" and "update/count" in update_metrics:
        scored += parameters
    update = update_flops(
        tokens=batch_tokens(collected.groups),
        parameters=parameters,
        trained=parameter_count(programs.trained_like),
        scored=scored,
        passes=passes,
    )
    return rates(
        sampling,
        flops=sampling.flops + update / devices,
        step_seconds=step_seconds,
        decode_seconds=usage.seconds - usage.idle_seconds,
        peak=PEAKS.get(jax.devices()[0].device_kind),
    )


def learning_metrics(run: Run, batch: TrainBatch, seconds: float) -> dict[str, float]:
    """Returns the rates of an update without sampling, as metrics.

        perf/tokens_per_s      tokens that were read, prompts and completions, a second
        perf/flops_per_s       a device's FLOPs, over the seconds
        perf/mfu               as a share of the peak, where it is known

    batch: what was learned, on the host
    seconds: of the whole step
    """
    programs = run.programs
    tokens = int((batch.segments > 0).sum())
    flops = update_flops(
        tokens=tokens,
        parameters=parameter_count(programs.params_like),
        trained=parameter_count(programs.trained_like),
        scored=0,
    )
    flops_per_s = flops / jax.device_count() / seconds
    absolute = {
        "perf/tokens_per_s": tokens / seconds,
        "perf/flops_per_s": flops_per_s,
    }
    peak = PEAKS.get(jax.devices()[0].device_kind)
    if peak is None:
        return absolute
    return absolute | {"perf/mfu": flops_per_s / peak.flops_per_s}
