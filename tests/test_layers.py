"""Laws of the imports: who may import whom. The table is the architecture.

A new module has to be given its place in it.
"""

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
    """Modules that may import the same.

    modules: those that belong to it, a folder with everything in it
    layers: layers whose modules they may import, besides their own
    libraries: libraries that they may import besides Python's own; None: any that OWNERS allows
    why: said where the law is broken
    """

    modules: tuple[str, ...]
    layers: tuple[str, ...]
    libraries: frozenset[str] | None
    why: str


ARRAYS = frozenset({"jax", "numpy", "jaxtyping"})
LAYERS = {
    "base": Layer(
        ("", "buckets", "errors", "files", "hub"),
        (),
        frozenset({"fsspec"}),
        "everything imports it",
    ),
    "arrays": Layer(
        ("types", "losses"), ("base",), ARRAYS, "losses are used in others' loops"
    ),
    "host": Layer(
        ("problems", "text", "data", "rewards", "scores", "rollout.difficulty"),
        ("base",),
        None,
        "a verifier's worker process must not open the accelerator",
    ),
    "device": Layer(
        ("models", "device", "distributed"),
        ("base", "arrays"),
        ARRAYS | {"flax", "optax"},
        "pure functions of arrays",
    ),
    "boundary": Layer(
        ("programs",),
        ("base", "arrays", "device"),
        ARRAYS,
        "it compiles what lies under it",
    ),
    "stages": Layer(
        ("rollout", "checkpoint", "metrics", "trackers", "console", "plots"),
        ("base", "arrays", "host"),
        None,
        "compiled programs arrive as arguments",
    ),
    "programs": Layer(
        (
            "config",
            "build",
            "program_specs",
            "train",
            "sft",
            "evaluate",
            "policies",
            "sample",
            "export",
            "summary",
            "overview",
            "language_model",
            "rollout_records",
            "run_state",
            "selection",
            "signals",
            "updates",
            "performance",
            "plan",
            "__main__",
        ),
        ("base", "arrays", "host", "device", "boundary", "stages"),
        None,
        "they put it all together",
    ),
}
ALSO = {"stages": ("distributed",)}
"""Folders that a layer may import besides its layers: stages move arrays between host and mesh."""

OWNERS = {
    "flax": ("models.layers", "models.transformer"),
    "optax": ("device.optimizer",),
    "etils": ("checkpoint",),
    "fsspec": ("buckets",),
    "orbax": ("checkpoint",),
    "torch": (),
    "tensorflow": (),
    "tools": (),
    "tests": (),
}
"""Libraries that only these modules import, so that each could be replaced in one place."""

NEVER_ON_HOST = frozenset({"jax", "jaxlib", "flax", "optax", "orbax"})


def name_of(path: Path) -> str:
    """Returns the module's name within jaxgrpo: "" for the package itself, "losses.grpo"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = {name_of(path) for path in PACKAGE.rglob("__init__.py")}


def is_under(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def layer_of(module: str) -> str:
    """Returns the layer's name, "none" for a module that has no place yet.

    The longest entry of the table that names the module or a folder above it decides.
    """
    entries = [
        (entry, name) for name, layer in LAYERS.items() for entry in layer.modules
    ]
    fitting = [
        (len(entry), name)
        for entry, name in entries
        if module == entry or (entry and is_under(module, entry))
    ]
    return max(fitting)[1] if fitting else "none"


def imported(
    module: str, source: str, known: set[str], is_package: bool = False
) -> Iterator[str]:
    """Yields the full names of the modules that a source imports, at the top or inside functions.

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


