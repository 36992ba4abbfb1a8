"""Lists every message of the program that gives advice, from the source, and where it is written.

    python -m tools.check_advice

tests/test_advice.py has a trial for each of them, which provokes it and then does what it says.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("jaxgrpo", "tools")

ADVICE = re.compile(
    r"\b(begin again|call it|change|check|choose|computed here|convert|copy|define|did you mean"
    r"|fetch|for example|for this family|give|go back|goes on|install|leave out|lower|make it|mend"
    r"|move|must|name the|name a|only one|pip|put|raise|read a file|remove|rename|resume with"
    r"|run python|save the|set|should hold|shorten|takes? all|train first|use|wanted|widen|write"
    r"|written)\b"
)
"""Words of advice: they say what to do, or what has to hold."""

HINT_NAMES = ("hint", "also", "rule", "mend")
"""Names of variables whose values are advice that is written elsewhere."""

PRINTERS = ("print0", "say", "error")
"""Functions whose first argument people see: `error` is data.rows' Row.error, which makes a
UserError of it."""


@dataclass(frozen=True)
class Message:
    """A message in the source. text: as it is written, {} where a value is put in."""

    path: str
    line: int
    text: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """A pattern that matches the message as people see it, however its lines are wrapped."""
        # Lines may be wrapped anywhere in what people see.
        parts = [re.escape(" ".join(part.split())) for part in self.text.split("{}")]
        return re.compile(
            r".*?".join(part.replace(r"\ ", r"\s+") for part in parts), re.DOTALL
        )


def messages() -> list[Message]:
    """Returns every message that gives advice, in the order of the files."""
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in _source_files()
    }
    errors = _error_names(trees.values())
    found = {}
    for path, tree in trees.items():
        for node, has_hint in _shown_texts(tree, errors):
            text = _template(node)
            # A hint is advice, whatever the words around it are.
            if has_hint or ADVICE.search(text):
                message = Message(str(path.relative_to(ROOT)), node.lineno, text)
                found[path, node.lineno, text] = message
    return [found[key] for key in sorted(found, key=lambda key: key[:2])]


def _source_files() -> Iterator[Path]:
    """Yields the program's files but this one."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != Path(__file__):
                yield path


def _error_names(trees: Iterable[ast.Module]) -> set[str]:
    """Returns the names of the errors that people see: UserError, and classes of it."""
    names = {"UserError"}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                # Direct subclasses only.
                bases = [ast.unparse(base) for base in node.bases]
                if "UserError" in bases:
                    names.add(node.name)
    return names


def _shown_texts(tree: ast.Module, errors: set[str]) -> Iterator[tuple[ast.expr, bool]]:
    """Yields the texts that people see, and whether a hint from elsewhere is put into each.

    They are errors' messages, printed lines, and notes: texts with advice in a function that
    returns `str | None`, which its caller prints.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _is_text(node.args[0]):
            # The last name of a dotted one: errors.UserError, self.say.
            function = ast.unparse(node.func).rpartition(".")[2]
            text = node.args[0]
            if function in errors:
                yield text, _has_hint(text)
            elif function in PRINTERS:
                yield text, False
        if isinstance(node, ast.FunctionDef) and _returns_note(node):
            for inner in ast.walk(node):
                if isinstance(inner, ast.JoinedStr) and ADVICE.search(_template(inner)):
                    yield inner, False


def _returns_note(function: ast.FunctionDef) -> bool:
    return (
        function.returns is not None and ast.unparse(function.returns) == "str | None"
    )


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)


def _has_hint(text: ast.expr) -> bool:
    """Returns whether one of HINT_NAMES is in an expression that is put into a text."""
    for node in ast.walk(text):
        if isinstance(node, ast.FormattedValue):
            expression = ast.unparse(node.value).lower()
            if any(name in expression for name in HINT_NAMES):
                return True
    return False


def _template(node: ast.expr) -> str:
    """Returns a string literal with {} where a value is put in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts
    )


if __name__ == "__main__":
    for message in messages():
        print(f"{message.path}:{message.line}: {message.text}")
