"""The device's half of learning: optimizer steps from a batch.

    batch -> micro-batches -> log-probabilities -> advantages, loss -> gradient -> new state

Pure functions of arrays; programs.py compiles them. Axes: P prompts, G completions of each,
B = P * G rows, T columns, M micro-batches of R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgrpo.device.micro_batches import MicroBatches
from jaxgrpo.device.optimizer import (
    Optimizer,
    cast,
    optimizer_updates,
    round_stochastically,
)
from jaxgrpo.device.scorer import Scorer, batch_logprobs
from jaxgrpo.losses import (
    LossInfo,
    Objective,
    TokenInputs,
    batch_loss,
    merge,
    report,
    token_weights,
)
from jaxgrpo.models import lora
from jaxgrpo.types import Params, TrainBatch, TrainState

Metrics = dict[str, Float[Array, ""]]

NOT_CHOSEN = -1.0
"""Marks entries off the completion mask in an array of log-probability gaps. A real gap is at least
0. NaN would not do as a mark: a gap that is NaN must show in the metric."""


def init_state(
    optimizer: Optimizer,
    trained: Params,
    params_dtype: DTypeLike,
    optimizer_dtype: DTypeLike,
) -> TrainState:
    """Returns the state that a run begins with.

    trained: the parameters that are trained, all of them or adapters
    params_dtype, optimizer_dtype: what they and the optimizer's moments are stored in
    """
    opt_state = optimizer.init(trained)
    return TrainState(
        jnp.int32(0), cast(trained, params_dtype), cast(opt_state, optimizer_dtype)
    )


class ScoredBatch(NamedTuple):
    """A batch with all that its loss takes besides the policy and the tokens' weights."""

    batch: TrainBatch
    """Its completion_mask is without the rows that are not trained on."""
    old_logprobs: Float[Array, "B T"] | None
    """Log-probabilities that the ratio is taken to. None: the policy's own, as constants: the value
    of the ratio is then 1, and only its gradient acts."""
    ref_logprobs: Float[Array, "B T"] | None
    advantages: Float[Array, "B"] | Float[Array, "B T"]


class _Rows(NamedTuple):
    """The rows of an update, B of them, or the R of a micro-batch."""

    scored: ScoredBatch
    token_weights: Float[Array, "B T"]


class _LossParts(NamedTuple):
    """The auxiliary output of a micro-batch's loss."""

    loss: Float[Array, ""]
    info: LossInfo
    gap: Float[Array, "R T"]
    """|log policy - log sampler|; NOT_CHOSEN off the completions."""


