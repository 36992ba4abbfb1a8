"""What a step sampled, as records for OUT/rollouts.jsonl: a few completions, or all of them."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgrpo.losses import Objective
from jaxgrpo.rollout.batch import ALL_ROWS, TrainedRows, compared_tokens
from jaxgrpo.rollout.collect import Collection
from jaxgrpo.rollout.groups import JudgedGroup
from jaxgrpo.rollout.report import Json, shown_rollouts


def step_records(
    collected: Collection,
    objective: Objective,
    save_rollouts: str,
    trained_rows: TrainedRows = ALL_ROWS,
) -> Iterator[Json]:
    """Yields the records of a step.

    objective: the one that the step's update is made with
    save_rollouts: the setting: "few" completions, or "all", with their advantages
    """
    whole = save_rollouts == "all"
    # The first time they take a second to compile.
    advantages = None
    if whole:
        advantages = completion_advantages(objective, collected.groups, trained_rows)
    return shown_rollouts(collected.asked, collected.groups, advantages, whole)


def completion_advantages(
    objective: Objective,
    groups: Sequence[JudgedGroup],
    trained_rows: TrainedRows = ALL_ROWS,
) -> Float[np.ndarray, "P G"] | None:
    """Returns the advantages of a batch's completions, for people to look at.

    Where each token has an advantage of its own, it is their mean. It is NaN for rows of a group
    that the update has no places for.

    groups: all that the batch has

    None where an objective needs the KL to the reference, which only the update knows.
    """
    if not groups:
        return None
    selected = [trained_rows.select(group) for group in groups]
    rewards = jnp.array([group.rewards for group in selected], jnp.float32)
    mask = jnp.array([compared_tokens(group) for group in selected])  # [P, G, T]
    try:
        advantages = np.asarray(objective.advantages(rewards, mask))
    except ValueError:  # as the interface says of one that needs the KL
        return None
    if advantages.ndim == 3:
        counts = np.asarray(mask).sum(axis=-1)
        sums = np.where(mask, advantages, 0.0).sum(axis=-1)
        advantages = sums / np.maximum(counts, 1)
    places = np.array([trained_rows.places(group) for group in groups])
    of_all = np.full((len(groups), len(groups[0].texts)), np.nan)
    np.put_along_axis(of_all, places, advantages, axis=1)
    return of_all