def violations(
    module: str, source: str, known: set[str], is_package: bool = False
) -> list[str]:
    """Returns what the module's own imports break, a sentence each."""
    file = f"jaxgrpo/{module.replace('.', '/')}"
    name = layer_of(module)
    if name == "none":
        return [f"{file} is in no layer: give it its place in LAYERS"]
    layer = LAYERS[name]
    broken = []
    for full in imported(module, source, known, is_package):
        library = full.split(".")[0]
        if library == "jaxgrpo":
            inner = full.removeprefix("jaxgrpo").removeprefix(".")
            allowed = (name, *layer.layers)
            is_also = any(is_under(inner, folder) for folder in ALSO.get(name, ()))
            if layer_of(inner) not in allowed and not is_also:
                broken.append(
                    f"{file} ({name}) imports {full} ({layer_of(inner)}); it may import "
                    f"{', '.join(allowed)}: {layer.why}"
                )
        elif library in sys.stdlib_module_names:
            continue
        elif library in OWNERS and module not in OWNERS[library]:
            owners = OWNERS[library] or "nothing in jaxgrpo"
            broken.append(f"{file} imports {library}, which only {owners} may")
        elif name == "host" and library in NEVER_ON_HOST:
            broken.append(f"{file} (host) imports {library}: {layer.why}")
        elif layer.libraries is not None and library not in layer.libraries:
            broken.append(
                f"{file} ({name}) imports {library}, which is not among "
                f"{sorted(layer.libraries)}: {layer.why}"
            )
    return broken


def inner_imports(module: str, sources: dict[str, str]) -> set[str]:
    """Returns the modules of jaxgrpo that a module imports itself."""
    names = imported(module, sources[module], set(sources), module in PACKAGES)
    inner = {
        full.removeprefix("jaxgrpo").removeprefix(".")
        for full in names
        if full.split(".")[0] == "jaxgrpo"
    }
    return inner & sources.keys()


def reached(module: str, sources: dict[str, str]) -> set[str]:
    """Returns everything that importing a module may import, by full name.

    Directly or through other modules of jaxgrpo; importing a.b runs a's __init__ first.
    """
    to_visit = [module]
    seen = {module}
    libraries: set[str] = set()
    while to_visit:
        current = to_visit.pop()
        for full in imported(
            current, sources[current], set(sources), current in PACKAGES
        ):
            if full.split(".")[0] != "jaxgrpo":
                libraries.add(full.split(".")[0])
                continue
            parts = full.split(".")[1:]
            for inner in (".".join(parts[:depth]) for depth in range(len(parts) + 1)):
                if inner in sources and inner not in seen:
                    seen.add(inner)
                    to_visit.append(inner)
    return libraries | {f"jaxgrpo.{name}" for name in seen}


def module_arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Returns what each module imports; a folder's __init__ is a module, too."""
    return {module: inner_imports(module, sources) - {module} for module in sources}


def room_arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Returns what each folder of jaxgrpo, and each module beside them, imports of the others."""
    arrows: dict[str, set[str]] = {}
    for module, others in module_arrows(sources).items():
        room = module.split(".")[0]
        rooms = {other.split(".")[0] for other in others}
        arrows.setdefault(room, set()).update(rooms - {room})
    return arrows


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Returns the circles among arrows, each as "a -> b -> a"."""
    found = []
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
            return
        if name in finished:
            return
        for other in sorted(arrows[name]):
            visit(other, [*path, name])
        finished.add(name)

    for name in arrows:
        visit(name, [])
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_layers(module):
    broken = violations(module, SOURCES[module], set(SOURCES), module in PACKAGES)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("arrows", [module_arrows, room_arrows])
def test_no_imports_go_in_a_circle(arrows):
    """Those inside functions and under TYPE_CHECKING are among them."""
    assert not circles(arrows(SOURCES))


@pytest.mark.parametrize("module", [m for m in SOURCES if layer_of(m) == "host"])
def test_host_modules_never_reach_jax(module):
    assert not reached(module, SOURCES) & NEVER_ON_HOST


@pytest.mark.parametrize("module", [m for m in SOURCES if layer_of(m) == "arrays"])
def test_array_modules_reach_jax_and_numpy_alone(module):
    libraries = {
        name for name in reached(module, SOURCES) if not is_under(name, "jaxgrpo")
    }
    assert libraries <= ARRAYS | sys.stdlib_module_names


