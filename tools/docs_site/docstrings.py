"""Has mkdocstrings show this project's docstrings as they are meant.

They are plain text. A line `name: meaning` documents a parameter, a field or a metric, and becomes
an item of a list. Signs that are HTML, such as <think>, stay signs.
"""

import re

import griffe

NAME_LINE = re.compile(r"(?P<names>[\w/]+(?:, [\w/]+)*): (?P<meaning>\S.*)")
"""`clip_low, clip_high: how far from 1 the ratio may be`"""


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring as the Markdown that shows it."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrites the docstring of an object that has one."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, _own_names(obj))


def _own_names(obj: griffe.Object) -> set[str]:
    """Returns the names that a docstring may document: parameters, and fields of a class."""
    names = set(obj.members)
    if isinstance(obj, griffe.Function):
        names |= {parameter.name for parameter in obj.parameters}
    return names


def to_markdown(docstring: str, names: set[str]) -> str:
    """Returns the Markdown that shows a docstring.

    names: those that a line `name: meaning` may document
    """
    lines: list[str] = []
    in_item = False
    for line in docstring.splitlines():
        item = NAME_LINE.fullmatch(line)
        if item and names.issuperset(item["names"].split(", ")):
            # Markdown begins a list only after an empty line.
            if not in_item:
                lines.append("")
            lines.append(f"- **`{item['names']}`** {_escape(item['meaning'])}")
            in_item = True
        elif in_item and line.startswith(" "):
            # The rest of the item's meaning.
            lines.append(f"  {_escape(line.strip())}")
        else:
            # And ends it only before one.
            if in_item and line:
                lines.append("")
            in_item = False
            is_verbatim = line.startswith("    ")
            if is_verbatim and lines and lines[-1] and not lines[-1].startswith("    "):
                lines.append("")
            # Indented lines are formulas and examples, which Markdown shows as they are.
            lines.append(line if is_verbatim else _escape(line))
    return "\n".join(lines)


def _escape(line: str) -> str:
    """Returns a line whose signs are not taken for HTML, but within backticks."""
    # Every second part stands within backticks, where signs are only signs.
    parts = line.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
