"""Config files: finding one, running it, and the config that a command line asks for.

A config file is Python with a function `get_config()` that returns a `Config`. The command line
changes values (`--config.sampling.temperature=0.8`); files change code.
"""

import difflib
import importlib.resources
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxgrpo
from jaxgrpo.config.checks import shown_class, validate, validate_sft
from jaxgrpo.config.command_line import split
from jaxgrpo.config.help_text import help_of_all, help_of_config
from jaxgrpo.config.objective_names import override
from jaxgrpo.config.schema import Config, any_config
from jaxgrpo.config.sft_schema import SFTConfig, any_sft_config
from jaxgrpo.errors import UserError

EXAMPLES: dict[type, str] = {Config: "quickstart", SFTConfig: "sft"}
"""A shipped config of each kind."""

DEFAULTS: dict[type, Callable[[], Any]] = {
    Config: any_config,
    SFTConfig: any_sft_config,
}
"""A config of defaults of each kind."""

SHIPPED = "jaxgrpo.configs"
"""The package that holds the shipped configs where jaxgrpo is installed from a wheel."""


def parse_command_line(
    argv: list[str], program: str = "jaxgrpo.train", also_sft: bool = False
) -> Config:
    """Returns the config that `--config FILE --config.name=value ...` asks for.

    --help prints the settings and exits with 0.

    also_sft: whether a file of supervised training will do, too: the config is that of a run with
        its model and its evaluations

    Raises UserError for anything that `load` refuses, an unknown flag, and no --config.
    """
    kinds = (Config, SFTConfig) if also_sft else (Config,)
    config = _parse(argv, program, kinds)
    if isinstance(config, SFTConfig):
        config = config.to_config()
    validate(config)
    return config


def parse_sft_command_line(argv: list[str]) -> SFTConfig:
    """Returns the config of supervised training that a command line asks for.

    It prints and raises as `parse_command_line` does.
    """
    config = _parse(argv, "jaxgrpo.sft", (SFTConfig,))
    validate_sft(config)
    return config


def load(path: str, flags: Sequence[str] = ()) -> Config:
    """Returns the config of a file, with flags `--config.name=value` applied, validated.

    path: of a file, or the name of a shipped config, such as "quickstart"

    Raises UserError for whatever is wrong with the file, a flag or a setting.
    """
    config: Config = override(_read(path, (Config,)), flags)
    validate(config)
    return config


def load_sft(path: str, flags: Sequence[str] = ()) -> SFTConfig:
    """Returns the config of supervised training of a file, as `load` returns others."""
    config: SFTConfig = override(_read(path, (SFTConfig,)), flags)
    validate_sft(config)
    return config


def _parse(argv: list[str], program: str, kinds: Sequence[type]) -> Any:
    """Returns the config of a command line, not validated, or prints help and exits."""
    defaults = DEFAULTS[kinds[0]]()
    path, flags, wants_help = split(argv, defaults)
    if path is None and wants_help:
        print(help_of_all(program, shipped_configs(), defaults))
        sys.exit(0)
    if path is None:
        raise UserError(
            f"no config file given; run python -m {program} --config FILE, "
            f"for example configs/{EXAMPLES[kinds[0]]}.py"
        )
    config = override(_read(path, kinds), flags)
    if wants_help:
        # Not validated, so that --help can be read where a setting is refused.
        print(help_of_config(program, config))
        sys.exit(0)
    return config


def _read(path: str, kinds: Sequence[type]) -> Any:
    """Returns the config of a file as it is, not validated.

    Raises UserError if it is of none of these kinds.
    """
    file = find_file(path)
    config = call_get_config(file)
    if isinstance(config, tuple(kinds)):
        return config
    programs = {Config: "jaxgrpo.train", SFTConfig: "jaxgrpo.sft"}
    program = programs.get(type(config))
    hint = f"; run python -m {program} with it" if program else ""
    raise UserError(
        f"{file}: get_config() returned a {type(config).__name__}; "
        f"it must return a {shown_class(kinds[0])}{hint}"
    )


# 1. Finding the file.


def find_file(path: str) -> Path:
    """Returns the config file with a path, or the shipped config with a name.

    `quickstart`, `quickstart.py` and `configs/quickstart.py` are names of a shipped config, in a
    folder where no file has that path.

    Raises UserError if there is neither.
    """
    file = Path(path)
    if file.is_file():
        return file
    shipped: dict[str, Path] = {}
    # Of any other path, such as ./quickstart.py, a file is meant and nothing else.
    if match := re.fullmatch(r"(?:configs/)?([\w-]+)(?:\.py)?", path):
        shipped = shipped_configs()
        if match[1] in shipped:
            return shipped[match[1]]
    # Nothing has that name: a mistake in a path is more likely than one in a shipped name.
    beside = [other.name for other in file.parent.glob("*.py")]
    near = difflib.get_close_matches(file.name, beside, n=1)
    near_shipped = difflib.get_close_matches(file.stem, shipped, n=1)
    if near:
        hint = f"did you mean {file.parent / near[0]}?"
    elif near_shipped:
        hint = f"did you mean {near_shipped[0]}?"
    else:
        hint = "give the path of a file with get_config()"
    raise UserError(f"--config {path}: there is no such file; {hint}")


def shipped_configs() -> dict[str, Path]:
    """Returns the config files that come with the package, by name."""
    # Not in an archive: worker processes import the rewards of a config file by its folder.
    files = [entry for entry in _shipped_entries() if isinstance(entry, Path)]
    named = {file.stem: file for file in files if file.suffix == ".py"}
    return {name: file for name, file in named.items() if not name.startswith("_")}


def _shipped_entries() -> Iterable[Traversable]:
    """Returns what lies in the folder of the shipped configs."""
    # A checkout, editable install or not, has the folder beside the package. It comes first: an
    # editable install of another checkout offers its own as the package.
    root = Path(jaxgrpo.__path__[0]).parent
    folder = root / "configs"
    # Without our pyproject.toml beside it, that folder would not be ours.
    if (root / "pyproject.toml").is_file() and folder.is_dir():
        return folder.iterdir()
    try:
        return importlib.resources.files(SHIPPED).iterdir()
    except ModuleNotFoundError:
        return ()


# 2. Running it.


def call_get_config(file: Path) -> object:
    """Returns what get_config() of a file returns.

    The file is the user's own code and runs; its errors become UserErrors.
    """
    with _blaming(file):
        function = getattr(_execute(file), "get_config", None)
    if not callable(function):
        raise UserError(
            f"{file}: it has no get_config(); define it at the top level of the file"
        )
    with _blaming(file):
        return function()


def _execute(file: Path) -> ModuleType:
    """Returns the file as a module, executed anew.

    A plain import might take a compiled copy of what the file said a second ago.
    """
    path = file.resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"{file}: a config is a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Verifier workers import reward functions by name: those of this file, and of files beside it.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # A module of that name that is another file's stays.
    if getattr(sys.modules.get(path.stem, module), "__file__", None) == module.__file__:
        sys.modules[path.stem] = module
    # Compiled from the text each time, never from a .pyc.
    exec(spec.loader.source_to_code(path.read_bytes(), path), module.__dict__)
    return module


@contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Turns an exception of the user's code into a UserError that names the line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        path = str(file.resolve())
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        # Code that cannot be parsed has no frame.
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        # An error without a message has no lines at all.
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{where}: {type(error).__name__}: {reason}; mend the file"
        ) from error
