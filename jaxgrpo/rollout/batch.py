"""Groups as the arrays of an update."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from jaxgrpo.rollout.down_sampling import max_variance_rows, take_rows
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.types import TrainBatch


@dataclass(frozen=True)
class TrainedRows:
    """Says which rows the loss may count. The others still count in their group's advantages.

    mask_truncated: not those that were cut off (arXiv 2503.14476, section 3.4)
    max_age: not those with a token that was chosen more than so many steps before; None: of any age
    of_group: rows of a group that an update has places for: those of the greatest variance
        (down_sampling), and the others count in nothing; 0: all
    """

    mask_truncated: bool = False
    max_age: int | None = None
    of_group: int = 0

    def places(self, group: JudgedGroup) -> Int[np.ndarray, "m"]:
        """Returns the places of those rows in the group."""
        if self.of_group:
            return max_variance_rows(group.rewards, self.of_group)
        return np.arange(len(group.texts))

    def select(self, group: JudgedGroup) -> JudgedGroup:
        """Returns the group of those rows that the update has places for."""
        return take_rows(group, self.places(group)) if self.of_group else group

    def rows_of(self, group: JudgedGroup, step: int) -> Bool[np.ndarray, "G"]:
        """Returns which rows of a group the update of a step may count."""
        rows = group.finished | (not self.mask_truncated)
        if self.max_age is None:
            return rows
        ages = np.where(group.completion_mask, step - group.policy_steps, 0)
        return rows & (ages.max(axis=1) <= self.max_age)


ALL_ROWS = TrainedRows()


def make_batch(
    groups: Sequence[JudgedGroup],
    count: int,
    trained_rows: TrainedRows = ALL_ROWS,
    step: int = 0,
) -> TrainBatch:
    """Returns the rows of `count` groups as one batch of NumPy arrays; there is at least one group.

    Rows whose reward is missing, and the places that no group fills, have an empty completion_mask
    and count nothing.

    step: the training step, which ages count from
    """
    groups = [trained_rows.select(group) for group in groups]
    empty_rows = (count - len(groups)) * len(groups[0].texts)

    def to_rows(arrays: Iterable[np.ndarray], filler: float = 0) -> np.ndarray:
        # [groups * G, ...] -> [count * G, ...]
        array = np.concatenate(list(arrays))
        empty = np.full((empty_rows, *array.shape[1:]), filler, array.dtype)
        return np.concatenate([array, empty])

    return TrainBatch(
        tokens=to_rows(group.tokens for group in groups),
        # One text a row: its segment is 1, and padding 0.
        segments=to_rows(group.attention_mask.astype(np.int32) for group in groups),
        completion_mask=to_rows(map(compared_tokens, groups)),
        rewards=to_rows((group.rewards.astype(np.float32) for group in groups), np.nan),
        sampler_logprobs=to_rows(group.logprobs for group in groups),
        trained=to_rows(trained_rows.rows_of(group, step) for group in groups),
    )


def compared_tokens(group: JudgedGroup) -> Bool[np.ndarray, "G T"]:
    """Returns the chosen tokens of the rows that have a reward, which advantages are made of."""
    return group.completion_mask & ~np.isnan(group.rewards)[:, None]


def ages_of_trained_tokens(
    groups: Sequence[JudgedGroup], step: int, trained_rows: TrainedRows
) -> Int[np.ndarray, "n"]:
    """Returns the ages in steps of the tokens that an update on the groups counts."""
    ages = [np.zeros(0, int)]
    for group in map(trained_rows.select, groups):
        is_trained = compared_tokens(group) & trained_rows.rows_of(group, step)[:, None]
        ages.append(step - group.policy_steps[is_trained])
    return np.concatenate(ages)
