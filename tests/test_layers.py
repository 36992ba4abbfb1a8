"""Who may import whom. The table is the architecture; a new module has to be given its place in it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxgrpo"


@dataclass(frozen=True)
class Layer:
    """modules: which belong to it, a package with everything in it; layers: what they may import of jaxgrpo, besides
    errors; libraries: what they may import besides Python's own (None: anything that `OWNERS` allows)."""

    modules: tuple[str, ...]
    layers: tuple[str, ...]
    libraries: frozenset[str] | None
    why: str


ARRAYS = frozenset({"jax", "numpy", "jaxtyping"})
ALL = ("arrays", "host", "model", "boundary", "stages", "programs")
LAYERS = {
    "errors": Layer(("", "errors"), (), frozenset(), "everything imports it"),
    "arrays": Layer(
        ("types", "losses"), ("arrays",), ARRAYS, "losses are used in other people's loops"
    ),
    "host": Layer(
        (
            "problems",
            "language_codes",
            "difficulty",
            "rewards",
            "data",
            "prompts",
            "chat",
            "stops",
            "tokenizer",
        ),
        ("host",),
        None,
        "a verifier's worker process must not open the accelerator",
    ),
    "model": Layer(
        ("models", "logprobs", "sampler", "learner", "mesh", "optimizer", "processes"),
        ("arrays", "model"),
        ARRAYS | {"flax", "optax", "safetensors"},
        "pure functions of arrays",
    ),
    "boundary": Layer(("steps",), ("arrays", "model"), ARRAYS, "it compiles what lies under it"),
    "stages": Layer(
        ("engine", "rollout", "checkpoint", "metrics"),
        ("arrays", "host", "stages"),
        None,
        "compiled programs arrive as arguments",
    ),
    "programs": Layer(
        ("settings", "config", "command_line", "run", "train", "sft", "evaluate"),
        ALL,
        None,
        "they put it all together",
    ),
}
ALSO = {"stages": ("mesh",)}
"""Single modules that a layer may import besides its layers."""

OWNERS = {
    "flax": ("models.transformer",),
    "optax": ("optimizer",),
    "orbax": ("checkpoint",),
    "torch": (),
    "tensorflow": (),
    "tools": (),
    "tests": (),
}
"""Libraries that only these modules import, so that each could be replaced in one place."""

NEVER_ON_HOST = frozenset({"jax", "jaxlib", "flax", "optax", "orbax"})


def name_of(path: Path) -> str:
    """The module's name within jaxgrpo: "" for the package itself, "losses.grpo"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = {name_of(path) for path in PACKAGE.rglob("__init__.py")}


def is_under(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def layer_of(module: str) -> str:
    """The layer's name, "none" for a module that has no place yet."""
    for name, layer in LAYERS.items():
        if any(module == owned or (owned and is_under(module, owned)) for owned in layer.modules):
            return name
    return "none"


