"""The device boundary: every jit, sharding and donation. Below it pure functions of arrays, above it plain Python."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxgrpo.device import learner, sampler
from jaxgrpo.device.optimizer import cast
from jaxgrpo.distributed.mesh import (
    AXES,
    ROWS,
    decode_shardings,
    decode_state_shardings,
    device_bytes,
    replicated,
    row_devices,
    row_sharding,
    sharded_shapes,
)
from jaxgrpo.models import lora, splash, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.transformer import UNCONSTRAINED, ActivationShardings, ModelConfig
from jaxgrpo.types import Params, TrainState


class Program:
    """A jitted function that can be sealed: from then on a compile is an error, for in a run it would mean that something
    which ought to be traced, or of a fixed shape, is not."""

    def __init__(self, name: str, jitted: Any):
        self.name, self._jitted, self.sealed = name, jitted, False

    def __call__(self, *arguments: Any) -> Any:
        before = self.compiled
        result = self._jitted(*arguments)
        if self.sealed and self.compiled > before:
            shapes = jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", arguments)
            raise RuntimeError(f"{self.name} was compiled again after warm-up, for {shapes}")
        return result

    def temporaries(self, *arguments: Any) -> float:
        """Bytes that a device needs beside arguments and results, for arguments like these; NaN where nobody says.
        The program is not compiled again: JAX gives the version that ran."""
        needs = self._jitted.lower(*arguments).compile().memory_analysis()
        return float(needs.temp_size_in_bytes) if needs else float("nan")

    def trace(self, *arguments: Any) -> Any:
        """The program for arguments like these, arrays or jax.ShapeDtypeStruct, as a jax.stages.Traced: `jaxpr`, `lower`."""
        return self._jitted.trace(*arguments)

    @property
    def compiled(self) -> int:
        """How many versions of it there are."""
        return self._jitted._cache_size()

    def seal(self) -> None:
        """From now on a compile is an error."""
        self.sealed = True


@dataclass(frozen=True)
class Programs:
    """A run's compiled programs and where their arguments live."""

    init: Callable[..., TrainState]
    """(parameters as `params_like`, seed=0) -> state, a copy: `update` donates its state, so the reference must never share its
    buffers. With LoRA the state is of adapters alone, which the seed draws."""
    refer: Callable[[Params], Params]
    """Parameters, as `params_like` -> a reference: a copy for forward passes alone, laid out as the state's, matrices in the
    run's dtype. LoRA's adapters stand beside its matrices."""
    update: Program
    """(state, reference or None, batch, objective, temperature) -> (state, metrics). With LoRA there must be a reference."""
    publish: Callable[[Params], Params]
    """lora.join(a reference, a state's parameters), or a model's, stacked or not -> a copy to decode with, matrices in the
    run's dtype; made once a step. Adapters stay beside their matrices, as the update has them: W + A B rounded to bfloat16
    would lose most of a small A B. A leaf of each layer: a slice of a stacked one would be copied at every token."""
    prefill: Program
    """sampler.prefill: (published parameters, tokens [A W], mask [A W]) -> Prefilled."""
    empty: Callable[[int, int], sampler.DecodeState]
    """sampler.empty: (slots, ring) -> Slots, one of `sizes` and one of `rings`."""
    insert: Program
    """sampler.insert: (Slots, Prefilled, starts) -> Slots; donates its slots, as `decode` does."""
    decode: Program
    """sampler.decode: (published parameters, Slots, halt, how, most steps, leave at) -> (Slots, Chosen)."""
    grow: Callable[[sampler.DecodeState, int], sampler.DecodeState]
    """sampler.grow: (Slots, ring) -> Slots."""
    compact: Program
    """sampler.compact: (Slots, rows) -> Slots; fewer of them."""
    sizes: tuple[int, ...]
    """Numbers of slots, from all to the fewest."""
    rings: tuple[int, ...]
    """Lengths of the ring, to the longest completion."""
    prompts: int
    """Prompts in a call of prefill."""
    starts: int
    """Rows in a call of insert."""
    chunk: int
    """Tokens of a row in a call of decode, at most."""
    params_like: Params
    """jax.ShapeDtypeStruct for each parameter of each layer, with its sharding: what a folder's weights become."""
    state_like: TrainState
    """The same for the whole state; with scan_layers, its parameters are stacked."""
    rows: NamedSharding
    """Where everything lives whose first axis is rows or prompts."""

    def memory(self, reference: Params | None, *arguments: Any) -> dict[str, float]:
        """Bytes of a device that `update` needs, with such arguments after the state."""
        return {
            "memory/parameters": float(device_bytes(self.state_like.params)),
            "memory/optimizer": float(device_bytes(self.state_like.opt_state)),
            "memory/reference": float(device_bytes(reference)),
            "memory/temporaries": self.update.temporaries(self.state_like, reference, *arguments),
        }