def test_only_programs_compiles():
    """Every jax.jit is in programs.py: compiling, sharding and donating are read in one place."""
    for module, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            compiles = isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit")
            compiles |= isinstance(node, ast.ImportFrom) and any(
                alias.name in ("jit", "pjit") for alias in node.names
            )
            where = f"jaxgrpo/{module}.py line {getattr(node, 'lineno', 0)}"
            assert not compiles or module == "programs", (
                f"{where} compiles; programs.py does"
            )


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        (
            "losses.mine",
            "import flax",
            "losses/mine imports flax, which only ('models.layers', ",
        ),
        (
            "losses.mine",
            "import scipy",
            "which is not among ['jax', 'jaxtyping', 'numpy']",
        ),
        (
            "losses.mine",
            "from jaxgrpo.problems import Problem",
            "imports jaxgrpo.problems (host)",
        ),
        (
            "losses.mine",
            "from ..rewards import maths",
            "imports jaxgrpo.rewards.maths (host)",
        ),
        (
            "rewards.mine",
            "def f():\n    import jax.numpy as jnp",
            "imports jax: a verifier's",
        ),
        ("data.mine", "from jaxgrpo import types", "imports jaxgrpo.types (arrays)"),
        (
            "rollout.difficulty",
            "from jaxgrpo import types",
            "(host) imports jaxgrpo.types",
        ),
        (
            "models.mine",
            "from flax import linen",
            "only ('models.layers', 'models.transformer')",
        ),
        (
            "device.sampler",
            "from jaxgrpo.programs import Program",
            "jaxgrpo.programs (boundary)",
        ),
        ("programs", "import optax", "only ('device.optimizer',) may"),
        (
            "rollout.engine",
            "from jaxgrpo.device import sampler",
            "jaxgrpo.device.sampler (device)",
        ),
        (
            "rollout.collect",
            "from jaxgrpo.config import Config",
            "jaxgrpo.config (programs)",
        ),
        (
            "train",
            "from tools import plan",
            "imports tools, which only nothing in jaxgrpo may",
        ),
        ("errors", "import numpy", "which is not among ['fsspec']"),
    ],
)
def test_the_checker_finds(module, source, says):
    known = {*SOURCES, "losses.mine", "rewards.maths"}
    broken = violations(module, source, known)
    assert len(broken) == 1
    assert says in broken[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "losses.mine",
            "import jax\nfrom jaxtyping import Float\nfrom . import grpo\n"
            "from jaxgrpo.errors import UserError",
        ),
        ("rewards.mine", "import sympy, numpy\nfrom jaxgrpo.problems import Problem"),
        ("models.transformer", "from flax import linen"),
        (
            "rollout.collect",
            "import jax\nfrom jaxgrpo.distributed import mesh\n"
            "from jaxgrpo.rollout.difficulty import History",
        ),
        ("train", "from jaxgrpo import build, losses, programs, rollout"),
    ],
)
def test_the_checker_lets_pass(module, source):
    assert violations(module, source, set(SOURCES)) == []


def test_the_checker_wants_a_place_for_every_module():
    assert violations("utils", "", set()) == [
        "jaxgrpo/utils is in no layer: give it its place in LAYERS"
    ]


def test_the_checker_follows_imports_through_modules():
    sources = {
        "": "",
        "rewards": "import jax",
        "rewards.maths": "",
        "problems": "import jaxgrpo.rewards.maths",
    }
    assert "jax" in reached("problems", sources)


def test_the_checker_finds_circles():
    sources = {
        "a": "from jaxgrpo import b",
        "b": "def f():\n    import jaxgrpo.c",
        "c": "from jaxgrpo.a import x",
        "d": "import jaxgrpo.a",
    }
    assert circles(module_arrows(sources)) == ["a -> b -> c -> a"]


def test_the_checker_finds_circles_of_folders():
    sources = {
        "a.one": "import jaxgrpo.b.one",
        "a.two": "",
        "b.one": "from jaxgrpo.a.two import x",
    }
    assert circles(module_arrows(sources)) == []
    assert circles(room_arrows(sources)) == ["a -> b -> a"]


def loaded_after(statement: str) -> set[str]:
    """Returns the names of all modules that a fresh interpreter has loaded after the statement."""
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
    heavy = {"flax", "optax", "orbax", "grain", "transformers", "tensorflow_datasets"}
    assert not loaded & heavy


def test_host_modules_leave_jax_unimported():
    host = [f"jaxgrpo.{module}" for module in SOURCES if layer_of(module) == "host"]
    # rollout.difficulty is alone among stages, in a folder whose __init__ imports nothing.
    loaded = loaded_after(f"import {', '.join(host)}")
    assert set(host) <= loaded
    assert not loaded & NEVER_ON_HOST
