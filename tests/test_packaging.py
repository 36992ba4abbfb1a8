"""The package that people install: its command, its files, and the dependencies it declares."""

import ast
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxgrpo import __main__ as command
from jaxgrpo.config.command_line import run_main
from tests.tiny_runs import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
SOURCES = sorted((ROOT / "jaxgrpo").rglob("*.py"))

BASE_MODULES = ("jaxgrpo", "jaxgrpo.losses", "jaxgrpo.types", "jaxgrpo.device.logprobs")
"""Modules for which the base dependencies are enough."""

OTHER_EXTRAS = {
    "fsspec": "gcs",
    "libtpu": "tpu",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
"""Imports that neither the base dependencies nor [train] have, and the extra that has them."""

INDIRECT = {"array-record", "jinja2", "protobuf", "sentencepiece"}
"""Distributions of [train] that nothing in jaxgrpo/ imports; pyproject.toml says who needs them."""


def normalized(name: str) -> str:
    """Returns the name of a distribution as all its spellings have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    """Returns the distributions that requirements such as "jax>=0.10" name."""
    return {
        normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements
    }


@functools.cache
def distributions() -> dict[str, set[str]]:
    """Returns the installed distributions that each top-level module comes from."""
    found = importlib.metadata.packages_distributions()
    return {module: {normalized(name) for name in found[module]} for module in found}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields the top-level modules that are imported; not for type checkers alone."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        for alias in tree.names:
            yield alias.name.partition(".")[0]
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute here"
        yield str(tree.module).partition(".")[0]
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def third_party(path: Path) -> set[str]:
    """Returns the modules that a file imports and that must be installed for it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return set(imports(tree)) - sys.stdlib_module_names - {"jaxgrpo"}


def extra(name: str) -> set[str]:
    """Returns the distributions of an extra, with those of extras of ours that it names."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        own = re.fullmatch(r"jaxgrpo\[(.*)\]", requirement)
        if own:
            found |= set().union(*map(extra, own[1].split(",")))
        else:
            found |= names([requirement])
    return found


BASE = names(PROJECT["dependencies"])
TRAIN = extra("train")


# --- dependencies ---


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_declared(path):
    for module in third_party(path) - set(OTHER_EXTRAS):
        assert distributions()[module] & (BASE | TRAIN), f"{module} is in neither list"


def test_what_tests_import_is_declared():
    declared = BASE | extra("test")
    paths = [*(ROOT / "tests").glob("*.py"), *(ROOT / "tests" / "rewards").glob("*.py")]
    modules = set().union(*map(third_party, paths)) - {"tests", "tools"}
    # Others are files beside the tests.
    installed = modules & set(distributions())
    assert [
        module for module in installed if not distributions()[module] & declared
    ] == []


def test_what_is_declared_is_imported():
    modules = set().union(*map(third_party, SOURCES))
    imported = set().union(*(distributions().get(module, set()) for module in modules))
    assert (BASE | TRAIN) - imported == INDIRECT
    assert set(OTHER_EXTRAS) <= modules
    assert set(OTHER_EXTRAS.values()) <= set(PROJECT["optional-dependencies"])


def base_closure() -> set[str]:
    """Returns the base dependencies, and all that they themselves require."""
    found: set[str] = set()
    waiting = sorted(BASE)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        required = importlib.metadata.requires(name) or []
        waiting += names([one for one in required if "extra ==" not in one])
    return found


BLOCK = """
import importlib, sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is no base dependency", name=name)

blocked, modules = map(set, __import__("json").loads(sys.argv[1]))
sys.meta_path.insert(0, Blocked)
"""


def run_blocked(code: str, blocked: set[str]) -> str:
    """Returns what code prints in a new process in which some modules cannot be imported."""
    lists = json.dumps([sorted(blocked), BASE_MODULES])
    result = subprocess.run(
        [sys.executable, "-c", BLOCK + code, lists],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_base_dependencies_are_enough_for_the_losses():
    closure = base_closure()
    blocked = {
        module for module, owners in distributions().items() if not owners & closure
    }
    assert {"flax", "optax", "transformers"} <= blocked - {"jaxgrpo"}
    code = "for module in modules: importlib.import_module(module)\nprint('imported')"
    assert run_blocked(code, blocked - {"jaxgrpo"}) == "imported\n"


# --- files ---


def test_every_package_is_listed():
    """setuptools takes the packages of the list alone."""
    folders = [path.parent for path in SOURCES if path.name == "__init__.py"]
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(packages | {"jaxgrpo.configs"}) == SETUPTOOLS["packages"]
    assert (
        ROOT / SETUPTOOLS["package-dir"]["jaxgrpo.configs"] / "__init__.py"
    ).is_file()
    # A Python file in a folder that is no package would be left out.
    assert {path.parent for path in SOURCES} == set(folders)


def test_every_file_that_is_not_python_is_in_the_wheel():
    root = ROOT / "jaxgrpo"
    packed = {
        path
        for pattern in SETUPTOOLS["package-data"]["jaxgrpo"]
        for path in root.glob(pattern)
    }
    files = {
        path
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - set(SOURCES) == packed
    assert root / "py.typed" in packed


# --- the command ---


def test_the_command_is_the_entry_point():
    module, _, function = PROJECT["scripts"]["jaxgrpo"].partition(":")
    assert module == command.__name__
    assert function == command.main.__name__


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_programs_are_listed(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["jaxgrpo", *arguments])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    for name, program in command.PROGRAMS.items():
        assert f"  {name:10}{program.about}" in lines
    assert max(map(len, lines)) <= 80


def test_listing_the_programs_imports_nothing_heavy():
    code = (
        "sys.argv = ['jaxgrpo', '--help']\n"
        "importlib.import_module('jaxgrpo.__main__').main()\n"
        "print('jax' in sys.modules)"
    )
    assert run_blocked(code, set(distributions()) - {"jaxgrpo"}).endswith("\nFalse\n")


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_every_program_is_there(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", ["jaxgrpo", name, "--help"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian", "--config", "quickstart"], "did you mean train?"),
        (["eval"], "did you mean evaluate?"),
        (["--config"], "choose one of train, sft, evaluate, sample, export, plan"),
    ],
)
def test_an_unknown_program_is_one_line(monkeypatch, capsys, arguments, hint):
    monkeypatch.setattr(sys, "argv", ["jaxgrpo", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    expected = f"error: jaxgrpo {arguments[0]}: there is no such program; {hint}\n"
    assert capsys.readouterr().err == expected


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(
        command.PROGRAMS, "train", command.Program("not_installed.at_all", "")
    )
    monkeypatch.setattr(sys, "argv", ["jaxgrpo", "train"])
    with pytest.raises(SystemExit) as exit_:
        run_main(command.run_program)
    assert exit_.value.code == 2
    assert "needs not_installed, which" in capsys.readouterr().err


def test_a_missing_module_of_the_package_is_a_bug(monkeypatch):
    monkeypatch.setitem(
        command.PROGRAMS, "train", command.Program("jaxgrpo.nothing", "")
    )
    with pytest.raises(ModuleNotFoundError):
        command.run_program(["train"])
