"""A tree of dataclasses as named, typed settings: `batch.groups`, `rewards.language.weight`. To override, to describe.

`--config.batch.groups=16` is ml_collections' notation. Its config_flags is not used: on a mirror of the tree it reads
`--config.data.languages=en,ko` as one language called "en,ko", cannot name a reward with a dash in it, and knows no
None for a setting that may be None; and a mirror, with its errors put into our words, is longer than the parsing saved.
"""

import ast
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxgrpo.errors import UserError

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
    list: "a list",
}
"""The types that the command line can set, as people say them."""


@dataclass(frozen=True)
class Field:
    """A setting: its value, its type, the type of its elements where it is a tuple, whether it may be None, its line of
    documentation."""

    value: Any
    kind: type
    element: type | None
    optional: bool
    doc: str

    @property
    def expected(self) -> str:
        elements = f" of {self.element.__name__}" if self.element else ""
        return NAMES[self.kind] + elements + (" or None" if self.optional else "")


def fields(node: Any, prefix: str = "") -> dict[str, Field]:
    """Every setting in a tree of dataclasses, dictionaries and tuples of them, by its dotted name."""
    found: dict[str, Field] = {}
    for name, (value, hint) in children(node).items():
        kind, element, optional = _kind(hint, value)
        if kind is None:
            found |= fields(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = Field(value, kind, element, optional, _doc(type(node), name))
    return found


def children(node: Any) -> dict[str, tuple[Any, Any]]:
    """What a node is made of: {name: (value, declared type or None)}; {} for a leaf."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = _hints(type(node))
        # A field that __init__ does not take is a cache, not a setting.
        return {
            f.name: (getattr(node, f.name), hints.get(f.name))
            for f in dataclasses.fields(node)
            if f.init
        }
    if isinstance(node, dict):
        return {str(name): (value, None) for name, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(index): (value, None) for index, value in enumerate(node)}
    return {}


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (
        NameError,
        TypeError,
    ):  # a user's class with annotations that name nothing: the values' types must do
        return {}


def _kind(hint: Any, value: Any) -> tuple[type | None, type | None, bool]:
    """A setting's type, that of its elements where it is a tuple, and whether None will do; no type: a group."""
    if isinstance(value, tuple | list) and any(children(item) for item in value):
        return None, None, False
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = {
        typing.get_origin(option) or option: option
        for option in (typing.get_args(hint) if union else [hint])
    }
    kinds = [kind for kind in options if kind in NAMES] or [
        kind for kind in [type(value)] if kind in NAMES
    ]
    if not kinds:
        return None, None, False
    kind = type(value) if type(value) in kinds else kinds[0]
    return kind, _element(kind, options.get(kind), value), types.NoneType in options


def _element(kind: type, hint: Any, value: Any) -> type | None:
    """The one type that a tuple's elements have, as declared or else as found; None where there is no such type."""
    if kind not in (tuple, list):
        return None
    found = {type(item) for item in value} if isinstance(value, tuple | list) else set()
    elements = {option for option in typing.get_args(hint) if option in NAMES} or found
    return elements.pop() if len(elements) == 1 else None


def _doc(cls: type, name: str) -> str:
    """What a class's docstring says of a field, in a line that begins with `name: `."""
    line = re.search(rf"^\s*{re.escape(name)}: (.+)$", cls.__doc__ or "", re.MULTILINE)
    return line[1] if line else ""


def has_type(field: Field, value: Any) -> bool:
    """Whether a value has a setting's type; an int will do for a float, a list for a tuple."""
    if value is None:
        return field.optional
    if field.kind in (tuple, list):
        elements = field.element is None or all(_is_instance(field.element, item) for item in value)
        return isinstance(value, tuple | list) and elements
    return _is_instance(field.kind, value)


def _is_instance(kind: type, value: Any) -> bool:
    if isinstance(value, bool):  # which Python counts among the ints
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def override(config: Any, flags: Iterable[str]) -> Any:
    """The config with flags `--config.a.b=value` applied in order: the last one wins. The argument is left as it was.

    Raises UserError for a malformed flag, an unknown name, a value of the wrong type.
    """
    known, values = fields(config), {}
    for flag in flags:
        match = re.fullmatch(r"--config\.([^=]+)=(.*)", flag, re.DOTALL)
        if not match:
            raise UserError(
                f"{flag}: a setting is written --config.name=value, for example --config.steps=20"
            )
        name, text = match.groups()
        if name not in known:
            _refuse(name, known)
        values[name] = _parse(name, known[name], text)
    try:
        return _rebuild(config, values)
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # from a dataclass's own __post_init__
        raise UserError(f"{' '.join(flags)}: {error}") from error


def _refuse(name: str, known: Iterable[str]) -> NoReturn:
    """Raises the UserError for a name that is no setting."""
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        raise UserError(
            f"--config.{name} is a group of settings; set one of {', '.join(inside[:8])}"
        )
    same_end = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = list(dict.fromkeys(difflib.get_close_matches(name, known, n=3, cutoff=0.7) + same_end))[
        :3
    ]
    mend = f"did you mean {' or '.join(near)}?" if near else "--help lists those there are"
    raise UserError(f"--config.{name}: no such setting; {mend}")


def _parse(name: str, field: Field, text: str) -> Any:
    """The value that a text stands for, by the setting's type; a str is taken verbatim."""
    if field.optional and text.lower() == "none":
        return None
    try:
        value = _PARSERS[field.kind](text)
    except (ValueError, KeyError, SyntaxError):
        value = None
    if value is None or not has_type(field, value):
        example = f"--config.{name}={shown(field.value)}"
        raise UserError(
            f"--config.{name}={text}: {name} is {field.expected}, and {text!r} is not; it is now {field.value!r}, "
            f"which would be written {example}"
        )
    return value


def _parse_tuple(text: str) -> tuple:
    """`("en","ko")`, `en,ko` and `en` are all tuples of words; `(1, 2)`, `1,2` and `1` of numbers."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if re.search(r"""[()\[\]{}'"]""", text):
            raise
        value = tuple(word.strip() for word in text.split(",") if word.strip())
    return tuple(value) if isinstance(value, tuple | list) else (value,)


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: float,
    str: str,
    tuple: _parse_tuple,
    list: lambda text: list(_parse_tuple(text)),
}


def _rebuild(node: Any, values: dict[str, Any]) -> Any:
    """A copy of the tree with the values at their dotted names; what is not named is shared."""
    changed = {}
    for name, (value, _) in children(node).items():
        below = {
            key.removeprefix(f"{name}."): new
            for key, new in values.items()
            if key.startswith(f"{name}.")
        }
        if name in values:
            changed[name] = values[name]
        elif below:
            changed[name] = _rebuild(value, below)
    if not changed:
        return node
    if isinstance(node, dict):
        return {key: changed.get(str(key), value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return type(node)(changed.get(str(index), value) for index, value in enumerate(node))
    return dataclasses.replace(node, **changed)


def shown(value: Any) -> str:
    """A value as one would type it in a shell."""
    text = repr(value) if isinstance(value, tuple | list) else str(value)
    return text if re.fullmatch(r"[\w./:@%+,-]*", text) else "'" + text.replace("'", '"') + "'"


def path_of(thing: Any) -> str:
    """A function's or class's name as "module:qualname"; of another object, its class's."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(node: Any) -> Any:
    """The tree as JSON values. A dataclass says its class under "class"; functions and other objects are a path."""
    if isinstance(node, float) and not math.isfinite(node):
        return str(node)  # JSON has no word for it
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, tuple | list):
        return [describe(item) for item in node]
    below = {name: describe(value) for name, (value, _) in children(node).items()}
    if isinstance(node, dict):
        return below
    return {"class": path_of(node), **below} if dataclasses.is_dataclass(node) else path_of(node)


def flat(description: Any, prefix: str = "") -> dict[str, Any]:
    """A description's leaves by dotted name. Lists of plain values are leaves."""
    if isinstance(description, list) and any(isinstance(item, dict | list) for item in description):
        description = {str(index): item for index, item in enumerate(description)}
    if not isinstance(description, dict):
        return {prefix: description}
    leaves: dict[str, Any] = {}
    for name, value in description.items():
        leaves |= flat(value, f"{prefix}.{name}" if prefix else name)
    return leaves


def defaults(node: Any) -> dict[str, Any]:
    """Returns the defaults of a tree's settings as `flat(describe(...))` has them.

    Settings that must be given are left out.
    """
    found: dict[str, Any] = {}
    for name, (value, _) in children(node).items():
        default = _default(node, name)
        if default is not dataclasses.MISSING:
            found |= flat(describe(default), name)
        # Of a group that is there, the defaults of its own class.
        found |= {f"{name}.{below}": value for below, value in defaults(value).items()}
    return found


def _default(node: Any, name: str) -> Any:
    """Returns the default of a dataclass's field; dataclasses.MISSING where there is none."""
    field = getattr(node, "__dataclass_fields__", {}).get(name)
    if field is None:
        return dataclasses.MISSING
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()
