"""Every message of the program that gives advice, by the source: what a person is told to do, and
where that is said.

    python -m tools.check_advice

tests/test_advice.py has a trial for each of them, which provokes it and then does what it says.
"""

import ast
import re
from collections.abc import Iterator
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
"""What advice is told by: words that say what to do, or what has to hold."""

OPEN = ("mend", "hint", "also", "rule")
"""Names of values that are advice which is written elsewhere."""


@dataclass(frozen=True)
class Message:
    """A message in the source. text: as it is written, {} where a value is put in."""

    path: str
    line: int
    text: str

    @property
    def pattern(self) -> re.Pattern:
        """Matches what people see of it."""
        parts = [re.escape(" ".join(part.split())) for part in self.text.split("{}")]
        return re.compile(r".*?".join(part.replace(r"\ ", r"\s+") for part in parts), re.DOTALL)


def messages() -> list[Message]:
    """Returns every message that gives advice, in the order of the files."""
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in _files()}
    errors = _errors(sources.values())
    found = {}
    for path, tree in sources.items():
        for node, is_open in _told(tree, errors):
            text = _template(node)
            if ADVICE.search(text) or is_open:
                found[path, node.lineno, text] = Message(
                    str(path.relative_to(ROOT)), node.lineno, text
                )
    return [found[key] for key in sorted(found, key=lambda key: key[:2])]


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (
            path for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)
        )


def _errors(trees: Iterator[ast.Module]) -> set[str]:
    """Returns the names of the errors that people see: UserError, and classes of it."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {"UserError"}
    return names | {
        node.name for node in classes if names & {ast.unparse(base) for base in node.bases}
    }


def _told(tree: ast.Module, errors: set[str]) -> Iterator[tuple[ast.expr, bool]]:
    """Yields the texts of errors and of lines that are said, and whether a sentence from elsewhere
    is put into each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rpartition(".")[2]
            # Row.error of data.jsonl makes a UserError of what it is told.
            if _is_text(node.args[0]) and (name in errors or name in ("say", "error")):
                yield node.args[0], name in errors and _is_open(node.args[0])
        if (
            isinstance(node, ast.FunctionDef)
            and node.returns
            and ast.unparse(node.returns) == "str | None"
        ):
            for inner in ast.walk(node):  # a note, which the caller says
                if isinstance(inner, ast.JoinedStr) and ADVICE.search(_template(inner)):
                    yield inner, False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_open(text: ast.expr) -> bool:
    values = [
        ast.unparse(node.value) for node in ast.walk(text) if isinstance(node, ast.FormattedValue)
    ]
    return any(name in value.lower() for value in values for name in OPEN)


def _template(node: ast.expr) -> str:
    """Returns a string literal with {} where a value is put in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


if __name__ == "__main__":
    for message in messages():
        print(f"{message.path}:{message.line}: {message.text}")
