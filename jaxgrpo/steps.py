"""The device boundary: every jit, sharding and donation. Below it pure functions of arrays, above it plain Python."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgrpo import sampler
from jaxgrpo.logprobs import token_logprobs
from jaxgrpo.losses import Objective, TokenInputs, batch_loss, merge, report
from jaxgrpo.mesh import device_bytes, replicated, row_devices, rows_sharding, slots_sharding, tree_like
from jaxgrpo.models import lora, splash, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.optimizer import cast, store
from jaxgrpo.types import Batch, Params, TrainState

Metrics = dict[str, Float[Array, ""]]


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
class Steps:
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
    """lora.join(a reference, a state's parameters), or a model's, stacked or not -> a copy to decode with, adapters merged,
    matrices in the run's dtype; made once a step. A leaf of each layer: a slice of a stacked one would be copied at every
    token."""
    prefill: Program
    """sampler.prefill: (published parameters, tokens [A W], mask [A W]) -> Prefilled."""
    empty: Callable[[int, int], sampler.Slots]
    """sampler.empty: (slots, ring) -> Slots, one of `sizes` and one of `rings`."""
    insert: Program
    """sampler.insert: (Slots, Prefilled, starts) -> Slots; donates its slots, as `decode` does."""
    decode: Program
    """sampler.decode: (published parameters, Slots, halt, how, most steps, leave at) -> (Slots, Chosen)."""
    grow: Callable[[sampler.Slots, int], sampler.Slots]
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


def compile_steps(
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
    adapters: Lora = lora.OFF,
) -> Steps:
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
    init = partial(_init, optimizer, layout, adapters, params_dtype, state_dtype)
    params = jax.eval_shape(lambda params: cast(params, params_dtype), transformer.shapes(model))
    params_like = tree_like(mesh, params)
    state_like = tree_like(mesh, jax.eval_shape(init, params))
    reference_like = tree_like(mesh, jax.eval_shape(layout, params))
    shardings = partial(jax.tree.map, lambda leaf: leaf.sharding)
    rows, everywhere = rows_sharding(mesh), replicated(mesh)
    devices = row_devices(mesh)
    whole = partial(splash.attention, mesh)
    place = partial(jax.lax.with_sharding_constraint, shardings=rows)
    read = partial(_read_rows, score_from) if score_from else partial(_read_groups, prompt_width)
    forward = partial(transformer.forward, model, dtype=dtype, remat=remat, place=place)
    how = {"softcap": model.logit_softcap, "shards": mesh.shape["tensor"]}
    score = partial(_score, forward, partial(read, whole=whole), how)
    cut = _Cut(micro_batch, 1 if score_from else group_size, devices)
    update = partial(_update, score, optimizer, adapters.scale, cut, group_size, old_logprobs == "trainer")
    prompts = -(-max(1, slots // (2 * group_size)) // devices) * devices
    cached = slots_sharding(mesh, model.kv_heads)
    prefill = partial(sampler.prefill, model, dtype=dtype, whole=whole, place=place)
    held = partial(sampler.empty, model, prompt_width=prompt_width, dtype=dtype)
    decode = partial(sampler.decode, model, chunk=chunk, ends=ends, dtype=dtype)
    like = cached(sampler.Slots)
    return Steps(
        init=jax.jit(init, out_shardings=shardings(state_like)),
        refer=jax.jit(lambda params: layout(_publish(dtype, 1.0, params)), out_shardings=shardings(reference_like)),
        update=Program("update", jax.jit(update, out_shardings=(shardings(state_like), everywhere), donate_argnums=0)),
        publish=jax.jit(partial(_publish, dtype, adapters.scale), out_shardings=shardings(params_like)),
        prefill=Program("prefill", jax.jit(prefill, out_shardings=cached(sampler.Prefilled))),
        empty=jax.jit(lambda slots, ring: held(slots=slots, ring=ring), static_argnums=(0, 1), out_shardings=like),
        insert=Program("insert", jax.jit(partial(_insert), out_shardings=like, donate_argnums=0)),
        decode=Program("decode", jax.jit(partial(_decode, decode), out_shardings=(like, everywhere), donate_argnums=1)),
        grow=jax.jit(lambda slots, ring: sampler.grow(slots, ring=ring), static_argnums=1, out_shardings=like),
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


def _halves(most: int, least: int, multiple: int) -> tuple[int, ...]:
    """most, most / 2, ... as long as they are at least `least` and a multiple of `multiple`."""
    found = [most]
    while found[-1] % 2 == 0 and found[-1] // 2 >= least and found[-1] // 2 % multiple == 0:
        found.append(found[-1] // 2)
    return tuple(found)


def _publish(dtype: DTypeLike, scale: float, policy: Params) -> Params:
    """Matrices are multiplied in `dtype`; the rest is small, and exact."""
    params = transformer.unstack(lora.merge(policy, scale))
    return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else jnp.copy(x), params)


def _insert(slots: sampler.Slots, prefilled: sampler.Prefilled, starts: tuple) -> sampler.Slots:
    return sampler.insert(slots, prefilled, sampler.Starts(*starts))


def _decode(decode: Callable, params: Params, slots: sampler.Slots, halt: Array, how: tuple, *bounds: Array) -> tuple:
    return decode(params, slots, halt, sampler.How(*how), *bounds)


def _init(
    optimizer: Any,
    layout: Callable,
    adapters: Lora,
    params_dtype: DTypeLike,
    state_dtype: DTypeLike,
    params: Params,
    seed: int | Array = 0,
) -> TrainState:
    trained = lora.init(adapters, layout(params), jax.random.key(seed))
    return TrainState(jnp.int32(0), cast(trained, params_dtype), cast(optimizer.init(trained), state_dtype))


def _update(
    score: Callable,
    optimizer: Any,
    scale: float,
    cut: "_Cut",
    group_size: int,
    trainers_old: bool,
    state: TrainState,
    reference: Params | None,
    batch: Batch,
    objective: Objective,
    temperature: Float[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One optimizer step on sum(weights * token_loss) over the whole batch; metrics are means over its chosen tokens.

    A batch in which nothing counts changes nothing but the step: momentum and weight decay must not move a policy that has no
    gradient.
    """
    mask = batch.completion_mask
    cut = cut.fitted(mask.shape[0])
    score = partial(score, cut.together)
    ref_logprobs = _reference_logprobs(score, reference, batch, temperature, cut)
    advantages = _advantages(objective, batch, ref_logprobs, group_size)
    rows = batch, ref_logprobs, advantages, objective.weights(mask)

    def loss(params: Params, rows: tuple) -> tuple[Array, tuple]:
        batch, ref_logprobs, advantages, weights = rows
        policy = lora.join(reference or {}, lora.scaled(params, scale))
        logprobs, entropy = score(policy, batch, temperature, entropy=True)
        constant = jax.lax.stop_gradient(logprobs)
        inputs = TokenInputs(
            logprobs,
            constant if trainers_old else batch.sampler_logprobs,
            constant if ref_logprobs is None else ref_logprobs,
            advantages,
            batch.completion_mask,
            batch.sampler_logprobs,
            entropy,
        )
        value, info = batch_loss(objective, weights, inputs)
        gap = jnp.where(batch.completion_mask, jnp.abs(constant - batch.sampler_logprobs), jnp.nan)
        return value, (value, info, gap)

    gradient, (losses, info, gap) = _accumulate(loss, state.params, rows, cut)
    tokens = mask.sum()
    params, opt_state = cast((state.params, state.opt_state), jnp.float32)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    old = state.params, state.opt_state
    new = store((jax.tree.map(jnp.add, params, updates), opt_state), old, state.step)
    new_state = TrainState(state.step + 1, *jax.tree.map(lambda new, old: jnp.where(tokens > 0, new, old), new, old))
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient)
    metrics = report(merge(info)) | {
        "update/loss": losses.sum(),
        "update/grad_norm": jnp.sqrt(sum(jax.tree.leaves(squares))),
        "update/tokens": tokens.astype(jnp.float32),
        "policy/logprob_gap_p99": jnp.nan_to_num(jnp.nanquantile(gap, 0.99)),
    }
    return new_state, metrics


