"""The device boundary: every jit, sharding and donation.

Below it are pure functions of arrays, above it is plain Python. `compile_sampling` gives the
programs that sample; `compile_programs` gives those and the update's.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from jaxgrpo.device import learner, sampler
from jaxgrpo.device.learner import ScoredBatch, Updater
from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.device.model_functions import (
    SamplingFunctions,
    grow,
    init_trained,
    make_reference,
    make_scorer,
    publish,
    trained_as_stored,
    with_adapters,
)
from jaxgrpo.device.optimizer import Optimizer
from jaxgrpo.device.program import Program
from jaxgrpo.device.sampler import DecodeState, Prefilled
from jaxgrpo.device.specs import ModelSpec, SamplingSpec, UpdateSpec
from jaxgrpo.distributed.mesh import (
    decode_shardings,
    decode_state_shardings,
    device_bytes,
    replicated,
    row_devices,
    row_sharding,
    sharded_shapes,
)
from jaxgrpo.types import Params, TrainState

KEPT_PROGRAMS = 8
"""Models and shapes whose compiled programs a process keeps, at most, of each kind: the newest."""


@dataclass(frozen=True)
class SamplingPrograms:
    """The compiled programs of sampling, and where their arguments live."""

    make_reference: Callable[[Params], Params]
    """Parameters, as `params_like` -> a copy for forward passes alone, laid out as the update has
    its own, matrices in the compute dtype. With LoRA it is also the frozen base of the policy."""
    publish: Callable[[Params], Params]
    """A policy -> the copy that decoding reads, matrices in the compute dtype or, with
    Precision.int8_sampler, in int8 with a scale for each output; made once a step.
    With LoRA the policy is the reference with the state's adapters attached (lora.attach). They
    stay beside their matrices, as the update has them: W + A B rounded to bfloat16 would lose most
    of a small A B. The copy has one leaf per layer: slicing a stacked leaf would copy it at every
    token."""
    prefill: Program
    """sampler.prefill: (published parameters, tokens [A W], mask [A W]) -> Prefilled."""
    empty_state: Callable[[int, int], DecodeState]
    """(slots, ring length) -> DecodeState; one of slot_counts and one of ring_lengths."""
    insert: Program
    """sampler.insert: (DecodeState, Prefilled, NewRows) -> DecodeState; donates its state."""
    decode: Program
    """sampler.decode: (published parameters, DecodeState, stopped, SamplingParams, max_steps,
    leave_at) -> (DecodeState, DecodeOutput); donates its state."""
    grow: Callable[[DecodeState, int], DecodeState]
    """sampler.grow: (DecodeState, ring length) -> DecodeState."""
    compact: Program
    """sampler.compact: (DecodeState, rows) -> DecodeState with fewer slots."""
    slot_counts: tuple[int, ...]
    """Numbers of slots, from all to the fewest."""
    ring_lengths: tuple[int, ...]
    """Lengths of the ring cache, up to the longest prompt with the longest completion."""
    prompts_per_prefill: int
    """Prompts in a call of prefill."""
    rows_per_insert: int
    """Rows in a call of insert."""
    chunk: int
    """Tokens of a row in a call of decode, at most."""
    params_like: Params
    """jax.ShapeDtypeStruct, with its sharding, of each parameter that is read from a folder."""
    trained_like: Params
    """The same of each trained parameter, as checkpoints have them: stacked, or adapters alone."""


@dataclass(frozen=True)
class Programs(SamplingPrograms):
    """A run's compiled programs: those of sampling, and those of the update."""

    init_state: Callable[..., TrainState]
    """(parameters as `params_like`, seed=0) -> the state that a run begins with. It is a copy:
    `update` donates its state, so the reference must never share its buffers. With LoRA the state
    has adapters alone, which the seed draws."""
    update: Program
    """Updater: (state, reference or None, TrainBatch, objective, temperature) -> (state, metrics).
    With LoRA there must be a reference."""
    score: Program
    """Updater.score: the arguments of `update` -> ScoredBatch, for several updates with a batch."""
    take_groups: Callable[..., ScoredBatch]
    """learner.take_groups: (ScoredBatch, places of groups) -> ScoredBatch of their rows."""
    update_scored: Program
    """Updater.update_scored: (state, reference or None, ScoredBatch of some rows, index, objective,
    temperature) -> (state, metrics)."""
    state_like: TrainState
    """jax.ShapeDtypeStruct, with its sharding, of each array of the state."""
    reference_like: Params
    """What `params_like` is, of a reference that is another network; of the policy's otherwise."""
    make_other_reference: Callable[[Params], Params]
    """parameters as `reference_like` -> the reference: `make_reference` of that network."""
    row_sharding: NamedSharding
    """Where everything lives whose first axis is rows or prompts."""
    shared_prompt_width: int
    """W, the columns that an update reads once for the rows of a group, and does not score; 0: it
    reads every row by itself."""
    bins_at_once: int
    """Bins of a micro-batch, where an update is packed; its rows otherwise."""

    def memory(self, update: Program, reference: Params | None) -> dict[str, float]:
        """Returns the bytes of a device that an update needs, by part.

        update: `update` or `update_scored`; it must have run
        """
        return {
            "memory/parameters": float(device_bytes(self.state_like.params)),
            "memory/optimizer": float(device_bytes(self.state_like.opt_state)),
            "memory/reference": float(device_bytes(reference)),
            "memory/temporaries": update.temporary_bytes(),
        }


