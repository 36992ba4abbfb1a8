"""The device's half of learning: a batch is scored by policy and reference, and one optimizer step is made of it.

    batch -> micro-batches -> log-probabilities -> advantages, weights, loss -> gradient -> new state

Pure functions of arrays; steps.py compiles them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxgrpo.device.logprobs import token_logprobs
from jaxgrpo.device.optimizer import cast, optimizer_updates, round_stochastically
from jaxgrpo.losses import Objective, TokenInputs, batch_loss, merge, report
from jaxgrpo.losses import token_weights as weights
from jaxgrpo.models import lora, transformer
from jaxgrpo.models.lora import Lora
from jaxgrpo.types import Params, TrainBatch, TrainState

Metrics = dict[str, Float[Array, ""]]

UNCHOSEN = -1.0
"""Stands for the gap of a token that nobody chose. No gap is negative, and one that is NaN must be
told from it."""


class MicroBatches(NamedTuple):
    """How a batch is cut into micro-batches. Of a group's rows, `together` stay beside each other in one of them.

    Micro-batch m of M takes the parts m, m + M, ... of so many rows: each micro-batch is spread over the devices as the batch
    is, and no row moves.
    """

    micro_batch: int
    """Rows of one; 0: all."""
    together: int
    devices: int

    def fitted(self, rows: int) -> "MicroBatches":
        """The same for a batch of so many rows: together are as many as fit into a device's share of a micro-batch."""
        size = self.micro_batch or rows
        return MicroBatches(
            size, math.gcd(self.together, max(1, size // self.devices)), self.devices
        )

    def split(self, rows: Any) -> Any:
        """[B, ...] -> [M, micro_batch, ...]"""

        def cut(x: Array) -> Array:
            parts = x.reshape(self.micro_batch // self.together, -1, self.together, *x.shape[1:])
            return parts.swapaxes(0, 1).reshape(-1, self.micro_batch, *x.shape[1:])

        return jax.tree.map(cut, rows)

    def joined(self, parts: Float[Array, "M R T"]) -> Float[Array, "B T"]:
        """The rows of `split` in their places again."""
        length = parts.shape[-1]
        return (
            parts.reshape(parts.shape[0], -1, self.together, length)
            .swapaxes(0, 1)
            .reshape(-1, length)
        )


def init(
    optimizer: Any,
    layout: Callable,
    adapters: Lora,
    params_dtype: DTypeLike,
    state_dtype: DTypeLike,
    params: Params,
    seed: int | Array = 0,
) -> TrainState:
    """The state that a run begins with. layout: how its parameters are laid out, transformer.stack or unstack; seed: of the
    adapters, if those are what is trained. params_dtype, state_dtype: what parameters and moments are stored in."""
    trained = lora.init(adapters, layout(params), jax.random.key(seed))
    return TrainState(
        jnp.int32(0), cast(trained, params_dtype), cast(optimizer.init(trained), state_dtype)
    )


def update(
    score: Callable,
    optimizer: Any,
    scale: float,
    cut: MicroBatches,
    group_size: int,
    trainers_old: bool,
    state: TrainState,
    reference: Params | None,
    batch: TrainBatch,
    objective: Objective,
    temperature: Float[Array, ""],
) -> tuple[TrainState, Metrics]:
    """One optimizer step on sum(weights * token_loss) over the whole batch; metrics are means over
    the tokens that count in it.

    score: `score` of a network. scale: of adapters. group_size: G. trainers_old: whether the ratio is taken to the policy's own
    log-probabilities in the place of the sampler's.
    """
    cut = cut.fitted(len(batch.tokens))
    score = partial(score, cut.together)
    ref_logprobs = reference_logprobs(score, reference, batch, temperature, cut)
    advantages = _advantages(objective, batch, ref_logprobs, group_size)
    # Rows that are not trained on have had their say: from here on they are as if they were empty.
    if batch.trained is not None:
        mask = weights.without_truncated(batch.completion_mask, batch.trained)
        batch = batch._replace(completion_mask=mask)
    mask = batch.completion_mask
    rows = batch, ref_logprobs, advantages, objective.token_weights(mask)

    def loss(params: Params, rows: tuple) -> tuple[Array, tuple]:
        batch, ref_logprobs, advantages, token_weights = rows
        policy = lora.attach(reference or {}, lora.scaled(params, scale))
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
        value, info = batch_loss(objective, token_weights, inputs)
        gap = jnp.abs(constant - batch.sampler_logprobs)
        return value, (value, info, jnp.where(batch.completion_mask, gap, UNCHOSEN))

    gradient, (losses, info, gap) = accumulate_gradients(loss, state.params, rows, cut)
    tokens = mask.sum()
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient)
    metrics = report(merge(info)) | {
        "update/loss": losses.sum(),
        "update/grad_norm": jnp.sqrt(sum(jax.tree.leaves(squares))),
        "update/tokens": tokens.astype(jnp.float32),
        "policy/logprob_gap_p99": _p99(gap),
    }
    return _moved(optimizer, state, gradient, tokens > 0), metrics


def _p99(gap: Float[Array, "M R T"]) -> Float[Array, ""]:
    """Returns what 99 of 100 gaps are at most: 0 where no token was chosen, NaN where the gap of
    any is not finite."""
    finite = jnp.all(jnp.isfinite(gap))
    quantile = jnp.nanquantile(jnp.where(gap == UNCHOSEN, jnp.nan, gap), 0.99)
    return jnp.where(finite, jnp.nan_to_num(quantile), jnp.nan)


def _moved(
    optimizer: Any, state: TrainState, gradient: Params, counts: Bool[Array, ""]
) -> TrainState:
    """The state after the optimizer's step. Where nothing counts only the step moves: momentum and weight decay must not move a
    policy that has no gradient."""
    params, opt_state = cast((state.params, state.opt_state), jnp.float32)
    updates, opt_state = optimizer_updates(optimizer, gradient, opt_state, params, state.step)
    old = state.params, state.opt_state
    new = round_stochastically((jax.tree.map(jnp.add, params, updates), opt_state), old, state.step)
    return TrainState(
        state.step + 1, *jax.tree.map(lambda new, old: jnp.where(counts, new, old), new, old)
    )


def reference_logprobs(
    score: Callable,
    reference: Params | None,
    batch: TrainBatch,
    temperature: Array,
    cut: MicroBatches,
) -> Float[Array, "B T"] | None:
    """The reference's log-probabilities of the whole batch: a KL in the reward needs them before any gradient. Without a
    reference there are none, and the policy's own stand in for them: KL 0."""
    if reference is None:
        return None
    rows = cut.split(batch)
    return cut.joined(
        jax.lax.map(lambda rows: score(reference, rows, temperature, entropy=False)[0], rows)
    )


def _advantages(
    objective: Objective, batch: TrainBatch, ref_logprobs: Array | None, group_size: int
) -> Float[Array, "B"] | Float[Array, "B T"]:
    """The objective's advantages of the batch's groups, as rows."""
    grouped = lambda x: x.reshape(-1, group_size, *x.shape[1:])
    gap = (
        jnp.zeros(batch.sampler_logprobs.shape)
        if ref_logprobs is None
        else batch.sampler_logprobs - ref_logprobs
    )
    kl = jnp.where(batch.completion_mask, gap, 0.0)
    advantages = objective.advantages(
        grouped(batch.rewards), grouped(batch.completion_mask), grouped(kl)
    )
    return advantages.reshape(-1, *advantages.shape[2:])


def score(
    forward: Callable,
    read: Callable,
    how: dict[str, Any],
    together: int,
    params: Params,
    batch: TrainBatch,
    temperature: Array,
    entropy: bool,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"] | None]:
    """Log-probabilities of the batch's tokens and, if asked for, the entropies they were chosen at; 0 where none is scored.

    forward: what `read` takes, transformer.forward or forward_both of a network; how: token_logprobs' further arguments.
    """
    hidden = read(partial(forward, params), batch, together)
    columns = hidden.shape[1]
    embedding = transformer.output_embedding(params)
    scores = token_logprobs(
        hidden, embedding, batch.tokens[:, -columns:], temperature, entropy=entropy, **how
    )
    return jax.tree.map(
        lambda score: jnp.pad(score, ((0, 0), (batch.tokens.shape[1] - columns, 0))), scores
    )


def row_hidden_states(
    start: int, forward: Callable, batch: TrainBatch, _: int, *, whole: Callable
) -> Float[Array, "B n D"]:
    """The hidden states of the columns from start - 1 on, which decide those from start on; every row is read whole."""
    hidden, _ = forward(batch.tokens, *_whole_text(batch.segments), whole=whole(batch.segments))
    return hidden[:, start - 1 :]


def _whole_text(segments: Array) -> tuple[Array, Array]:
    """Positions [B T] and mask [B T T]."""
    return transformer.sequence_positions(segments), transformer.sequence_mask(segments)


def group_hidden_states(
    width: int, forward: Callable, batch: TrainBatch, together: int, *, whole: Callable
) -> Float[Array, "B n D"]:
    """The hidden states of the columns from width - 1 on. So many rows as are together have the same prompt, in the columns
    before width: it is read once for them, and its keys and values are read by them all. forward: transformer.forward_both."""
    firsts = lambda x: x.reshape(-1, together, *x.shape[1:])[:, 0]
    segments, prompts = batch.segments, firsts(batch.segments)[:, :width]
    prompt = transformer.SequenceInputs(firsts(batch.tokens)[:, :width], *_whole_text(prompts))
    positions, mask = _whole_text(segments)
    rest = transformer.SequenceInputs(
        batch.tokens[:, width:], positions[:, width:], mask[:, width:], positions
    )
    last, hidden = forward(prompt, rest, wholes=(whole(prompts), whole(segments, width)))
    return jnp.concatenate([transformer.repeat_rows(last[:, -1:], together), hidden], axis=1)


def accumulate_gradients(
    loss: Callable, params: Params, rows: Any, cut: MicroBatches
) -> tuple[Params, Any]:
    """The gradient of a loss that is a sum over rows, a micro-batch at a time, and their auxiliary results, stacked."""
    gradient_of = jax.grad(loss, has_aux=True)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def one(gradient: Params, rows: Any) -> tuple[Params, Any]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    return jax.lax.scan(one, zeros, cut.split(rows))
