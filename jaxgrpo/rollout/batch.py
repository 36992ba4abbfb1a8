"""Groups as the arrays of an update."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.types import TrainBatch


def make_batch(
    groups: Sequence[JudgedGroup], count: int, mask_truncated: bool = False
) -> TrainBatch:
    """Returns the rows of `count` groups as one batch of NumPy arrays; there is at least one group.

    Rows whose reward is missing, and the places that no group fills, have an empty completion_mask
    and count nothing.

    mask_truncated: rows that were cut off are not trained on (arXiv 2503.14476, section 3.4),
        though their rewards, lengths and KL are compared with
    """
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
        trained=to_rows(trained_rows(group, mask_truncated) for group in groups),
    )


def compared_tokens(group: JudgedGroup) -> Bool[np.ndarray, "G T"]:
    """Returns the chosen tokens of the rows that have a reward, which advantages are made of."""
    return group.completion_mask & ~np.isnan(group.rewards)[:, None]


def trained_rows(group: JudgedGroup, mask_truncated: bool) -> Bool[np.ndarray, "G"]:
    """Returns the rows that the loss may count.

    mask_truncated: not those that were cut off
    """
    return group.finished | (not mask_truncated)


def ages_of_trained_tokens(
    groups: Sequence[JudgedGroup], step: int, mask_truncated: bool
) -> Int[np.ndarray, "n"]:
    """Returns the ages in steps of the tokens that an update on the groups counts."""
    ages = [np.zeros(0, int)]
    for group in groups:
        is_trained = (
            compared_tokens(group) & trained_rows(group, mask_truncated)[:, None]
        )
        ages.append(step - group.policy_steps[is_trained])
    return np.concatenate(ages)
