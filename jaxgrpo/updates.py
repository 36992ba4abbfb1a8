"""The updates of a step: optimizer steps with one batch, in mini-batches and epochs.

    batch -> scored once -> epochs of mini-batches of groups -> an optimizer step with each

What does not depend on the policy that moves is made once, from the whole batch, before the first
update: advantages, the reference's log-probabilities, and the old ones that the ratio is taken to.
Token weights are made for each update from its own rows. So an update is exactly the only update of
a batch that held its groups alone, apart from advantages that are normalised over a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from jaxgrpo.device.learner import ScoredBatch, take_groups
from jaxgrpo.device.program import Program
from jaxgrpo.distributed.mesh import to_device
from jaxgrpo.losses import Objective
from jaxgrpo.programs import Programs
from jaxgrpo.rollout.packing import Packer
from jaxgrpo.types import AnyArray, Params, TrainBatch, TrainState

Metrics = dict[str, float]


@dataclass(frozen=True)
class UpdateRule:
    """The updates that are made with a batch.

    groups: of a batch
    updates: mini-batches of equal size that the groups are divided into; each is an optimizer step
    epochs: how often the batch is gone over
    target_kl: no further update is made once KL(old || policy), in nats a token, was above this in
        the last one (0: all are made)
    seed: the run's
    packer: packs the rows of an update into bins; None: they are read as they are
    """

    groups: int
    updates: int = 1
    epochs: int = 1
    target_kl: float = 0.0
    seed: int = 0
    packer: Packer | None = None

    @property
    def is_single(self) -> bool:
        """True for one update with the whole batch."""
        return self.updates * self.epochs == 1

    def mini_batches(self, step: int) -> Iterator[Int[np.ndarray, "g"]]:
        """Yields the groups of each update of a step, by their places in the batch.

        Every epoch has all groups, in an order that is a function of (seed, step, epoch). So the
        places that an underfull batch leaves empty, which are its last, are seldom all in one
        update. An update that has only those moves nothing.
        """
        for epoch in range(self.epochs):
            generator = np.random.default_rng([self.seed, step, epoch])
            order = generator.permutation(self.groups).astype(np.int32)
            yield from np.split(order, self.updates)

    def pack(self, batch: TrainBatch) -> TrainBatch:
        """Returns a batch of NumPy arrays with its bins, where there is a packer."""
        return self.packer(batch) if self.packer else batch


def update_policy(
    programs: Programs,
    state: TrainState,
    reference: Params | None,
    batch: TrainBatch,
    objective: Objective,
    temperature: float,
    rule: UpdateRule,
    step: int,
) -> tuple[TrainState, list[Metrics]]:
    """Makes a step's updates; returns the new state, and the metrics of each update.

    batch: NumPy arrays, the same in every process
    step: the training step, from 1
    """
    placed = to_device(rule.pack(batch), programs.row_sharding)
    if rule.is_single:
        state, metrics = programs.update(
            state, reference, placed, objective, temperature
        )
        return state, [_fetch(metrics)]
    scored = programs.score(state, reference, placed, objective, temperature)
    # These bins are of the whole batch.
    scored = with_bins(scored, None)
    made: list[Metrics] = []
    for index, groups in enumerate(rule.mini_batches(step)):
        if rule.target_kl and made and made[-1]["policy/kl_old"] > rule.target_kl:
            break
        rows = programs.take_groups(scored, groups)
        if rule.packer:
            bins = _mini_batch_bins(rule.packer, batch, groups)
            rows = with_bins(rows, to_device(bins, programs.row_sharding))
        state, metrics = programs.update_scored(
            state, reference, rows, np.int32(index), objective, temperature
        )
        made.append(_fetch(metrics))
    return state, made


def with_bins(scored: ScoredBatch, bins: Int[AnyArray, "bins S"] | None) -> ScoredBatch:
    """Returns the same rows, to be read from these bins."""
    return scored._replace(batch=scored.batch._replace(bins=bins))


def _mini_batch_bins(
    packer: Packer, batch: TrainBatch, groups: Int[np.ndarray, "g"]
) -> Int[np.ndarray, "bins S"]:
    """Returns the bins of the rows of some groups; what is not trained on need not be in one."""
    rows = take_groups(batch, groups, packer.group_size)
    return packer.bins(rows._replace(completion_mask=rows.trained_mask))


def update_program(programs: Programs, rule: UpdateRule) -> Program:
    """Returns the program that makes an optimizer step."""
    return programs.update if rule.is_single else programs.update_scored


def merge_metrics(updates: Sequence[Mapping[str, float]]) -> Metrics:
    """Returns the metrics of a step from those of its updates, of which there is at least one.

    An update without a token says nothing of the policy, and counts in update/count alone.

        update/count         updates that were made
        update/tokens        their sum: a token that is in two updates counts twice
        update/...           others: means of the updates
        policy/logprob_gap   the first update's, before the policy moves; so are its _max and _p99
        policy/..._max       maxima
        policy/...           others: means over the tokens
        policy/kl_old_last   policy/kl_old of the last update
    """
    counted = [metrics for metrics in updates if metrics["update/tokens"]] or updates[
        :1
    ]
    merged = dict(counted[0])
    tokens = np.array([metrics["update/tokens"] for metrics in counted])
    # Without a token the mean is that of the only one.
    weights = np.maximum(tokens, 1.0)
    for name in merged:
        values = np.array([metrics[name] for metrics in counted])
        if name == "update/tokens":
            merged[name] = float(tokens.sum())
        elif name.startswith("policy/logprob_gap"):
            continue
        elif name.endswith("_max"):
            merged[name] = float(values.max())
        elif name.startswith("update/"):
            merged[name] = float(values.mean())
        else:
            merged[name] = float(np.average(values, weights=weights))
    merged["update/count"] = float(len(updates))
    merged["policy/kl_old_last"] = counted[-1]["policy/kl_old"]
    return merged


def _fetch(metrics: Mapping[str, jax.Array]) -> Metrics:
    """Returns metrics as numbers; it waits for the update that makes them."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
