"""The device's half of learning: optimizer steps from a batch.

    batch -> advantages, token weights -> micro-batches -> log-probabilities, loss -> gradient
          -> new state

Pure functions of arrays; programs.py compiles them. Axes: P prompts, G completions of each,
B = P * G rows, T columns, M micro-batches of R rows.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgrpo.device.gradients import accumulate_gradients, global_norm
from jaxgrpo.device.micro_batches import (
    MicroBatches,
    has_entry,
    scan_filled,
    take_entries,
)
from jaxgrpo.device.optimizer import Optimizer, apply_gradient, cast
from jaxgrpo.device.scorer import Scorer, batch_logprobs, real_tokens
from jaxgrpo.losses import (
    LossInfo,
    Objective,
    TokenInputs,
    batch_loss,
    merge,
    report,
)
from jaxgrpo.models import lora, transformer
from jaxgrpo.types import AnyArray, Params, TrainBatch, TrainState

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
    """The rows of an update, or of a micro-batch."""

    scored: ScoredBatch
    token_weights: Float[Array, "B T"]

    def of_bins(self, bins: Int[Array, "R S"]) -> "_Rows":
        """Returns all rows, of which only the completions in these bins count."""
        batch = self.scored.batch
        mask = batch.completion_mask & has_entry(bins, batch.tokens.shape)
        of_bins = batch._replace(bins=bins, completion_mask=mask)
        return self._replace(scored=self.scored._replace(batch=of_bins))


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
    """Makes optimizer steps on sum(weights * token_loss) over the rows of a batch.

    A call is one step on the whole batch. For several, `score` is called once with the batch, and
    `update_scored` with the rows of each update, which `take_groups` takes from it.

    group_size: G
    adapter_scale: of LoRA adapters, alpha / rank
    uses_trainer_logprobs: the ratio is taken to the log-probabilities that the scorer computes for
        the policy before the first update, and not to the sampler's
    reference_scorer: of a reference that is another network; None: the policy's
    scores_reference: without it the KL to the reference is 0, and adapters' base is not scored
    """

    scorer: Scorer
    optimizer: Optimizer
    micro_batches: MicroBatches
    group_size: int = 1
    adapter_scale: float = 1.0
    uses_trainer_logprobs: bool = False
    reference_scorer: Scorer | None = None
    scores_reference: bool = True

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
        scored = self._with_advantages(
            reference, batch, old_logprobs, objective, temperature
        )
        return self.update_scored(
            state, reference, scored, None, objective, temperature
        )

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
                self._micro_batches_of(batch),
            )
        return self._with_advantages(
            reference, batch, old_logprobs, objective, temperature
        )

    def update_scored(
        self,
        state: TrainState,
        reference: Params | None,
        scored: ScoredBatch,
        index: Int[Array, ""] | None,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> tuple[TrainState, Metrics]:
        """Makes one of a batch's optimizer steps; returns the new state, and metrics.

        Tokens are weighted as if the rows of this update were all there are.

        scored: the rows of this update
        index: the update's place among those with the batch, from 0; None: it is the only one
        """
        batch = scored.batch
        mask = batch.completion_mask
        micro_batches = self._micro_batches_of(batch)
        rows = _Rows(scored, objective.token_weights(mask))

        # 1. The gradient, a micro-batch at a time.
        def loss(params: Params, rows: _Rows) -> tuple[Array, _LossParts, Params]:
            policy = self._policy(params, reference)
            value, parts, used_policy = self._loss(
                policy, rows, objective, temperature, micro_batches
            )
            return value, parts, _passed_on(used_policy, params)

        def packed_loss(
            params: Params, bins: Array
        ) -> tuple[Array, _LossParts, Params]:
            value, parts, params = loss(params, rows.of_bins(bins))
            return value, parts.of_bins(bins), params

        if batch.bins is None:
            gradient, parts = accumulate_gradients(
                loss, state.params, rows, micro_batches
            )
        else:
            gradient, parts = accumulate_gradients(
                packed_loss, state.params, batch.bins, micro_batches, scan_filled
            )

        # 2. Metrics, and the optimizer's step.
        num_tokens = mask.sum()
        metrics = report(merge(parts.info)) | {
            "update/loss": parts.loss.sum(),
            "update/grad_norm": global_norm(gradient),
            "update/tokens": num_tokens.astype(jnp.float32),
            "update/utilisation": self._utilisation(batch, micro_batches),
            "policy/logprob_gap_p99": _gap_p99(parts.gap, parts.is_chosen),
        }
        new_state = self._step(state, gradient, num_tokens > 0, index)
        return new_state, metrics

    def _with_advantages(
        self,
        reference: Params | None,
        batch: TrainBatch,
        old_logprobs: Float[Array, "B T"] | None,
        objective: Objective,
        temperature: Float[Array, ""] | float,
    ) -> ScoredBatch:
        """Adds the reference's log-probabilities and the advantages, which may need all rows.

        They are made once and then split with the rows, so that splitting changes nothing beyond
        rounding.
        """
        ref_logprobs = None
        if reference is not None and self.scores_reference:
            ref_logprobs = batch_logprobs(
                self.reference_scorer or self.scorer,
                reference,
                batch,
                temperature,
                self._micro_batches_of(batch),
            )
        advantages = self._advantages(objective, batch, ref_logprobs)
        # Rows that are not trained on were needed for their group's advantages. They leave the loss
        # here.
        batch = batch._replace(completion_mask=batch.trained_mask)
        return ScoredBatch(batch, old_logprobs, ref_logprobs, advantages)

    def _micro_batches_of(self, batch: TrainBatch) -> MicroBatches:
        """Returns how the batch's rows, or its bins, are cut."""
        cut = batch.tokens if batch.bins is None else batch.bins
        return self.micro_batches.for_rows(len(cut))

    def _policy(self, trained: Params, reference: Params | None) -> Params:
        """Returns the policy's parameters.

        With LoRA it is the frozen reference with the adapters attached. Otherwise `trained` has
        every parameter, and is the policy.
        """
        if self.reference_scorer is not None:
            return trained
        scaled = lora.scale_adapters(trained, self.adapter_scale)
        return lora.attach(reference or {}, scaled)

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

        reference = batch.sampler_logprobs if ref_logprobs is None else ref_logprobs
        kl = jnp.where(batch.completion_mask, batch.sampler_logprobs - reference, 0.0)
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
    ) -> tuple[Float[Array, ""], _LossParts, Params]:
        """Returns the loss of one micro-batch, which JAX differentiates, and its parts.

        The third result is the policy, for its next use.
        """
        scored = rows.scored
        batch = scored.batch
        scores = self.scorer(
            policy, batch, temperature, micro_batches.rows_per_prompt, entropy=True
        )
        constant_logprobs = jax.lax.stop_gradient(scores.logprobs)
        old_logprobs = scored.old_logprobs
        if old_logprobs is None:
            old_logprobs = constant_logprobs
        # Without a reference the policy stands in for it: the KL is 0.
        ref_logprobs = scored.ref_logprobs
        if ref_logprobs is None:
            ref_logprobs = constant_logprobs
        inputs = TokenInputs(
            logprobs=scores.logprobs,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            advantages=scored.advantages,
            mask=batch.completion_mask,
            sampler_logprobs=batch.sampler_logprobs,
            entropy=scores.entropy,
        )
        loss, info = batch_loss(objective, rows.token_weights, inputs)
        gap = jnp.abs(constant_logprobs - batch.sampler_logprobs)
        parts = _LossParts(loss, info, gap, batch.completion_mask)
        return loss, parts, scores.params

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

        index: of update_scored
        """
        # A training step is a batch: the first update counts it, and the learning rate of the
        # others is that of the first. Each rounds by random numbers of its own.
        step = state.step if index is None else state.step - (index > 0)
        key = jax.random.fold_in(jax.random.key(0), step)
        if index is not None:
            key = jax.random.fold_in(key, index)

        apply = partial(apply_gradient, self.optimizer, gradient, step=step, key=key)
        # A conditional, and not a choice between old and new numbers: XLA for CPUs would copy the
        # moments before the first micro-batch, and hold the copies through all of them.
        stored = (state.params, state.opt_state)
        params, opt_state = jax.lax.cond(has_tokens, apply, lambda old: old, stored)
        return TrainState(step + 1, params, opt_state)


def take_groups(rows: PyTree, groups: Int[AnyArray, "g"], group_size: int) -> PyTree:
    """Returns the rows of some groups of a batch, in the order in which the groups are named.

    rows: arrays whose first axis is the batch's rows
    groups: places in the batch, from 0; group p has the rows p * group_size to the next
    """

    def take(x: AnyArray) -> AnyArray:
        grouped = x.reshape(-1, group_size, *x.shape[1:])  # [P, G, ...]
        return grouped[groups].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, rows)


def _passed_on(policy: Params, trained: Params) -> Params:
    """Returns what is trained, with what the policy's last use of it returned.

    That is a tied embedding, and stacked layers. Others are used once, and XLA for TPUs would copy
    what is passed on. With LoRA what is trained is not the policy's.
    """
    if "embedding" not in trained:
        return trained
    names = ["layers"] if "layers" in trained else []
    if transformer.is_tied(policy):
        names.append("embedding")
    return trained | {name: policy[name] for name in names}


def _gap_p99(
    gap: Float[Array, "*tokens"], is_chosen: Bool[Array, "*tokens"]
) -> Float[Array, ""]:
    """Returns the gap that 99 of 100 chosen tokens are below.

    It is 0 where no token was chosen, and NaN where the gap of any is not finite.
    """
    is_finite = jnp.all(jnp.isfinite(gap) | ~is_chosen)
    quantile = jnp.nanquantile(jnp.where(is_chosen, gap, jnp.nan), 0.99)
    return jnp.where(is_finite, jnp.nan_to_num(quantile), jnp.nan)
