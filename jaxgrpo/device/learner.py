"""The device's half of learning: one optimizer step from a batch.

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

from jaxgrpo.device.micro_batches import (
    MicroBatches,
    has_entry,
    scan_filled,
    take_entries,
)
from jaxgrpo.device.optimizer import (
    Optimizer,
    cast,
    optimizer_updates,
    round_stochastically,
)
from jaxgrpo.device.scorer import Scorer, real_tokens, reference_logprobs
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


class _ScoredRows(NamedTuple):
    """Rows of a batch with everything that their loss takes besides the policy.

    B is all rows, or R those of a micro-batch.
    """

    batch: TrainBatch
    ref_logprobs: Float[Array, "B T"] | None
    advantages: Float[Array, "B"] | Float[Array, "B T"]
    token_weights: Float[Array, "B T"]

    def of_bins(self, bins: Int[Array, "R S"]) -> "_ScoredRows":
        """Returns the rows, of which only the completions in these bins count."""
        mask = self.batch.completion_mask & has_entry(bins, self.batch.tokens.shape)
        return self._replace(batch=self.batch._replace(bins=bins, completion_mask=mask))


class _LossParts(NamedTuple):
    """The auxiliary output of a micro-batch's loss."""

    loss: Float[Array, ""]
    info: LossInfo
    gap: Float[Array, "*tokens"]
    """|log policy - log sampler| of a row's or a bin's tokens; anything off the completions."""
    is_chosen: Bool[Array, "*tokens"]
    """Whether the policy chose a token."""

    def of_bins(self, bins: Int[Array, "R S"]) -> "_LossParts":
        """Returns the parts with the gaps of the tokens in these bins, [R, S]."""
        is_chosen = take_entries(self.is_chosen, bins) & (bins >= 0)
        return self._replace(gap=take_entries(self.gap, bins), is_chosen=is_chosen)


