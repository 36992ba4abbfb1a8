"""The device boundary: every jit, sharding and donation. Below it pure functions of arrays, above it plain Python."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxgrpo import sampler
from jaxgrpo.logprobs import token_logprobs
from jaxgrpo.losses.objective import Objective, TokenInputs, batch_loss
from jaxgrpo.mesh import replicated, rows_sharding, tree_like
from jaxgrpo.models import transformer
from jaxgrpo.models.transformer import ModelConfig
from jaxgrpo.types import Batch, Params, Prompts, Rollout, TrainState

Metrics = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Steps:
    """A run's compiled programs and where their arguments live."""

    init: Callable[[Params], TrainState]
    """Parameters -> state, a copy: `update` donates its state, so the reference must never share its buffers."""
    sample: Callable[[Params, Prompts, float], Rollout]
    update: Callable[[TrainState, Params | None, Batch, Objective, float], tuple[TrainState, Metrics]]
    advantages: Callable[[Objective, Float[np.ndarray, "P G"]], Float[Array, "P G"]]
    params_like: Params
    """jax.ShapeDtypeStruct for each parameter, with its sharding."""
    state_like: TrainState
    """The same for the whole state."""
    rows: NamedSharding
    """Where everything lives whose first axis is rows or prompts."""


def compile_steps(
    model: ModelConfig,
    optimizer: Any,
    mesh: Mesh,
    *,
    prompt_width: int,
    new_tokens: int,
    micro_batch: int,
    ends: tuple[int, ...],
    pad: int,
    dtype: DTypeLike = jnp.float32,
) -> Steps:
    """The programs of a run. Temperature and the objective's coefficients are traced: changing them compiles nothing.

    prompt_width: the columns before it are never scored (1 scores everything). micro_batch: rows of one forward and backward
    pass; it divides the batch. ends: the ids that end a completion. pad: the id that fills what no mask covers.
    """
    params = transformer.shapes(model)
    params_like = tree_like(mesh, params)
    state_like = tree_like(mesh, jax.eval_shape(partial(_init, optimizer), params))
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state_like)
    rows, everywhere = rows_sharding(mesh), replicated(mesh)
    sample = partial(sampler.sample, model, new_tokens=new_tokens, ends=ends, pad=pad, dtype=dtype)
    update = partial(_update, model, optimizer, prompt_width, micro_batch, dtype)
    return Steps(
        init=jax.jit(partial(_init, optimizer), out_shardings=state_shardings),
        sample=jax.jit(sample, out_shardings=rows),
        update=jax.jit(update, out_shardings=(state_shardings, everywhere), donate_argnums=0),
        advantages=jax.jit(lambda objective, rewards: objective.advantages(rewards), out_shardings=everywhere),
        params_like=params_like,
        state_like=state_like,
        rows=rows,
    )


def _init(optimizer: Any, params: Params) -> TrainState:
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def _update(
    model: ModelConfig,
    optimizer: Any,
    prompt_width: int,
    micro_batch: int,
    dtype: DTypeLike,
    state: TrainState,
    reference: Params | None,
    batch: Batch,
    objective: Objective,
    temperature: Float[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One optimizer step on sum(weights * token_loss) over the whole batch; metrics are means over its chosen tokens.

    Without a reference its log-probabilities are the policy's own: KL 0. A batch in which nothing counts changes nothing but
    the step: momentum and weight decay must not move a policy that has no gradient.
    """
    score = partial(_score, model, prompt_width, dtype, batch_temperature=temperature)
    weights = objective.weights(batch.completion_mask)

    def loss(params: Params, rows: tuple[Batch, Array]) -> tuple[Array, dict]:
        batch, weights = rows
        logprobs, entropy = score(params, batch)
        old = jax.lax.stop_gradient(logprobs)
        ref_logprobs = old if reference is None else score(reference, batch)[0]
        mask = batch.completion_mask
        inputs = TokenInputs(logprobs, batch.old_logprobs, ref_logprobs, batch.advantages, mask)
        value, sums = batch_loss(objective, weights, inputs)
        gap = jnp.where(mask, jnp.abs(old - batch.old_logprobs), 0.0)
        sums |= {"policy/entropy": jnp.sum(entropy * mask), "policy/logprob_gap": jnp.sum(gap)}
        return value, {"loss": value, "policy/logprob_gap_max": jnp.max(gap), "sums": sums}

    gradient, auxiliary = _accumulate(loss, state.params, (batch, weights), micro_batch)
    tokens = batch.completion_mask.sum()
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = jax.tree.map(jnp.add, state.params, updates)
    keep = lambda new, old: jnp.where(tokens > 0, new, old)
    new_state = TrainState(
        state.step + 1, jax.tree.map(keep, params, state.params), jax.tree.map(keep, opt_state, state.opt_state)
    )
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient)
    metrics = {name: value / jnp.maximum(tokens, 1) for name, value in auxiliary["sums"].items()}
    metrics |= {
        "update/loss": auxiliary["loss"].sum(),
        "update/grad_norm": jnp.sqrt(sum(jax.tree.leaves(squares))),
        "update/tokens": tokens.astype(jnp.float32),
        "policy/logprob_gap_max": auxiliary["policy/logprob_gap_max"],
    }
    return new_state, metrics


def _score(
    model: ModelConfig, prompt_width: int, dtype: DTypeLike, params: Params, batch: Batch, batch_temperature: Array
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    positions = transformer.sequence_positions(batch.segments)
    mask = transformer.sequence_mask(batch.segments)
    hidden, _ = transformer.forward(model, params, batch.tokens, positions, mask, dtype=dtype)
    embedding = transformer.output_embedding(params)
    logprobs, entropy = token_logprobs(hidden, embedding, batch.tokens, batch_temperature, start=prompt_width, entropy=True)
    assert entropy is not None
    return logprobs, entropy


def _accumulate(loss: Callable, params: Params, rows: Any, micro_batch: int) -> tuple[Params, dict]:
    """The gradient of a loss that is a sum over rows, and its auxiliary sums (maxima where named so), a micro-batch at a time.

    Micro-batch m takes rows m, m + M, ...: each is spread over the devices as the batch is, and no row moves.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    micro_batch = micro_batch or total
    split = jax.tree.map(lambda x: x.reshape(micro_batch, total // micro_batch, *x.shape[1:]).swapaxes(0, 1), rows)
    gradient_of = jax.grad(loss, has_aux=True)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def one(gradient: Params, rows: Any) -> tuple[Params, dict]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    gradient, auxiliaries = jax.lax.scan(one, zeros, split)
    largest = {name: jnp.max(value) for name, value in auxiliaries.items() if name.endswith("_max")}
    return gradient, jax.tree.map(lambda x: jnp.sum(x, axis=0), auxiliaries) | largest