def _reference_logprobs(
    score: Callable, reference: Params | None, batch: Batch, temperature: Array, cut: "_Cut"
) -> Float[Array, "B T"] | None:
    """The reference's log-probabilities of the whole batch: a KL in the reward needs them before any gradient. Without a
    reference there are none, and the policy's own stand in for them: KL 0."""
    if reference is None:
        return None
    rows = cut.split(batch)
    return cut.joined(jax.lax.map(lambda rows: score(reference, rows, temperature, entropy=False)[0], rows))


def _advantages(
    objective: Objective, batch: Batch, ref_logprobs: Array | None, group_size: int
) -> Float[Array, "B"] | Float[Array, "B T"]:
    """The objective's advantages of the batch's groups, as rows."""
    grouped = lambda x: x.reshape(-1, group_size, *x.shape[1:])
    gap = jnp.zeros(batch.sampler_logprobs.shape) if ref_logprobs is None else batch.sampler_logprobs - ref_logprobs
    kl = jnp.where(batch.completion_mask, gap, 0.0)
    advantages = objective.advantages(grouped(batch.rewards), grouped(batch.completion_mask), grouped(kl))
    return advantages.reshape(-1, *advantages.shape[2:])


def _score(
    forward: Callable,
    read: Callable,
    how: dict[str, Any],
    together: int,
    params: Params,
    batch: Batch,
    temperature: Array,
    entropy: bool,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Log-probabilities of the batch's tokens and, if asked for, the entropies they were chosen at; 0 where none is scored.

    forward: transformer.forward of a network; how: token_logprobs' further arguments.
    """
    hidden = read(partial(forward, params), batch, together)
    columns = hidden.shape[1]
    embedding = transformer.output_embedding(params)
    scores = token_logprobs(hidden, embedding, batch.tokens[:, -columns:], temperature, entropy=entropy, **how)
    return jax.tree.map(lambda score: jnp.pad(score, ((0, 0), (batch.tokens.shape[1] - columns, 0))), scores)


def _read_rows(start: int, forward: Callable, batch: Batch, _: int, *, whole: Callable) -> Float[Array, "B n D"]:
    """The hidden states of the columns from start - 1 on, which decide those from start on; every row is read whole."""
    positions = transformer.sequence_positions(batch.segments)
    mask = transformer.sequence_mask(batch.segments)
    hidden, _ = forward(batch.tokens, positions, mask, whole=whole(batch.segments))
    return hidden[:, start - 1 :]


def _read_groups(width: int, forward: Callable, batch: Batch, together: int, *, whole: Callable) -> Float[Array, "B n D"]:
    """The hidden states of the columns from width - 1 on. So many rows as are together have the same prompt, in the columns
    before width: it is read once for them, and its keys and values are read by them all."""
    firsts = lambda x: x.reshape(-1, together, *x.shape[1:])[:, 0]
    spread = lambda x: jnp.repeat(x, together, axis=0)
    segments, prompts = batch.segments, firsts(batch.segments)[:, :width]
    positions, mask = transformer.sequence_positions(prompts), transformer.sequence_mask(prompts)
    last, key_values = forward(firsts(batch.tokens)[:, :width], positions, mask, whole=whole(prompts))
    positions = transformer.sequence_positions(segments)
    hidden, _ = forward(
        batch.tokens[:, width:],
        positions[:, width:],
        transformer.sequence_mask(segments)[:, width:],
        transformer.Cache(key_values),
        whole=whole(segments, width),
        key_positions=positions,
    )
    return jnp.concatenate([spread(last[:, -1:]), hidden], axis=1)


def _accumulate(loss: Callable, params: Params, rows: Any, cut: "_Cut") -> tuple[Params, Any]:
    """The gradient of a loss that is a sum over rows, a micro-batch at a time, and their auxiliary results, stacked."""
    gradient_of = jax.grad(loss, has_aux=True)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def one(gradient: Params, rows: Any) -> tuple[Params, Any]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    return jax.lax.scan(one, zeros, cut.split(rows))


class _Cut(NamedTuple):
    """How a batch is cut into micro-batches. Of a group's rows, `together` stay beside each other in one of them.

    Micro-batch m of M takes the parts m, m + M, ... of so many rows: each micro-batch is spread over the devices as the batch
    is, and no row moves.
    """

    micro_batch: int
    """Rows of one; 0: all."""
    together: int
    devices: int

    def fitted(self, rows: int) -> "_Cut":
        """The same for a batch of so many rows: together are as many as fit into a device's share of a micro-batch."""
        size = self.micro_batch or rows
        return _Cut(size, math.gcd(self.together, max(1, size // self.devices)), self.devices)

    def split(self, rows: Any) -> Any:
        """[B, ...] -> [M, micro_batch, ...]"""

        def cut(x: Array) -> Array:
            parts = x.reshape(self.micro_batch // self.together, -1, self.together, *x.shape[1:])
            return parts.swapaxes(0, 1).reshape(-1, self.micro_batch, *x.shape[1:])

        return jax.tree.map(cut, rows)

    def joined(self, parts: Float[Array, "M R T"]) -> Float[Array, "B T"]:
        """The rows of `split` in their places again."""
        length = parts.shape[-1]
        return parts.reshape(parts.shape[0], -1, self.together, length).swapaxes(0, 1).reshape(-1, length)
