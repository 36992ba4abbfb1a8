"""Checks of what an objective asks of the other settings of a run."""

from collections.abc import Iterable

from jaxgrpo.errors import UserError


def check_group_size(layers: Iterable[object], group_size: int) -> None:
    """Raises UserError for an objective of groups of another size than the run's.

    layers: the objective and those inside
    """
    for layer in layers:
        own = getattr(layer, "group_size", group_size)
        if own != group_size:
            raise UserError(
                f"objective has {type(layer).__name__}.group_size={own}, and batch.group_size is "
                f"{group_size}: change one of the two, they must be the same"
            )


def check_moving(layers: Iterable[object]) -> None:
    """Raises UserError for an objective whose coefficients move: a run does not move them yet."""
    for layer in layers:
        if getattr(layer, "moving", ()):
            raise UserError(
                f"objective has {type(layer).__name__}(...), whose coefficients move from step to "
                "step, which they do not in a run: for a fixed entropy bonus use "
                "Regularised(entropy=...)"
            )