@dataclass(frozen=True)
class Updater:
    """Makes optimizer steps on sum(weights * token_loss) over the rows of a batch.

    A call is one step on the whole batch. For several, `score` is called once with the batch, and
    `update_scored` with the rows of each update, which `take_groups` takes from it.

    group_size: G
    adapter_scale: of LoRA adapters, alpha / rank
    uses_trainer_logprobs: the ratio is taken to the log-probabilities that the scorer computes for
        the policy before the first update, and not to the sampler's
    reference_scorer: of a reference that is another network; None: the policy's
    """

    scorer: Scorer
    optimizer: Optimizer
    micro_batches: MicroBatches
    group_size: int = 1
    adapter_scale: float = 1.0
    uses_trainer_logprobs: bool = False
    reference_scorer: Scorer | None = None

    def __call__(
        self,
        state: TrainState,
        reference: Params | None,
        batch: TrainBatch,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> tuple[TrainState, Metrics]:
        """Makes one optimizer step; returns the new state, and the step's metrics.

        Metrics of the policy are means over the tokens that count in the loss.
        """
        # There is no update before this one: the policy's own log-probabilities are the old ones.
        old_logprobs = None if self.uses_trainer_logprobs else batch.sampler_logprobs
        scored = self._scored(reference, batch, old_logprobs, objective, temperature)
        return self._update(state, reference, scored, objective, temperature)

    def score(
        self,
        state: TrainState,
        reference: Params | None,
        batch: TrainBatch,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> ScoredBatch:
        """Returns what stays the same over several updates with a batch."""
        old_logprobs = batch.sampler_logprobs
        if self.uses_trainer_logprobs:
            old_logprobs = batch_logprobs(
                self.scorer,
                self._policy(state.params, reference),
                batch,
                temperature,
                self.micro_batches.for_rows(len(batch.tokens)),
            )
        return self._scored(reference, batch, old_logprobs, objective, temperature)

    def update_scored(
        self,
        state: TrainState,
        reference: Params | None,
        scored: ScoredBatch,
        index: Int[Array, ""],
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> tuple[TrainState, Metrics]:
        """Makes one of several optimizer steps with a batch; returns the state and the metrics.

        Tokens are weighted as if the rows of this update were all there are.

        scored: the rows of this update
        index: the update's place among those with the batch, from 0
        """
        return self._update(state, reference, scored, objective, temperature, index)

    def _scored(
        self,
        reference: Params | None,
        batch: TrainBatch,
        old_logprobs: Float[Array, "B T"] | None,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> ScoredBatch:
        """Returns a batch with everything that depends on all of its rows, but token weights.

        These are the advantages, which a KL to the reference may be part of. They are made once and
        then split with the rows, so that splitting changes nothing beyond rounding.
        """
        ref_logprobs = None
        if reference is not None:
            micro_batches = self.micro_batches.for_rows(len(batch.tokens))
            ref_logprobs = batch_logprobs(
                self.reference_scorer or self.scorer,
                reference,
                batch,
                temperature,
                micro_batches,
            )
        advantages = self._advantages(objective, batch, ref_logprobs)
        if batch.trained is not None:
            # Rows that are not trained on were needed for their group's advantages. They leave the
            # loss here.
            mask = token_weights.without_truncated(batch.completion_mask, batch.trained)
            batch = batch._replace(completion_mask=mask)
        return ScoredBatch(batch, old_logprobs, ref_logprobs, advantages)

    def _policy(self, trained: Params, reference: Params | None) -> Params:
        """Returns the policy's parameters.

        With LoRA it is the frozen reference with the adapters attached. Otherwise `trained` has
        every parameter, and is the policy.
        """
        if self.reference_scorer is not None:
            return trained
        scaled = lora.scale_adapters(trained, self.adapter_scale)
        return lora.attach(reference or {}, scaled)

    def _update(
        self,
        state: TrainState,
        reference: Params | None,
        scored: ScoredBatch,
        objective: Objective,
        temperature: Float[Array, ""] | float,
        index: Int[Array, ""] | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Makes an optimizer step on these rows; returns the new state, and metrics.

        index: the update's place among several with a batch; None: it is the only one
        """
        mask = scored.batch.completion_mask
        micro_batches = self.micro_batches.for_rows(len(mask))
        rows = _Rows(scored, objective.token_weights(mask))

        # 1. The gradient, a micro-batch at a time.
        def loss(params: Params, rows: _Rows) -> tuple[Array, _LossParts]:
            policy = self._policy(params, reference)
            return self._loss(policy, rows, objective, temperature, micro_batches)

        gradient, parts = accumulate_gradients(loss, state.params, rows, micro_batches)

        # 2. Metrics, and the optimizer's step.
        num_tokens = mask.sum()
        metrics = report(merge(parts.info)) | {
            "update/loss": parts.loss.sum(),
            "update/grad_norm": _global_norm(gradient),
            "update/tokens": num_tokens.astype(jnp.float32),
            "policy/logprob_gap_p99": _gap_p99(parts.gap),
        }
        new_state = self._step(state, gradient, num_tokens > 0, index)
        return new_state, metrics

    def _advantages(
        self, objective: Objective, batch: TrainBatch, ref_logprobs: Array | None
    ) -> Float[Array, "B"] | Float[Array, "B T"]:
        """Returns the objective's advantages of the batch's groups, as rows."""

        def to_groups(x: Array) -> Array:
            return x.reshape(-1, self.group_size, *x.shape[1:])  # [P, G, ...]

        log_ratio = jnp.zeros(batch.sampler_logprobs.shape)
        if ref_logprobs is not None:
            log_ratio = batch.sampler_logprobs - ref_logprobs
        kl = jnp.where(batch.completion_mask, log_ratio, 0.0)
        advantages = objective.advantages(
            to_groups(batch.rewards), to_groups(batch.completion_mask), to_groups(kl)
        )
        return advantages.reshape(-1, *advantages.shape[2:])

    def _loss(
        self,
        policy: Params,
        rows: _Rows,
        objective: Objective,
        temperature: Float[Array, ""] | float,
        micro_batches: MicroBatches,
    ) -> tuple[Float[Array, ""], _LossParts]:
        """Returns the loss of one micro-batch, which `jax.grad` differentiates, and its parts."""
        scored = rows.scored
        batch = scored.batch
        logprobs, entropy = self.scorer(
            policy, batch, temperature, micro_batches.rows_per_prompt, entropy=True
        )
        constant_logprobs = jax.lax.stop_gradient(logprobs)
        old_logprobs = scored.old_logprobs
        if old_logprobs is None:
            old_logprobs = constant_logprobs
        # Without a reference the policy stands in for it: the KL is 0.
        ref_logprobs = scored.ref_logprobs
        if ref_logprobs is None:
            ref_logprobs = constant_logprobs
        inputs = TokenInputs(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            advantages=scored.advantages,
            mask=batch.completion_mask,
            sampler_logprobs=batch.sampler_logprobs,
            entropy=entropy,
        )
        loss, info = batch_loss(objective, rows.token_weights, inputs)
        gap = jnp.abs(constant_logprobs - batch.sampler_logprobs)
        gap = jnp.where(batch.completion_mask, gap, NOT_CHOSEN)
        return loss, _LossParts(loss, info, gap)

    def _step(
        self,
        state: TrainState,
        gradient: Params,
        has_tokens: Bool[Array, ""],
        index: Int[Array, ""] | None = None,
    ) -> TrainState:
        """Returns the state after the optimizer's step.

        Where no token counts only the step number moves: momentum and weight decay must not move a
        policy that nothing was learned for.

        index: the update's place among several with a batch; None: it is the only one
        """
        # A training step is a batch: the first update counts it, and the learning rate of the
        # others is that of the first. Each rounds by random numbers of its own.
        step = state.step
        key = jax.random.fold_in(jax.random.key(0), step)
        if index is not None:
            step = state.step - (index > 0)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), index)
        # Arithmetic is in float32, whatever the numbers are stored in.
        params, opt_state = cast((state.params, state.opt_state), jnp.float32)
        updates, opt_state = optimizer_updates(
            self.optimizer, gradient, opt_state, params, step
        )
        new_params = jax.tree.map(jnp.add, params, updates)
        old = (state.params, state.opt_state)
        new = round_stochastically((new_params, opt_state), old, key)

        def choose(new_leaf: Array, old_leaf: Array) -> Array:
            return jnp.where(has_tokens, new_leaf, old_leaf)

        params, opt_state = jax.tree.map(choose, new, old)
        return TrainState(step + 1, params, opt_state)


def take_groups(
    scored: ScoredBatch, groups: Int[Array, "g"], group_size: int
) -> ScoredBatch:
    """Returns the rows of some groups of a batch, in the order in which the groups are named.

    groups: places in the batch, from 0; group p has the rows p * group_size to the next
    """

    def take(x: Array) -> Array:
        grouped = x.reshape(-1, group_size, *x.shape[1:])  # [P, G, ...]
        return grouped[groups].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, scored)


def accumulate_gradients(
    loss: Callable[[Params, PyTree], tuple[Array, PyTree]],
    params: Params,
    rows: PyTree,
    micro_batches: MicroBatches,
) -> tuple[Params, PyTree]:
    """Returns the gradient of a loss that is a sum over rows, and its auxiliary results, stacked.

    The gradient is added up in float32, a micro-batch at a time.
    """
    gradient_of = jax.grad(loss, has_aux=True)
    # float32, though parameters may be bfloat16: a sum of many small terms.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def add(gradient: Params, rows: PyTree) -> tuple[Params, PyTree]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    return jax.lax.scan(add, zeros, micro_batches.split(rows))


def _global_norm(gradient: Params) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    squares = jax.tree.map(
        lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def _gap_p99(gap: Float[Array, "M R T"]) -> Float[Array, ""]:
    """Returns the gap that 99 of 100 chosen tokens are below.

    It is 0 where no token was chosen, and NaN where the gap of any is not finite.
    """
    is_finite = jnp.all(jnp.isfinite(gap))
    quantile = jnp.nanquantile(jnp.where(gap == NOT_CHOSEN, jnp.nan, gap), 0.99)
    return jnp.where(is_finite, jnp.nan_to_num(quantile), jnp.nan)
