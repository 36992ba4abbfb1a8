"""Coefficients of an objective that move from step to step, by the metrics of the step before.

An objective, or one inside it, says which of its coefficients move, and has a method that moves
them. A train loop keeps their values, which are plain numbers, as part of its state:

    moving = ("weight",)                     # a class attribute without an annotation
    def after_step(self, metrics): ...       # returns itself with the coefficients moved

Coefficients are traced, so that moving them compiles nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxgrpo.losses.objective import Objective


def after_step(objective: Objective, metrics: Mapping[str, float]) -> Objective:
    """Returns the objective of the next step: moving coefficients are moved, inside and out.

    metrics: of the step, by the names of `report`; empty for a step without an update
    """
    moved: Any = objective
    inner = getattr(objective, "objective", None)
    if inner is not None:
        moved = replace(moved, objective=after_step(inner, metrics))
    return moved.after_step(metrics) if hasattr(moved, "after_step") else moved


def moving_values(objective: Objective) -> dict[str, float]:
    """Returns the moving coefficients by name, such as "weight" or, inside, "objective.weight"."""
    names: tuple[str, ...] = getattr(objective, "moving", ())
    values = {name: float(getattr(objective, name)) for name in names}
    inner = getattr(objective, "objective", None)
    if inner is not None:
        for name, value in moving_values(inner).items():
            values[f"objective.{name}"] = value
    return values


def with_moving_values(objective: Objective, values: Mapping[str, float]) -> Objective:
    """Returns the objective with the values that `moving_values` returned.

    Raises ValueError if they are not those of its moving coefficients.
    """
    names = list(moving_values(objective))
    if set(names) != set(values):
        raise ValueError(
            f"the objective's moving coefficients are {names}: values of {list(values)} do not fit"
        )
    changed: Any = objective
    inner = getattr(objective, "objective", None)
    inner_values = {}
    own_values = {}
    for name, value in values.items():
        if name.startswith("objective."):
            inner_values[name.removeprefix("objective.")] = value
        else:
            own_values[name] = value
    if inner is not None:
        changed = replace(changed, objective=with_moving_values(inner, inner_values))
    return replace(changed, **own_values)
