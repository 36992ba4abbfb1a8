"""Times a run's compiled programs on the devices here, on zeros in place of parameters and data."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.device.learner import ScoredBatch
from jaxgrpo.device.sampler import DecodeState
from jaxgrpo.plan.inputs import ProgramCall
from jaxgrpo.plan.planner import Plan
from jaxgrpo.types import TrainBatch


def time_calls(plan: Plan) -> dict[str, float]:
    """Returns the seconds of a call of each compiled program, as `times.calls_per_step` counts.

    A decode is timed with the most slots, all of them busy, and the longest ring.

    plan: of a run that fits, for devices that are here
    """
    inputs = plan.inputs
    seconds = {name: _call_seconds(name, inputs.calls[name]) for name in plan.compiled}
    for name in seconds.keys() & {"score", "update"}:
        # Zeros as bins: each holds something, so that every micro-batch is computed.
        bins = _bins(inputs.calls[name])
        if bins is not None:
            seconds[name] /= len(bins) / inputs.programs.bins_at_once
    return seconds


def _bins(call: ProgramCall) -> Any:
    """Returns the bins [N, columns] that an update or a score goes over; None: not packed."""
    _, _, batch, *_ = call.arguments
    if isinstance(batch, ScoredBatch):
        batch = batch.batch
    assert isinstance(batch, TrainBatch)
    return batch.bins


def _call_seconds(name: str, call: ProgramCall) -> float:
    """Returns the time of a second call: the first may still load or compile."""
    seconds = 0.0
    for _ in range(2):
        # Made anew, for a call may take the memory of its arguments.
        arguments = jax.tree.map(_zeros, call.arguments)
        if name == "decode":
            arguments = _all_busy(*arguments)
        jax.block_until_ready(arguments)
        started = time.perf_counter()
        results = jax.block_until_ready(call.program(*arguments))
        seconds = time.perf_counter() - started
        if name == "decode":
            _, output = results
            seconds /= int(output.num_steps)
        # Freed before the next call needs as much.
        del arguments, results
    return seconds


def _zeros(leaf: Any) -> Any:
    """Returns zeros of a shape, where it lives; anything else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if leaf.sharding is None:  # the host's
        return np.zeros(leaf.shape, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)


def _all_busy(
    params: Any,
    state: DecodeState,
    stopped: Any,
    sampling: Any,
    _max_steps: Any,
    leave_at: Any,
) -> tuple[Any, ...]:
    """Returns the arguments of a decode whose rows are all active and make a call's most steps."""
    ring_length = state.cache[0][1].shape[2]
    state = state._replace(
        active=_full_like(state.active, True),
        max_tokens=_full_like(state.max_tokens, ring_length),
    )
    return params, state, stopped, sampling, np.int32(ring_length), leave_at


def _full_like(array: jax.Array, value: int) -> jax.Array:
    """Returns an array that lives where another does."""
    return jnp.full(array.shape, value, array.dtype, device=array.sharding)