def compile_programs(
    model: ModelConfig,
    optimizer: Any,
    mesh: Mesh,
    *,
    prompt_width: int,
    new_tokens: int,
    micro_batch: int,
    ends: tuple[int, ...],
    slots: int,
    group_size: int = 1,
    chunk: int = 32,
    score_from: int | None = None,
    old_logprobs: str = "sampler",
    dtype: DTypeLike = jnp.float32,
    params_dtype: DTypeLike = jnp.float32,
    state_dtype: DTypeLike = jnp.float32,
    scan_layers: bool = False,
    remat: str = "none",
    adapters: Lora = lora.NO_LORA,
) -> Programs:
    """The programs of a run. Temperature and the objective's coefficients are traced: changing them compiles nothing.

    prompt_width: W of the sampler's prompts. score_from: where it is given, rows are read whole, each by itself, and scored
    from that column on; None is for the batches of rollouts, which are scored from W on, and whose rows of a group have one
    prompt, which is read once for them all (arXiv 2506.05433). micro_batch: rows of one forward and backward pass; it divides
    the batch. ends: the ids that end a completion. slots: rows that are sampled side by side. group_size: G of an update's
    rows. chunk: tokens of a row between two looks at what has ended. old_logprobs: what the ratio is taken to, the "sampler"'s
    or the "trainer"'s own log-probabilities. dtype: of matrix products; params_dtype, state_dtype: what the trained parameters
    and the optimizer's moments are stored in. scan_layers: whether the update scans over stacked layers. remat: what its
    backward pass finds of a layer, one of transformer.REMAT. adapters: what is trained in the place of every parameter.
    """
    layout = transformer.stack if scan_layers else transformer.unstack
    init = partial(learner.init, optimizer, layout, adapters, params_dtype, state_dtype)
    # With adapters the model is not trained: it is loaded as it is, and the reference rounds it to dtype once.
    loaded = jnp.float32 if adapters.rank else params_dtype
    params = jax.eval_shape(lambda params: cast(params, loaded), transformer.shapes(model))
    params_like = sharded_shapes(mesh, params)
    published_like = sharded_shapes(mesh, jax.eval_shape(partial(_with_adapters, adapters), params))
    state_like = sharded_shapes(mesh, jax.eval_shape(init, params))
    reference_like = sharded_shapes(mesh, jax.eval_shape(layout, params))
    shardings = partial(jax.tree.map, lambda leaf: leaf.sharding)
    rows, everywhere = row_sharding(mesh), replicated(mesh)
    devices = row_devices(mesh)
    whole = partial(splash.attention, mesh)
    places = ActivationShardings(layer=partial(jax.lax.with_sharding_constraint, shardings=rows))
    read = (
        partial(learner.row_hidden_states, score_from)
        if score_from
        else partial(learner.group_hidden_states, prompt_width)
    )
    forward = transformer.forward if score_from else transformer.forward_with_prompts
    learning = places._replace(embedded=_to_columns(mesh))
    forward = partial(forward, model, dtype=dtype, remat=remat, places=learning)
    how = {
        "softcap": model.logit_softcap,
        "shards": mesh.shape["tensor"],
        "unused": model.unused_ids,
    }
    score = partial(learner.score, forward, partial(read, whole=whole), how)
    cut = learner.MicroBatches(micro_batch, 1 if score_from else group_size, devices)
    update = partial(
        learner.update, score, optimizer, adapters.scale, cut, group_size, old_logprobs == "trainer"
    )
    prompts = -(-max(1, slots // (2 * group_size)) // devices) * devices
    cached = decode_state_shardings(mesh, model.kv_heads)
    prefill = partial(sampler.prefill, model, dtype=dtype, whole=whole, places=places)
    held = partial(sampler.empty, model, prompt_width=prompt_width, dtype=dtype)
    decode = partial(
        sampler.decode, model, chunk=chunk, ends=ends, dtype=dtype, places=_moving(mesh)
    )
    like = cached(sampler.DecodeState)
    exact = partial(_exact, dtype)
    return Programs(
        init=jax.jit(init, out_shardings=shardings(state_like)),
        refer=jax.jit(
            lambda params: layout(_publish(dtype, 1.0, params)),
            out_shardings=shardings(reference_like),
        ),
        update=Program(
            "update",
            jax.jit(
                exact(update), out_shardings=(shardings(state_like), everywhere), donate_argnums=0
            ),
        ),
        publish=jax.jit(
            partial(_publish, dtype, adapters.scale),
            out_shardings=decode_shardings(mesh, published_like),
        ),
        prefill=Program(
            "prefill", jax.jit(exact(prefill), out_shardings=cached(sampler.Prefilled))
        ),
        empty=jax.jit(
            lambda slots, ring: held(slots=slots, ring=ring),
            static_argnums=(0, 1),
            out_shardings=like,
        ),
        insert=Program("insert", jax.jit(partial(_insert), out_shardings=like, donate_argnums=0)),
        decode=Program(
            "decode",
            jax.jit(
                exact(partial(_decode, decode)), out_shardings=(like, everywhere), donate_argnums=1
            ),
        ),
        grow=jax.jit(
            lambda slots, ring: sampler.grow(slots, ring=ring), static_argnums=1, out_shardings=like
        ),
        compact=Program("compact", jax.jit(partial(sampler.compact), out_shardings=like)),
        sizes=_halves(slots, max(1, slots // 8), devices),
        rings=_halves(new_tokens, 128, 1)[::-1],
        prompts=prompts,
        starts=max(1, slots // 8),
        chunk=min(chunk, new_tokens),
        params_like=params_like,
        state_like=state_like,
        rows=rows,
    )


def _to_columns(mesh: Mesh) -> Callable:
    """Returns what has tokens' embeddings looked up where the embedding's columns are.

    So its gradient, a sum over the tokens of all devices, is made there, too: a device would else hold a gradient of the whole
    embedding.
    """
    columns = NamedSharding(mesh, PartitionSpec("data", None, "fsdp"))
    return partial(jax.lax.with_sharding_constraint, shardings=columns)


def _moving(mesh: Mesh) -> ActivationShardings:
    """Where a token's activations lie, so that the published matrices need not move: every row of `data` where a matrix is, and
    a row's own where its cache is. Each change of place says both, or XLA would take the matrix to the rows instead."""
    if mesh.shape["fsdp"] == 1:
        return UNCONSTRAINED
    at = lambda *spec: partial(
        jax.lax.with_sharding_constraint, shardings=NamedSharding(mesh, PartitionSpec(*spec))
    )
    to_matrix, to_cache = at("data", None, PartitionSpec.UNCONSTRAINED), at(*ROWS, None, "tensor")
    by_vocabulary, everywhere = at("data", PartitionSpec.UNCONSTRAINED), at(AXES)
    by_rows = lambda logits: (
        everywhere(logits) if len(logits) % mesh.size == 0 else at(*ROWS)(logits)
    )
    return ActivationShardings(
        layer=at("data"),
        projected=lambda x: to_cache(to_matrix(x)),
        attended=lambda x: to_matrix(to_cache(x)),
        logits=lambda x: by_rows(by_vocabulary(x)),
    )


def _halves(most: int, least: int, multiple: int) -> tuple[int, ...]:
    """most, most / 2, ... as long as they are at least `least` and a multiple of `multiple`."""
    found = [most]
    while found[-1] % 2 == 0 and found[-1] // 2 >= least and found[-1] // 2 % multiple == 0:
        found.append(found[-1] // 2)
    return tuple(found)


def _exact(dtype: DTypeLike, function: Callable) -> Callable:
    """Returns the function with its float32 products computed in float32, where that is what the run asks for.

    By default a TPU multiplies float32 matrices in one pass of bfloat16 and a GPU in TF32. The sampler and the scorer then
    differ by more than a policy moves in an update, and the agreement gate would stop the run.
    """
    if jnp.dtype(dtype) != jnp.float32:
        return function

    def exact(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return exact


def _with_adapters(adapters: Lora, params: Params) -> Params:
    """Returns parameters with adapters beside their matrices, if there are any."""
    return lora.attach(params, lora.init_trainable(adapters, params, jax.random.key(0)))


def _publish(dtype: DTypeLike, scale: float, policy: Params) -> Params:
    """Returns a copy of a policy for forward passes: matrices in `dtype`; the rest is small, and exact. scale: of adapters."""
    params = transformer.unstack(lora.scale_adapters(policy, scale))
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else jnp.copy(x), params)


def _insert(
    slots: sampler.DecodeState, prefilled: sampler.Prefilled, starts: tuple
) -> sampler.DecodeState:
    return sampler.insert(slots, prefilled, sampler.NewRows(*starts))


def _decode(
    decode: Callable,
    params: Params,
    slots: sampler.DecodeState,
    halt: Array,
    how: tuple,
    *bounds: Array,
) -> tuple:
    return decode(params, slots, halt, sampler.How(*how), *bounds)
