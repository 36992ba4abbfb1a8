"""The arguments of a run's programs, as shapes with shardings: nothing is allocated."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxgrpo.build import make_packer, update_rule
from jaxgrpo.config import Config
from jaxgrpo.config.sizes import num_rows, rows_per_update
from jaxgrpo.device.learner import ScoredBatch
from jaxgrpo.device.program import Program
from jaxgrpo.device.sampler import DecodeState, Prefilled
from jaxgrpo.losses import Objective
from jaxgrpo.models import lora
from jaxgrpo.programs import Programs
from jaxgrpo.types import NewRows, Params, SamplingParams, TrainBatch
from jaxgrpo.updates import with_bins

LearnedBatch = TrainBatch | tuple[ScoredBatch, ScoredBatch]
"""What a step learns from. One update: the batch. Several: it scored, and the rows of one."""


@dataclass(frozen=True)
class ProgramCall:
    """A program, and the arguments that a run calls it with."""

    program: Program
    arguments: tuple[object, ...]


@dataclass(frozen=True)
class ProgramInputs:
    """Everything that a run's programs work on; each leaf is a jax.ShapeDtypeStruct.

    programs: the run's programs
    published: the copy of the policy that is sampled from
    slots: the decode state with the most slots and the longest ring cache
    prefilled: the result of a prefill
    reference: the reference policy
    batch: what a step's updates learn from
    calls: each program's call, by the program's name
    """

    programs: Programs
    published: Params
    slots: DecodeState
    prefilled: Prefilled
    reference: Params
    batch: LearnedBatch
    calls: dict[str, ProgramCall]


def program_inputs(config: Config, programs: Programs) -> ProgramInputs:
    """Returns what a run of this config gives its programs."""
    # What a program returns is traced, not written down here: its layout is the program's.
    reference = _reference_shapes(programs)
    policy = programs.state_like.params
    if config.lora.rank:
        policy = lora.attach(reference, policy)
    published = result_shapes(programs.publish, policy)
    slots = result_shapes(
        programs.empty_state, programs.slot_counts[0], programs.ring_lengths[-1]
    )
    width = config.sampling.prompt_width
    tokens = _host_array(jnp.int32, programs.prompts_per_prefill, width)
    mask = _host_array(bool, programs.prompts_per_prefill, width)
    prefilled = result_shapes(programs.prefill, published, tokens, mask)

    # The sampler's arguments that the host sends with each call.
    row_numbers = _host_array(jnp.int32, programs.rows_per_insert)
    row_keys = _host_array(jnp.uint32, programs.rows_per_insert, 2)
    new_rows = NewRows(row_numbers, row_numbers, row_numbers, row_keys)
    stopped = _host_array(bool, programs.slot_counts[0])
    sampling = SamplingParams(config.sampling.temperature).as_arrays()
    # A number that bounds a call of decode.
    scalar = _host_array(jnp.int32)

    prefill = (published, tokens, mask)
    insert = (slots, prefilled, new_rows)
    decode = (published, slots, stopped, sampling, scalar, scalar)
    learned, update_calls = learning_inputs(config, programs, config.objective)
    calls = {
        "prefill": ProgramCall(programs.prefill, prefill),
        "insert": ProgramCall(programs.insert, insert),
        "decode": ProgramCall(programs.decode, decode),
    } | update_calls
    return ProgramInputs(
        programs, published, slots, prefilled, reference, learned, calls
    )


def learning_inputs(
    config: Config, programs: Programs, objective: Objective
) -> tuple[LearnedBatch, dict[str, ProgramCall]]:
    """Returns what a step's updates learn from, and the calls of their programs in their order.

    objective: as the updates take it, coefficients that move as floats; its type and what is not a
        coefficient decide what is compiled
    """
    reference = _reference_shapes(programs)
    batch = _batch_shapes(config, programs)
    score_arguments = (
        programs.state_like,
        reference,
        batch,
        objective,
        config.sampling.temperature,
    )
    if update_rule(config, programs).is_single:
        return batch, {"update": ProgramCall(programs.update, score_arguments)}
    scored = result_shapes(programs.score, *score_arguments)
    scored = with_bins(scored, None)
    groups = _host_array(jnp.int32, config.batch.groups // config.batch.updates)
    rows = result_shapes(programs.take_groups, scored, groups)
    rows = with_bins(rows, _bin_shapes(config, programs, rows_per_update(config)))
    update_arguments = (
        programs.state_like,
        reference,
        rows,
        _host_array(jnp.int32),
        objective,
        config.sampling.temperature,
    )
    return (scored, rows), {
        "score": ProgramCall(programs.score, score_arguments),
        "update": ProgramCall(programs.update_scored, update_arguments),
    }


def _reference_shapes(programs: Programs) -> Params:
    """Returns the shapes of the reference policy."""
    return result_shapes(programs.make_other_reference, programs.reference_like)


def _batch_shapes(config: Config, programs: Programs) -> TrainBatch:
    """Returns the shapes of the batch that an update learns from."""
    # B rows of T = prompt width + new tokens.
    rows = num_rows(config)
    length = config.sampling.prompt_width + config.sampling.max_new_tokens

    def row_array(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=programs.row_sharding)

    return TrainBatch(
        tokens=row_array(jnp.int32, rows, length),
        segments=row_array(jnp.int32, rows, length),
        completion_mask=row_array(bool, rows, length),
        rewards=row_array(jnp.float32, rows),
        sampler_logprobs=row_array(jnp.float32, rows, length),
        trained=row_array(bool, rows),
        bins=_bin_shapes(config, programs, rows),
    )


def _bin_shapes(
    config: Config, programs: Programs, rows: int
) -> jax.ShapeDtypeStruct | None:
    """Returns the shape of the bins of so many rows; None where they are not packed."""
    packer = make_packer(config, programs)
    if packer is None:
        return None
    shape = (packer.num_bins(rows), packer.columns)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=programs.row_sharding)


def _host_array(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array that comes from the host with each call."""
    return jax.ShapeDtypeStruct(shape, dtype)


def result_shapes(program: Any, *arguments: object) -> Any:
    """Returns what a program returns, as shapes with the shardings that the compiler gives it.

    program: a Program or a jitted function
    """
    traced = program.trace(*arguments)
    return jax.tree.map(_keep_sharding, traced.lower().out_info)


def _keep_sharding(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns a leaf without what is not shape, dtype or sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def leaves_on_device(arguments: object) -> list[Any]:
    """Returns the leaves of a program's arguments that live on devices; others are the host's."""
    return [
        leaf for leaf in jax.tree.leaves(arguments) if getattr(leaf, "sharding", None)
    ]


def count_devices(arguments: object) -> int:
    """Returns over how many devices a program's arguments are spread."""
    return max(len(leaf.sharding.device_set) for leaf in leaves_on_device(arguments))
