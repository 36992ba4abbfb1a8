"""Dataclasses that JAX can trace."""

import dataclasses
from collections.abc import Iterable
from typing import TypeVar, dataclass_transform

from jax import tree_util

Class = TypeVar("Class", bound=type)
Leaves = list[tuple[tree_util.GetAttrKey, object]]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def frozen_pytree(cls: Class) -> Class:
    """Makes a class a frozen dataclass and a pytree whose leaves are its fields.

    The fields are traced, so that changing a coefficient compiles nothing. A field with metadata
    {"static": True} belongs to the structure instead: changing it compiles anew.

    It stands in for jax.tree_util.register_dataclass, under which the structures of two classes
    with equally many fields compare equal (seen in JAX 0.10 to 0.12). A compiled function may then
    run one objective's program for another.
    """
    dataclasses.dataclass(frozen=True)(
        cls
    )  # changes the class itself, as it is without slots
    fields = dataclasses.fields(cls)
    static_names = [field.name for field in fields if field.metadata.get("static")]
    leaf_names = [field.name for field in fields if not field.metadata.get("static")]

    def flatten(node: object) -> tuple[Leaves, tuple[object, ...]]:
        leaves: Leaves = [
            (tree_util.GetAttrKey(name), getattr(node, name)) for name in leaf_names
        ]
        return leaves, tuple(getattr(node, name) for name in static_names)

    def unflatten(static_values: Iterable[object], leaves: Iterable[object]) -> object:
        # Not cls(...): its __post_init__ would check the leaves, and JAX also puts placeholders
        # where numbers belong.
        node: object = object.__new__(cls)
        for name, value in zip(leaf_names, leaves, strict=True):
            object.__setattr__(node, name, value)
        for name, value in zip(static_names, static_values, strict=True):
            object.__setattr__(node, name, value)
        return node

    tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