@dataclass(frozen=True)
class Updater:
    """Makes one optimizer step on sum(weights * token_loss) over the whole batch.

    group_size: G
    adapter_scale: of LoRA adapters, alpha / rank
    uses_trainer_logprobs: the ratio is taken to the policy's own log-probabilities, as constants,
        and not to the sampler's: its value is then 1, and only its gradient acts
    """

    scorer: Scorer
    optimizer: Optimizer
    micro_batches: MicroBatches
    group_size: int = 1
    adapter_scale: float = 1.0
    uses_trainer_logprobs: bool = False

    def __call__(
        self,
        state: TrainState,
        reference: Params | None,
        batch: TrainBatch,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> tuple[TrainState, Metrics]:
        """Returns the new state, and the step's metrics.

        Metrics of the policy are means over the tokens that count in the loss.
        """
        cut = batch.tokens if batch.bins is None else batch.bins
        micro_batches = self.micro_batches.for_rows(len(cut))

        # 1. Everything that depends on all rows of the batch: advantages, which a KL to the
        # reference may be part of, and how much each token counts. It is made once and then split
        # with the rows, so splitting changes nothing beyond rounding.
        ref_logprobs = reference_logprobs(
            self.scorer, reference, batch, temperature, micro_batches
        )
        advantages = self._advantages(objective, batch, ref_logprobs)
        if batch.trained is not None:
            # Rows that are not trained on were needed for their group's advantages. They leave the
            # loss here.
            mask = token_weights.without_truncated(batch.completion_mask, batch.trained)
            batch = batch._replace(completion_mask=mask)
        mask = batch.completion_mask
        rows = _ScoredRows(
            batch, ref_logprobs, advantages, objective.token_weights(mask)
        )

        # 2. The gradient, a micro-batch at a time. With LoRA the policy is the frozen reference
        # with the adapters attached. Otherwise `params` has every parameter, and is the policy.
        def loss(params: Params, rows: _ScoredRows) -> tuple[Array, _LossParts]:
            scaled = lora.scale_adapters(params, self.adapter_scale)
            policy = lora.attach(reference or {}, scaled)
            return self._loss(policy, rows, objective, temperature, micro_batches)

        def packed_loss(params: Params, bins: Array) -> tuple[Array, _LossParts]:
            value, parts = loss(params, rows.of_bins(bins))
            return value, parts.of_bins(bins)

        if batch.bins is None:
            gradient, parts = accumulate_gradients(
                loss, state.params, rows, micro_batches
            )
        else:
            gradient, parts = accumulate_gradients(
                packed_loss, state.params, batch.bins, micro_batches, scan_filled
            )

        # 3. Metrics, and the optimizer's step.
        num_tokens = mask.sum()
        metrics = report(merge(parts.info)) | {
            "update/loss": parts.loss.sum(),
            "update/grad_norm": _global_norm(gradient),
            "update/tokens": num_tokens.astype(jnp.float32),
            "update/utilisation": self._utilisation(batch, micro_batches),
            "policy/logprob_gap_p99": _gap_p99(parts.gap, parts.is_chosen),
        }
        return self._step(state, gradient, has_tokens=num_tokens > 0), metrics

    def _utilisation(
        self, batch: TrainBatch, micro_batches: MicroBatches
    ) -> Float[Array, ""]:
        """Returns the share of computed columns that hold a token of a row in the loss.

        A prompt counts once for its group, however often it is read.
        """
        tokens = real_tokens(batch, self.scorer.prompt_width, self.group_size)
        columns = self.scorer.num_columns(batch, micro_batches)
        return tokens.astype(jnp.float32) / jnp.maximum(columns, 1)

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
        rows: _ScoredRows,
        objective: Objective,
        temperature: Float[Array, ""] | float,
        micro_batches: MicroBatches,
    ) -> tuple[Float[Array, ""], _LossParts]:
        """Returns the loss of one micro-batch, which `jax.grad` differentiates, and its parts."""
        batch = rows.batch
        logprobs, entropy = self.scorer(
            policy, batch, temperature, micro_batches.rows_per_prompt, entropy=True
        )
        constant_logprobs = jax.lax.stop_gradient(logprobs)
        old_logprobs = batch.sampler_logprobs
        if self.uses_trainer_logprobs:
            old_logprobs = constant_logprobs
        # Without a reference the policy stands in for it: the KL is 0.
        ref_logprobs = (
            constant_logprobs if rows.ref_logprobs is None else rows.ref_logprobs
        )
        inputs = TokenInputs(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            advantages=rows.advantages,
            mask=batch.completion_mask,
            sampler_logprobs=batch.sampler_logprobs,
            entropy=entropy,
        )
        loss, info = batch_loss(objective, rows.token_weights, inputs)
        gap = jnp.abs(constant_logprobs - batch.sampler_logprobs)
        return loss, _LossParts(loss, info, gap, batch.completion_mask)

    def _step(
        self, state: TrainState, gradient: Params, has_tokens: Bool[Array, ""]
    ) -> TrainState:
        """Returns the state after the optimizer's step.

        Where no token counts only the step number moves: momentum and weight decay must not move a
        policy that nothing was learned for.
        """
        # Arithmetic is in float32, whatever the numbers are stored in.
        params, opt_state = cast((state.params, state.opt_state), jnp.float32)
        updates, opt_state = optimizer_updates(
            self.optimizer, gradient, opt_state, params, state.step
        )
        new_params = jax.tree.map(jnp.add, params, updates)
        old = (state.params, state.opt_state)
        new = round_stochastically((new_params, opt_state), old, state.step)

        def choose(new_leaf: Array, old_leaf: Array) -> Array:
            return jnp.where(has_tokens, new_leaf, old_leaf)

        params, opt_state = jax.tree.map(choose, new, old)
        return TrainState(state.step + 1, params, opt_state)


def accumulate_gradients(
    loss: Callable[[Params, PyTree], tuple[Array, PyTree]],
    params: Params,
    rows: PyTree,
    micro_batches: MicroBatches,
    scan: Callable = jax.lax.scan,
) -> tuple[Params, PyTree]:
    """Returns the gradient of a loss that is a sum over rows, and its auxiliary results, stacked.

    The gradient is added up in float32, a micro-batch at a time.

    rows: what the loss is a sum over: rows, or bins
    scan: goes over the micro-batches, as jax.lax.scan does
    """
    gradient_of = jax.grad(loss, has_aux=True)
    # float32, though parameters may be bfloat16: a sum of many small terms.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

    def add(gradient: Params, rows: PyTree) -> tuple[Params, PyTree]:
        new, auxiliary = gradient_of(params, rows)
        return jax.tree.map(jnp.add, gradient, new), auxiliary

    return scan(add, zeros, micro_batches.split(rows))


def _global_norm(gradient: Params) -> Float[Array, ""]:
    """Returns the norm of all gradients together, in float32."""
    squares = jax.tree.map(
        lambda g: jnp.sum(jnp.square(g.astype(jnp.float32))), gradient
    )
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def _gap_p99(
    gap: Float[Array, "*tokens"], is_chosen: Bool[Array, "*tokens"]
) -> Float[Array, ""]:
    """Returns the gap that 99 of 100 chosen tokens are below.

    It is 0 where no token was chosen, and NaN where the gap of any is not finite.
    """
    is_finite = jnp.all(jnp.isfinite(gap) | ~is_chosen)
    quantile = jnp.nanquantile(jnp.where(is_chosen, gap, jnp.nan), 0.99)
    return jnp.where(is_finite, jnp.nan_to_num(quantile), jnp.nan)
