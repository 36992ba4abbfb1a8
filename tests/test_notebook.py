"""The notebook is valid, and its code is Python that uses only what the package has.

CI runs it: tools/run_notebook.py.
"""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PATH = ROOT / "tools" / "colab.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"}
SOURCE = "\n".join(CELLS.values())


def names_from_the_package() -> set[tuple[str, str]]:
    """Returns (module, name) of everything that the code takes from jaxgrpo.

    By import, or as an attribute of a module that is imported.
    """
    tree = ast.parse(SOURCE)
    names = set()
    modules = {}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "jaxgrpo"
        ):
            for alias in node.names:
                names.add((node.module, alias.name))
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module:
                names.add((module, node.attr))
    return names


def test_it_is_a_notebook_without_errors_in_it():
    nbformat.validate(NOTEBOOK)
    outputs = [output for cell in NOTEBOOK.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert PATH.stat().st_size < 300_000


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_python(name):
    compile(CELLS[name], name, "exec")


def test_it_asks_only_for_what_is_there_and_public():
    names = names_from_the_package()
    assert {
        ("jaxgrpo.train", "train"),
        ("jaxgrpo.summary", "tables"),
        ("jaxgrpo.config", "load"),
    } <= names
    for module, name in names:
        assert not name.startswith("_")
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_its_configs_are_there():
    texts = [cell.source for cell in NOTEBOOK.cells]
    paths = {path for text in texts for path in re.findall(r"configs/\w+\.py", text)}
    assert len(paths) == 2
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_ci_can_shorten_it(monkeypatch):
    names: dict = {}
    exec(CELLS["parameters"], names)
    assert (names["STEPS"], names["PROBLEMS"]) == (10, 288)
    for name, value in (("STEPS", "2"), ("PROBLEMS", "16"), ("OUT", "elsewhere")):
        monkeypatch.setenv(f"JAXGRPO_{name}", value)
    exec(CELLS["parameters"], names)
    assert (names["STEPS"], names["PROBLEMS"], names["OUT"]) == (2, 16, "elsewhere")