Specs = ParamSpec("Specs")
SomePrograms = TypeVar("SomePrograms", bound=SamplingPrograms)


def once_a_process(
    make_programs: Callable[Specs, SomePrograms],
) -> Callable[Specs, SomePrograms]:
    """Has a function make the programs of equal specs once: a second run compiles nothing anew.

    Each run may seal its own: what one has compiled, another may still have to. A decorator.
    """
    kept: Any = lru_cache(maxsize=KEPT_PROGRAMS)(make_programs)

    @wraps(make_programs)
    def take_or_make(*specs: Specs.args, **named: Specs.kwargs) -> SomePrograms:
        programs: SomePrograms = kept(*specs, **named)
        unsealed: dict[str, Any] = {
            name: value.unsealed()
            for name, value in vars(programs).items()
            if isinstance(value, Program)
        }
        return replace(programs, **unsealed)

    return take_or_make


@once_a_process
def compile_sampling(model: ModelSpec, spec: SamplingSpec) -> SamplingPrograms:
    """Returns the programs that sample from a model.

    They are compiled when they are first called, and once in a process. Sampling parameters are
    traced: another temperature compiles nothing.
    """
    mesh = model.mesh
    dtype = model.precision.compute
    functions = SamplingFunctions(model, spec)

    # Shapes alone: nothing is allocated until a program is called.
    params = model.loaded_shapes()
    trained_shapes = jax.eval_shape(partial(trained_as_stored, model), params)
    published_shapes = jax.eval_shape(
        lambda params: publish(model, with_adapters(model, params)), params
    )

    # in_shardings are taken from the arguments. out_shardings are fixed, because a result is the
    # argument of a later call, and another sharding there would compile again.
    published_shardings = decode_shardings(mesh, sharded_shapes(mesh, published_shapes))
    shardings_of = decode_state_shardings(mesh, model.network.kv_heads)
    state_shardings = shardings_of(DecodeState)
    prefill = jax.jit(
        _named("prefill", functions.prefill, dtype),
        out_shardings=shardings_of(Prefilled),
    )
    insert = jax.jit(sampler.insert, out_shardings=state_shardings, donate_argnums=0)
    decode = jax.jit(
        _named("decode", functions.decode, dtype),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=1,
    )
    return SamplingPrograms(
        make_reference=_jit_reference(model),
        publish=jax.jit(partial(publish, model), out_shardings=published_shardings),
        prefill=Program("prefill", prefill),
        empty_state=jax.jit(
            functions.empty_state,
            static_argnums=(0, 1),
            out_shardings=state_shardings,
        ),
        insert=Program("insert", insert),
        decode=Program("decode", decode),
        grow=jax.jit(grow, static_argnums=1, out_shardings=state_shardings),
        compact=Program(
            "compact", jax.jit(sampler.compact, out_shardings=state_shardings)
        ),
        slot_counts=_halves(spec.slots, max(1, spec.slots // 8), row_devices(mesh)),
        ring_lengths=_ring_lengths(spec.prompt_width + spec.new_tokens),
        prompts_per_prefill=_prompts_per_prefill(spec, row_devices(mesh)),
        rows_per_insert=max(1, spec.slots // 8),
        chunk=min(spec.chunk, spec.new_tokens),
        params_like=sharded_shapes(mesh, params),
        trained_like=sharded_shapes(mesh, trained_shapes),
    )


@once_a_process
def compile_programs(
    model: ModelSpec,
    sampling: SamplingSpec,
    update: UpdateSpec,
    optimizer: Optimizer,
    reference: ModelSpec | None = None,
) -> Programs:
    """Returns the programs of a run.

    They are compiled when they are first called, and once in a process: a second run of the same
    model, shapes and optimizer compiles nothing. Temperature and the objective's coefficients are
    traced: changing them compiles nothing either.

    reference: another network that is the reference, on the same mesh; there are no adapters then
    """
    mesh = model.mesh
    precision = model.precision

    def init_state(params: Params, seed: int | Array = 0) -> TrainState:
        return learner.init_state(
            optimizer,
            init_trained(model, params, seed),
            precision.params,
            precision.optimizer,
        )

    state_like = sharded_shapes(mesh, jax.eval_shape(init_state, model.loaded_shapes()))
    updater = Updater(
        scorer=make_scorer(model, update),
        optimizer=optimizer,
        micro_batches=_micro_batches(update, row_devices(mesh)),
        group_size=update.group_size,
        adapter_scale=model.adapters.scale,
        uses_trainer_logprobs=update.old_logprobs == "trainer",
        reference_scorer=make_scorer(reference, update) if reference else None,
        scores_reference=update.scores_reference,
    )
    # The state is donated: its buffers are written over by the new state.
    update_shardings = (_shardings(state_like), replicated(mesh))
    jitted_update = jax.jit(
        _named("update", updater, precision.compute),
        out_shardings=update_shardings,
        donate_argnums=0,
    )
    rows = row_sharding(mesh)
    jitted_score = jax.jit(
        _named("score", updater.score, precision.compute), out_shardings=rows
    )
    jitted_update_scored = jax.jit(
        _named("update", updater.update_scored, precision.compute),
        out_shardings=update_shardings,
        donate_argnums=0,
    )
    take_groups = partial(learner.take_groups, group_size=update.group_size)
    sampling_programs = compile_sampling(model, sampling)
    return Programs(
        **{
            field.name: getattr(sampling_programs, field.name)
            for field in fields(SamplingPrograms)
        },
        init_state=jax.jit(init_state, out_shardings=_shardings(state_like)),
        update=Program("update", jitted_update),
        score=Program("score", jitted_score),
        take_groups=jax.jit(take_groups, out_shardings=rows),
        update_scored=Program("update", jitted_update_scored),
        state_like=state_like,
        reference_like=sharded_shapes(mesh, (reference or model).loaded_shapes()),
        make_other_reference=_jit_reference(reference or model),
        row_sharding=rows,
        shared_prompt_width=update.prompt_width or 0,
        bins_at_once=updater.micro_batches.size,
    )


def _micro_batches(update: UpdateSpec, devices: int) -> MicroBatches:
    """Returns how a batch is cut: its bins where it is packed, and its rows otherwise."""
    if update.pack:
        return MicroBatches(
            size=update.micro_batch or devices, rows_per_prompt=1, devices=devices
        )
    return MicroBatches(
        size=update.micro_batch,
        rows_per_prompt=1 if update.prompt_width is None else update.group_size,
        devices=devices,
    )


def _jit_reference(model: ModelSpec) -> Callable[[Params], Params]:
    """Returns `make_reference` of a model, jitted."""
    shapes = jax.eval_shape(model.layout, model.loaded_shapes())
    return jax.jit(
        partial(make_reference, model),
        out_shardings=_shardings(sharded_shapes(model.mesh, shapes)),
    )


def _prompts_per_prefill(spec: SamplingSpec, devices: int) -> int:
    """Returns the prompts that fill half of the slots, as a multiple of the devices."""
    prompts = max(1, spec.slots // (2 * spec.group_size))
    return -(-prompts // devices) * devices


def _halves(largest: int, smallest: int, multiple: int) -> tuple[int, ...]:
    """Returns largest, largest / 2, ... down to `smallest`, all of them multiples of `multiple`."""
    numbers = [largest]
    while numbers[-1] % 2 == 0:
        half = numbers[-1] // 2
        if half < smallest or half % multiple:
            break
        numbers.append(half)
    return tuple(numbers)


def _ring_lengths(longest: int) -> tuple[int, ...]:
    """Returns about the quarters of the longest row, each of whole tiles of a TPU: 128 columns.

    Each is a program more to compile, so that below 256 columns there is none.
    """
    step = max(256, -(-longest // (4 * 128)) * 128)
    return (*range(step, longest - step // 2, step), longest)


def _named(name: str, function: Callable, dtype: DTypeLike) -> Callable:
    """Returns the function under a name, which profiles show, with float32 products in float32.

    By default a TPU multiplies float32 matrices in one pass of bfloat16, and a GPU in TF32. The
    sampler and the scorer then differ by more than a policy moves in an update, and the check of
    their agreement would stop the run (train.check_agreement).

    dtype: of matrix products; in another than float32 they are left to JAX
    """

    def named(*arguments: Any) -> Any:
        if jnp.dtype(dtype) != jnp.float32:
            return function(*arguments)
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    named.__name__ = name
    return named


def _shardings(like: PyTree) -> PyTree:
    """Returns the sharding of each jax.ShapeDtypeStruct."""
    return jax.tree.map(lambda leaf: leaf.sharding, like)
