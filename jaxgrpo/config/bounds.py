"""Bounds and other marks of a setting, which stand beside its field.

    temperature: float = setting(1.0, above=0, why="log-probabilities at 0 are infinite")

Marks are the field's `metadata`, a plain dictionary. A dataclass elsewhere can carry them without
importing this module: `rank: int = field(default=0, metadata={"at_least": 0})`. So can a field
whose default is made anew: `field(default_factory=Mesh, metadata=Marks(may_change=True))`.
"""

import dataclasses
from typing import Literal, TypedDict, TypeVar, Unpack, cast

T = TypeVar("T")

GAPS = {"float32": 1e-3, "bfloat16": 0.25, "int8": 0.5}
"""Nats by which 99 of 100 tokens' log-probabilities may differ between sampler and scorer.

By what the sampler's matrices are. They are the scorer's, too, but for int8.
"""

ROUNDING = {"float32": 1e-5, "bfloat16": 0.01, "int8": 0.02}
"""Nats by which they do differ, through rounding alone.

Measured with the embedded model on a CPU: 2e-6 in float32, 0.008 in bfloat16 and 0.016 in int8.
"""


class Marks(TypedDict, total=False):
    """Marks of a setting. The last three may also stand beside a group of settings.

    at_least, above, at_most, below: bounds of a number; None is allowed where the type allows it
    one_of: the values that a text may have
    why: the reason for a bound, which its error message ends with
    may_change: a resumed run may change it: it computes the same, up to rounding, or from there on
        as a run begun so, which resume.check_same says
    reads_policy: a checkpoint's parameters are read by it
    measures: an evaluation of the same policy depends on it
    """

    at_least: int | float
    above: int | float
    at_most: int | float
    below: int | float
    one_of: tuple[str, ...]
    why: str
    may_change: bool
    reads_policy: bool
    measures: bool


BOUNDS: tuple[Literal["at_least", "above", "at_most", "below"], ...] = (
    "at_least",
    "above",
    "at_most",
    "below",
)
"""The marks that are bounds, lower ones first."""


def setting(default: T, **marks: Unpack[Marks]) -> T:
    """Returns a dataclass field with a default and marks."""
    return dataclasses.field(default=default, metadata=marks)


def marks_of(field: dataclasses.Field) -> Marks:
    """Returns the marks of a dataclass field, without what else its metadata holds."""
    # Metadata may be somebody else's, too.
    known = {
        key: value
        for key, value in field.metadata.items()
        if key in Marks.__annotations__
    }
    return cast(Marks, known)


def bounds_of(marks: Marks) -> dict[str, int | float]:
    """Returns the marks that are bounds of a number, lower ones first."""
    return {mark: marks[mark] for mark in BOUNDS if mark in marks}


def marked(cls: type, mark: str) -> set[str]:
    """Returns the settings, and the groups of settings, of a config class that have a mark.

    Names are dotted, "mesh" or "verifier.workers".
    """
    names = set()
    for part in dataclasses.fields(cls):
        if mark in part.metadata:
            names.add(part.name)
        # A Protocol, such as that of objectives, has no fields; its settings are marked as a group.
        if isinstance(part.type, type) and dataclasses.is_dataclass(part.type):
            names |= {f"{part.name}.{name}" for name in marked(part.type, mark)}
    return names
