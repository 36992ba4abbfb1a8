"""The notebook is one, its code is Python and asks of the package only what it has. CI runs it (tools/run_notebook.py)."""

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


def asked_of_the_package() -> set[tuple[str, str]]:
    """(module, name) of everything that the code takes from jaxgrpo, by import or as an attribute of a module of it."""
    asked, modules = set(), {}
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxgrpo":
            asked |= {(node.module, alias.name) for alias in node.names}
            modules |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    for node in ast.walk(ast.parse(SOURCE)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            asked.add((modules[node.value.id], node.attr))
    return asked


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
    asked = asked_of_the_package()
    assert {
        ("jaxgrpo.train", "train"),
        ("jaxgrpo.evaluate", "tables"),
        ("jaxgrpo.config", "load"),
    } <= asked
    for module, name in asked:
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
    assert (names["STEPS"], names["PROBLEMS"]) == (28, 288)
    for name, value in (("STEPS", "2"), ("PROBLEMS", "16"), ("OUT", "elsewhere")):
        monkeypatch.setenv(f"JAXGRPO_{name}", value)
    exec(CELLS["parameters"], names)
    assert (names["STEPS"], names["PROBLEMS"], names["OUT"]) == (2, 16, "elsewhere")
