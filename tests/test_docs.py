"""The documentation speaks of the code as it is: names, rooms, settings and metrics."""

import ast
import re
from pathlib import Path

import pytest

from jaxgrpo import losses
from jaxgrpo.config import Config, overrides
from jaxgrpo.config.sft_schema import any_sft_config
from jaxgrpo.data.arithmetic import Arithmetic
from tests.documents import BY_NAME, DOCUMENTS, README, ROOT

PACKAGE = ROOT / "jaxgrpo"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
ARCHITECTURE = BY_NAME["docs/architecture.md"]

Definition = ast.FunctionDef | ast.ClassDef


def definition(tree: ast.Module | Definition, name: str) -> Definition | None:
    """Returns the class, function or method of a dotted name."""
    first, _, rest = name.partition(".")
    for node in tree.body:
        if isinstance(node, Definition) and node.name == first:
            return definition(node, rest) if rest else node
    return None


def rows(document, columns: int) -> list[list[str]]:
    """Returns the cells of all tables with so many columns, without their heads."""
    tables = re.findall(r"(?:^\|.*\n)+", document.text, re.MULTILINE)
    cells = []
    for table in tables:
        for line in table.splitlines()[2:]:
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if len(row) == columns:
                cells.append(row)
    return cells


# 1. The way of a prompt.

STOPS = [row for row in rows(ARCHITECTURE, 4) if row[0].isdecimal()]

CALLED_AS = {
    "SamplingSession.__iter__": "SamplingSession",
    "ProblemStream.__next__": "ProblemStream",
    "Updater.__call__": "Updater",
    "Scorer.__call__": "scorer",
    "accuracy": "reward",
}
"""Stops that are called by another name than their own."""

ACROSS_A_BORDER = {"_Supervisor._serve", "_answer_jobs"}
"""Stops that a thread or a process of their own reaches."""


def stop_definition(row: list[str]) -> tuple[Path, str]:
    """Returns the file and the name of a stop."""
    link = re.search(r"\]\((\S+)\)", row[1])
    assert link, row
    return (ROOT / "docs" / link[1]).resolve(), row[2].strip("`")


def test_the_stops_are_numbered():
    assert [int(row[0]) for row in STOPS] == list(range(1, len(STOPS) + 1))


@pytest.mark.parametrize("row", STOPS, ids=lambda row: f"{row[0]} {row[2]}")
def test_every_stop_is_there_and_says_its_file(row):
    path, name = stop_definition(row)
    assert f"[{path.relative_to(PACKAGE).as_posix()}]" in row[1]
    assert definition(TREES[path], name) is not None


@pytest.mark.parametrize("row", STOPS[1:], ids=lambda row: f"{row[0]} {row[2]}")
def test_an_earlier_stop_calls_it(row):
    _, name = stop_definition(row)
    called = CALLED_AS.get(name, name.split(".")[-1])
    callers = []
    for other in STOPS:
        other_path, other_name = stop_definition(other)
        node = definition(TREES[other_path], other_name)
        calls = {
            child.id if isinstance(child, ast.Name) else child.attr
            for child in ast.walk(node)
            if isinstance(child, ast.Name | ast.Attribute)
        }
        if int(other[0]) < int(row[0]) and called in calls:
            callers.append(other_name)
    assert bool(callers) != (name in ACROSS_A_BORDER), (
        f"earlier stops that call {called}: {callers}"
    )


# 2. The rooms.


def room_of(module: str) -> str:
    """Returns the folder, or the file, of a module of the package."""
    return module.split(".")[1] if "." in module else module


def imports_of(path: Path) -> set[str]:
    """Returns the rooms that a module imports from."""
    modules = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxgrpo":
            modules |= {f"jaxgrpo.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {room_of(module) for module in modules if module.startswith("jaxgrpo.")}


def test_rooms_import_what_the_table_of_rooms_says():
    table = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2]))
        for row in rows(ARCHITECTURE, 3)
    }
    imported: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imported.setdefault(room_of(module), set()).update(imports_of(path))
    folders = {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()
    }
    assert folders <= set(table)
    for room, named in table.items():
        assert imported[room] - {room, "errors"} <= named, room


# 3. Everything public has a docstring, which is what the API reference shows.


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> list[str]:
    """Returns the public classes, functions and methods within a node that have no docstring."""
    names = []
    for child in node.body:
        if not isinstance(child, Definition) or child.name.startswith("_"):
            continue
        if not ast.get_docstring(child):
            names.append(prefix + child.name)
        if isinstance(child, ast.ClassDef):
            names += undocumented(child, f"{prefix}{child.name}.")
    return names


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_everything_public_has_a_docstring(path):
    assert ast.get_docstring(TREES[path]), "the module has none"
    assert undocumented(TREES[path]) == []


# 4. Names of settings, metrics and objectives.

SETTINGS = overrides.fields(Config(data=Arithmetic(), rewards={}))
SETTINGS |= overrides.fields(any_sft_config())
GROUPS = {name.split(".")[0] for name in SETTINGS if "." in name} - {
    "data",
    "objective",
}

SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)

METRIC_STAGES = (
    "completion",
    "data",
    "filter",
    "language",
    "memory",
    "policy",
    "reward",
    "rollout",
    "time",
    "update",
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_settings_that_it_names_are_there(document):
    for span in document.spans():
        name = span.removeprefix("--config.").partition("=")[0]
        if re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", name) and name.split(".")[0] in GROUPS:
            assert name in SETTINGS or definition_named(name), name


def definition_named(name: str) -> bool:
    """Returns whether a dotted name is that of a module or of something in it."""
    module, _, inner = name.partition(".")
    return any(
        path.stem == module and definition(tree, inner) is not None
        for path, tree in TREES.items()
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_metrics_that_it_names_are_there(document):
    for span in document.spans():
        stage, _, rest = span.partition("/")
        if stage in METRIC_STAGES and re.fullmatch(r"[a-z_/]+", rest):
            # language/ko/target_word_ratio is made of language/target_word_ratio.
            name = f"{stage}/{rest.split('/')[-1]}"
            assert f'"{name}"' in SOURCE, span


def test_the_table_of_objectives_has_all_of_them():
    page = BY_NAME["docs/losses.md"]
    table = [row[0].strip("`") for row in rows(page, 5)]
    wrappers = [row[0].strip("`") for row in rows(page, 3)]
    without = {"GroupRelative", "Objective", "Supervised"}
    public = {
        name for name in losses.__all__ if isinstance(getattr(losses, name), type)
    }
    objectives = {
        name for name in public if hasattr(getattr(losses, name), "token_loss")
    }
    assert set(table + wrappers) == objectives - without
    assert len(table + wrappers) == len(objectives - without)
    for name in objectives - without:
        wraps = "objective" in getattr(losses, name).__annotations__
        assert (name in wrappers) == wraps, name


def test_the_readme_is_short():
    assert len(README.text.splitlines()) <= 150


def test_every_page_is_in_the_site():
    site = (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")
    for document in DOCUMENTS[1:]:
        assert f": {document.path.name}\n" in site


# 5. The changelog.


def test_modules_that_moved_are_where_the_changelog_says():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    folders = {module.removesuffix(".__init__") for module in modules}
    moves = re.findall(r"^\| `[^|]+\| (`[^|]+) \|$", changelog, re.MULTILINE)
    assert len(moves) > 15
    for now in moves:
        for name in re.findall(r"`(jaxgrpo\.[\w.]+)`", now):
            module, _, inner = name.rpartition(".")
            is_definition = module in modules and definition_named(
                f"{module.split('.')[-1]}.{inner}"
            )
            assert name in modules | folders or is_definition, name