def imported(module: str, source: str, known: set[str], is_package: bool = False) -> Iterator[str]:
    """The full names of the modules that the source imports, at the top or inside functions.

    `from package import name` is the import of package.name where `known` has such a module.
    """
    here = ["jaxgrpo", *module.split(".")] if module else ["jaxgrpo"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = here[: len(here) - node.level + is_package]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full.removeprefix("jaxgrpo.") in known else base


def violations(module: str, source: str, known: set[str], is_package: bool = False) -> list[str]:
    """What the module's own imports break, a sentence each."""
    file = f"jaxgrpo/{module.replace('.', '/')}"
    name = layer_of(module)
    if name == "none":
        return [f"{file} is in no layer: give it its place in LAYERS"]
    layer = LAYERS[name]
    found = []
    for full in imported(module, source, known, is_package):
        library = full.split(".")[0]
        if library == "jaxgrpo":
            inner = full.removeprefix("jaxgrpo").removeprefix(".")
            allowed = ("errors", *layer.layers)
            if layer_of(inner) not in allowed and inner not in ALSO.get(name, ()):
                found.append(
                    f"{file} ({name}) imports {full} ({layer_of(inner)}); it may import {', '.join(allowed)}: {layer.why}"
                )
        elif library in sys.stdlib_module_names:
            continue
        elif library in OWNERS and module not in OWNERS[library]:
            found.append(
                f"{file} imports {library}, which only {OWNERS[library] or 'nothing in jaxgrpo'} may"
            )
        elif name == "host" and library in NEVER_ON_HOST:
            found.append(f"{file} (host) imports {library}: {layer.why}")
        elif layer.libraries is not None and library not in layer.libraries:
            found.append(
                f"{file} ({name}) imports {library}, which is not among {sorted(layer.libraries)}: {layer.why}"
            )
    return found


def reached(module: str, sources: dict[str, str]) -> set[str]:
    """Everything that importing the module may import, directly or through other modules of jaxgrpo, by full name."""
    todo, seen = [module], {module}
    libraries: set[str] = set()
    while todo:
        current = todo.pop()
        for full in imported(current, sources[current], set(sources), current in PACKAGES):
            if full.split(".")[0] != "jaxgrpo":
                libraries.add(full.split(".")[0])
                continue
            parts = full.split(".")[1:]
            # Importing a.b runs a's __init__ first.
            for inner in (".".join(parts[:depth]) for depth in range(len(parts) + 1)):
                if inner in sources and inner not in seen:
                    seen.add(inner)
                    todo.append(inner)
    return libraries | {f"jaxgrpo.{name}" for name in seen}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_layers(module):
    broken = violations(module, SOURCES[module], set(SOURCES), module in PACKAGES)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", [m for m in SOURCES if layer_of(m) == "host"])
def test_host_modules_never_reach_jax(module):
    assert not reached(module, SOURCES) & NEVER_ON_HOST


@pytest.mark.parametrize("module", [m for m in SOURCES if layer_of(m) == "arrays"])
def test_array_modules_reach_jax_and_numpy_alone(module):
    libraries = {name for name in reached(module, SOURCES) if not is_under(name, "jaxgrpo")}
    assert libraries <= ARRAYS | sys.stdlib_module_names


def test_only_steps_compiles():
    """Every jax.jit is in steps.py: what is compiled, sharded and donated is read in one place."""
    for module, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            compiles = isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit")
            compiles |= isinstance(node, ast.ImportFrom) and any(
                alias.name in ("jit", "pjit") for alias in node.names
            )
            assert not compiles or module == "steps", (
                f"jaxgrpo/{module}.py line {node.lineno} compiles; steps.py does"
            )


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        (
            "losses.mine",
            "import flax",
            "losses/mine imports flax, which only ('models.transformer',) may",
        ),
        ("losses.mine", "import scipy", "which is not among ['jax', 'jaxtyping', 'numpy']"),
        ("losses.mine", "from jaxgrpo.problems import Problem", "imports jaxgrpo.problems (host)"),
        (
            "losses.mine",
            "from ..rewards import math",
            "imports jaxgrpo.rewards.maths.verifier (host)",
        ),
        (
            "rewards.mine",
            "def f():\n    import jax.numpy as jnp",
            "(host) imports jax: a verifier's worker",
        ),
        ("data.mine", "from jaxgrpo import types", "imports jaxgrpo.types (arrays)"),
        ("models.mine", "from flax import linen", "only ('models.transformer',) may"),
        (
            "sampler",
            "from jaxgrpo.programs import compile_steps",
            "imports jaxgrpo.programs (boundary)",
        ),
        ("steps", "import optax", "only ('optimizer',) may"),
        ("rollout", "from jaxgrpo import sampler", "imports jaxgrpo.device.sampler (model)"),
        ("rollout", "from jaxgrpo.config import Config", "imports jaxgrpo.config (programs)"),
        ("train", "from tools import plan", "imports tools, which only nothing in jaxgrpo may"),
        ("errors", "import numpy", "which is not among []"),
    ],
)
def test_the_checker_finds(module, source, says):
    known = {*SOURCES, "types", "steps", "sampler", "config", "rewards.math"}
    broken = violations(module, source, known)
    assert len(broken) == 1
    assert says in broken[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "losses.mine",
            "import jax\nfrom jaxtyping import Float\nfrom . import grpo\nfrom jaxgrpo.errors import UserError",
        ),
        ("rewards.mine", "import sympy, numpy\nfrom jaxgrpo.problems import Problem"),
        ("models.transformer", "from flax import linen"),
        (
            "rollout",
            "import jax\nfrom jaxgrpo import mesh, types\nfrom jaxgrpo.rollout.difficulty import Filter",
        ),
        ("train", "from jaxgrpo import config, losses, rollout, steps"),
    ],
)
def test_the_checker_lets_pass(module, source):
    assert (
        violations(module, source, {*SOURCES, "types", "mesh", "steps", "config", "rollout"}) == []
    )


def test_the_checker_wants_a_place_for_every_module():
    assert violations("utils", "", set()) == [
        "jaxgrpo/utils is in no layer: give it its place in LAYERS"
    ]


def test_the_checker_follows_imports_through_modules():
    sources = {
        "": "",
        "rewards": "import jax",
        "rewards.math": "",
        "problems": "import jaxgrpo.rewards.maths.verifier",
    }
    assert "jax" in reached("problems", sources)


def loaded_after(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter has loaded after the statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded_after("import jaxgrpo") & {"jax", "numpy", "flax"}


def test_losses_need_the_base_dependencies_only():
    loaded = loaded_after("from jaxgrpo import losses, types")
    assert not loaded & {
        "flax",
        "optax",
        "orbax",
        "grain",
        "transformers",
        "tensorflow_datasets",
        "ml_collections",
    }


def test_host_modules_leave_jax_unimported():
    host = [f"jaxgrpo.{module}" for module in SOURCES if layer_of(module) == "host"]
    loaded = loaded_after(f"import {', '.join(host)}")
    assert set(host) <= loaded
    assert not loaded & NEVER_ON_HOST
