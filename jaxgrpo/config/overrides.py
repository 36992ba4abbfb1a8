"""Flags `--config.batch.groups=16` that override settings, each by its dotted name and type.

A config is a tree of dataclasses, dictionaries and tuples: `fields` names its settings, `override`
changes them, `describe` writes them down. Nothing in a flag is ever executed.

The notation is that of ml_collections. Its config_flags is not used: on a mirror of the tree it
reads `--config.data.languages=en,ko` as one language called "en,ko", cannot name a reward with a
dash in it, and knows no None for a setting that may be None; and a mirror, with its errors put into
our words, is longer than the parsing saved. Two others were tried. tyro does name the weights in a
dictionary of rewards, but it wants the elements of a tuple as separate words (`en,ko` is one
language again), and its errors are boxes of several lines where ours are one. draccus builds a
config from its class alone, and has no place for the object that a config file has made, whose
parts are of classes that only the file knows.
"""

import ast
import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from jaxgrpo.config.bounds import Marks, marks_of
from jaxgrpo.config.suggestions import suggest
from jaxgrpo.errors import UserError

Tree = TypeVar("Tree")

NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
    list: "a list",
}
"""The types that the command line can set, as people say them."""

RENAMED = {"rewards.*.most": "rewards.*.max_weight"}
"""Settings that were renamed, and their new names. A `*` stands for the name of a reward."""


@dataclass(frozen=True)
class Field:
    """A setting.

    value: its present value
    kind: its type, one of NAMES
    element: the type of its elements, where it is a tuple or list of one type
    optional: whether it may be None
    doc: its line of documentation
    marks: what stands beside its dataclass field
    """

    value: object
    kind: type
    element: type | None
    optional: bool
    doc: str
    marks: Marks

    @property
    def expected(self) -> str:
        """Returns the type as people say it: "a tuple of str or None"."""
        elements = f" of {self.element.__name__}" if self.element else ""
        return NAMES[self.kind] + elements + (" or None" if self.optional else "")


# 1. Reading the tree.


def fields(node: object, prefix: str = "") -> dict[str, Field]:
    """Returns every setting of a tree by its dotted name, prefixed with `prefix`.

    The tree is made of dataclasses, dictionaries and tuples of them.
    """
    settings: dict[str, Field] = {}
    for name, (value, hint) in children(node).items():
        kind, element, optional = _kind(hint, value)
        if kind is None:
            settings |= fields(value, f"{prefix}{name}.")
        else:
            doc = doc_of(type(node), name)
            marks = _marks(node, name)
            settings[prefix + name] = Field(value, kind, element, optional, doc, marks)
    return settings


def children(node: object) -> dict[str, tuple[object, object]]:
    """Returns the parts of a node, {name: (value, declared type or None)}; {} for a leaf."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        hints = _hints(type(node))
        # A field that __init__ does not take is a cache, not a setting.
        names = [field.name for field in dataclasses.fields(node) if field.init]
        return {name: (getattr(node, name), hints.get(name)) for name in names}
    if isinstance(node, dict):
        return {str(name): (value, None) for name, value in node.items()}
    if isinstance(node, tuple | list):
        return {str(index): (value, None) for index, value in enumerate(node)}
    return {}


def _hints(cls: type) -> dict[str, object]:
    """Returns the declared types of a class's fields, {} where they cannot be resolved."""
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError):
        # A user's class whose annotations name nothing: the values' own types must do.
        return {}


def _kind(hint: object, value: object) -> tuple[type | None, type | None, bool]:
    """Returns a setting's type, the type of its elements, and whether it may be None.

    The first is None for a group of settings.
    """
    if isinstance(value, tuple | list) and any(children(item) for item in value):
        return None, None, False
    # 1. What is declared: {type: hint}, {tuple: tuple[str, ...], NoneType: None}.
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    declared = typing.get_args(hint) if is_union else (hint,)
    options = {typing.get_origin(option) or option: option for option in declared}
    # 2. Those that the command line can set. Undeclared, as in a dictionary, the value tells.
    kinds = [kind for kind in options if isinstance(kind, type) and kind in NAMES]
    if not kinds and type(value) in NAMES:
        kinds = [type(value)]
    if not kinds:
        return None, None, False
    # 3. Of several, the one that it has now; a value of none of them is refused by has_type.
    kind = type(value) if type(value) in kinds else kinds[0]
    return kind, _element(kind, options.get(kind), value), types.NoneType in options


def _element(kind: type, hint: object, value: object) -> type | None:
    """Returns the one type that a tuple's elements have, as declared or else as they are.

    None where there is no such type.
    """
    if kind not in (tuple, list):
        return None
    elements = {option for option in typing.get_args(hint) if option in NAMES}
    if not elements and isinstance(value, tuple | list):
        elements = {type(item) for item in value}
    return elements.pop() if len(elements) == 1 else None


def doc_of(cls: type, name: str) -> str:
    """Returns the meaning of a field by the docstring of its class or of a base, "" without one.

    It stands in a line that begins with `name: `, and in those below that are indented further.
    """
    pattern = rf"^( *){re.escape(name)}: (.+(?:\n\1 +\S.*)*)$"
    for base in cls.__mro__:
        lines = re.search(pattern, base.__doc__ or "", re.MULTILINE)
        if lines:
            return " ".join(lines[2].split())
    return ""


def default_of(field: dataclasses.Field) -> object:
    """Returns the default of a dataclass's field; dataclasses.MISSING where there is none."""
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return field.default_factory()


def _marks(node: object, name: str) -> Marks:
    """Returns the marks of a dataclass's field; none for an item of a dictionary or tuple."""
    field = getattr(node, "__dataclass_fields__", {}).get(name)
    return marks_of(field) if field is not None else {}


