"""Trains on some rows of a larger group: those whose rewards differ most (PODS).

Rollouts are cheap beside an update's memory: many are sampled, and few trained on.

Source: arXiv 2504.13818
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from jaxgrpo.rollout.groups import JudgedGroup


def max_variance_rows(
    rewards: Float[np.ndarray, "G"], count: int
) -> Int[np.ndarray, "count"]:
    """Returns the rows with the greatest variance of the reward, in their order in the group.

    They are the k highest and the count - k lowest, for the k of the greatest variance; of equal
    ones the k next to half. Rows whose reward is missing, NaN, come last.

    count: rows, from 2 to G
    """
    in_order = np.argsort(rewards, kind="stable")  # the lowest first, NaN last
    num_known = int(np.sum(~np.isnan(rewards)))
    wanted = min(count, num_known)

    def rows(num_highest: int) -> np.ndarray:
        lowest = in_order[: wanted - num_highest]
        highest = in_order[num_known - num_highest : num_known]
        return np.concatenate([lowest, highest])

    def rank(num_highest: int) -> tuple[float, int]:
        variance = float(np.var(rewards[rows(num_highest)])) if wanted else 0.0
        # Rounded: equal variances are computed from other sums.
        return round(variance, 12), -abs(2 * num_highest - wanted)

    best = rows(max(range(wanted + 1), key=rank))
    missing = in_order[num_known : num_known + count - wanted]
    return np.sort(np.concatenate([best, missing]))


def take_rows(group: JudgedGroup, rows: Int[np.ndarray, "m"]) -> JudgedGroup:
    """Returns the group of some rows; `solved` and `judged` remain those of all.

    Advantages are made of the rows that are left.
    """
    arrays = {
        name: value[rows]
        for name, value in vars(group).items()
        if isinstance(value, np.ndarray)
    }
    place_of = {int(row): place for place, row in enumerate(rows)}
    missing = {
        (place_of[row], name): reason
        for (row, name), reason in group.missing.items()
        if row in place_of
    }
    return replace(
        group,
        **arrays,
        texts=[group.texts[row] for row in rows],
        values={name: value[rows] for name, value in group.values.items()},
        missing=missing,
    )