def has_type(field: Field, value: object) -> bool:
    """Returns whether a value has a setting's type.

    An int will do for a float, and a list for a tuple.
    """
    if value is None:
        return field.optional
    if field.kind not in (tuple, list):
        return _is_instance(field.kind, value)
    if not isinstance(value, tuple | list):
        return False
    return field.element is None or all(
        _is_instance(field.element, item) for item in value
    )


def _is_instance(kind: type, value: object) -> bool:
    """Returns isinstance(value, kind), where a bool is no int and an int is a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


# 2. Changing it.


def override(config: Tree, flags: Iterable[str]) -> Tree:
    """Returns a config with flags `--config.a.b=value` applied in order: the last one wins.

    The argument is left as it was.

    Raises UserError for a malformed flag, an unknown name, a value of the wrong type.
    """
    settings = fields(config)
    values: dict[str, object] = {}
    flags = list(flags)
    for flag in flags:
        match = re.fullmatch(r"--config\.([^=]+)=(.*)", flag, re.DOTALL)
        if not match:
            raise UserError(
                f"{flag}: a setting is written --config.name=value, for example --config.steps=20"
            )
        name, text = match.groups()
        if name not in settings:
            _refuse(name, settings)
        # By the type that the config file gave it; a later flag replaces an earlier one's value.
        values[name] = _parse(name, settings[name], text)
    try:
        return cast(Tree, _rebuild(config, values))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        # From the __post_init__ of a dataclass of the config.
        raise UserError(f"{' '.join(flags)}: {error}") from error


def renamed(name: str) -> str | None:
    """Returns the new name of a setting that was renamed, None for any other."""
    for old, new in RENAMED.items():
        pattern = re.escape(old).replace(r"\*", "([^.]+)")
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new.replace("*", r"\1"), name)
    return None


def _refuse(name: str, known: Collection[str]) -> NoReturn:
    """Raises the UserError for a name that is no setting."""
    new = renamed(name)
    if new in known:
        raise UserError(f"--config.{name} is now called --config.{new}; use that name")
    inside = [other for other in known if other.startswith(f"{name}.")]
    if inside:
        raise UserError(
            f"--config.{name} is a group of settings; set one of {', '.join(inside[:8])}"
        )
    near = suggest(name, known)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "--help lists those there are"
    )
    raise UserError(f"--config.{name}: no such setting; {hint}")


def _parse(name: str, field: Field, text: str) -> object:
    """Returns the value that a text stands for, by the setting's type; a str is taken verbatim."""
    if field.optional and text.lower() == "none":
        return None
    try:
        value = _PARSERS[field.kind](text)
    except (ValueError, KeyError, SyntaxError):
        # No parser returns None.
        value = None
    if value is None or not has_type(field, value):
        example = f"--config.{name}={shown(field.value)}"
        raise UserError(
            f"--config.{name}={text}: {name} is {field.expected}, and {text!r} is not; "
            f"it is now {field.value!r}, which would be written {example}"
        )
    return value


def _parse_bool(text: str) -> bool:
    """Returns true or false; KeyError for anything else."""
    return {"true": True, "false": False}[text.lower()]


def _parse_tuple(text: str) -> tuple:
    """Returns a tuple of words or of numbers.

    `("en","ko")`, `en,ko` and `en` are all tuples of words; `(1, 2)`, `1,2` and `1` of numbers.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # Brackets and quotes are meant as Python; without them, commas separate words.
        if re.search(r"""[()\[\]{}'"]""", text):
            raise
        words = [word.strip() for word in text.split(",")]
        value = tuple(word for word in words if word)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _parse_list(text: str) -> list:
    """Returns a list, written like a tuple."""
    return list(_parse_tuple(text))


_PARSERS: dict[type, Callable[[str], object]] = {
    bool: _parse_bool,
    int: int,
    float: float,
    str: str,
    tuple: _parse_tuple,
    list: _parse_list,
}


def _rebuild(node: object, values: Mapping[str, object]) -> object:
    """Returns a copy of the tree with the values at their dotted names; the rest is shared."""
    changed: dict[str, object] = {}
    for name, (value, _) in children(node).items():
        # What is set further down, by its name from there.
        start = f"{name}."
        below = {
            key.removeprefix(start): new
            for key, new in values.items()
            if key.startswith(start)
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
        return type(node)(
            changed.get(str(index), value) for index, value in enumerate(node)
        )
    # Only these three have parts.
    assert dataclasses.is_dataclass(node)
    assert not isinstance(node, type)
    return dataclasses.replace(node, **changed)


# 3. Writing it down.


def shown(value: object) -> str:
    """Returns a value as one would type it in a shell."""
    text = repr(value) if isinstance(value, tuple | list) else str(value)
    if re.fullmatch(r"[\w./:@%+,-]*", text):
        return text
    return "'" + text.replace("'", '"') + "'"


def path_of(thing: object) -> str:
    """Returns "module:qualname" of a function or class; of another object, that of its class."""
    # Functions and classes have a name of their own, instances have not.
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(node: object) -> Any:
    """Returns the tree as JSON values.

    A dataclass says its class under "class"; functions and other objects are a path.
    """
    # JSON has no word for NaN and infinity.
    if isinstance(node, float) and not math.isfinite(node):
        return str(node)
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, tuple | list):
        return [describe(item) for item in node]
    parts = {name: describe(value) for name, (value, _) in children(node).items()}
    if isinstance(node, dict):
        return parts
    if dataclasses.is_dataclass(node):
        return {"class": path_of(node), **parts}
    return path_of(node)
