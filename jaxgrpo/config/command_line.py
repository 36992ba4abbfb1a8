"""Programs' command lines: `--config FILE --config.name=value ... --help`; the file; a UserError as one line."""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxgrpo.config import overrides as settings
from jaxgrpo.distributed import processes
from jaxgrpo.errors import UserError


def split(argv: list[str]) -> tuple[str | None, list[str], bool]:
    """The config file, the flags in the notation `--config.name=value`, and whether help is wanted; UserError."""
    path, overrides, wants_help = None, [], False
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            wants_help = True
        elif re.match(r"--config(=|$)", argument):
            if path is not None:
                raise UserError(f"{argument}: --config is given twice; {path} came first")
            path = argument.partition("=")[2] or _next(argument, arguments, "FILE")
        elif argument.startswith("--config."):
            overrides.append(
                argument if "=" in argument else f"{argument}={_next(argument, arguments, 'VALUE')}"
            )
        else:
            name = argument.lstrip("-")
            mend = f"; did you mean --config.{name}?" if argument.startswith("--") and name else ""
            raise UserError(
                f"{argument}: the flags are --config FILE, --config.name=value and --help{mend}"
            )
    return path, overrides, wants_help


def _next(argument: str, arguments: Iterator[str], what: str) -> str:
    """The next argument as this one's value."""
    value = next(arguments, None)
    if value is None or value.startswith("--"):
        raise UserError(f"{argument}: nothing comes after it; write {argument.rstrip('=')}={what}")
    return value


def help_text(program: str, config: Any = None) -> str:
    """How to call a program, and every setting of a config with its value and its line of documentation."""
    usage = f"usage: python -m {program} --config FILE [--config.name=value ...]"
    if config is None:
        return f"{usage}\n\nWith --config FILE, --help lists that file's settings."
    known = {
        f"--config.{name}={settings.shown(field.value)}": field.doc
        for name, field in settings.fields(config).items()
    }
    width = min(max(map(len, known)), 48)
    return "\n".join(
        [usage, "", *(f"  {flag:{width}}  {doc}".rstrip() for flag, doc in known.items())]
    )


def call(path: str, name: str) -> Any:
    """What a function of a Python file returns. The file is the user's own code and runs; its errors are UserErrors."""
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            file.name, [other.name for other in file.parent.glob("*.py")], n=1
        )
        mend = (
            f"did you mean {file.parent / near[0]}?"
            if near
            else f"give the path of a file with {name}()"
        )
        raise UserError(f"--config {path}: there is no such file; {mend}")
    with _blaming(file):
        function = getattr(_execute(file), name, None)
    if not callable(function):
        raise UserError(f"{path}: it has no {name}(); define it at the top level of the file")
    with _blaming(file):
        return function()


def _execute(file: Path) -> ModuleType:
    """The file as a module. Not a plain import: that may take a compiled copy of what the file said a second ago."""
    path = file.resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise UserError(f"{file}: a config is a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Verifier workers import reward functions by name: those of this file, and of files beside it.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    if getattr(sys.modules.get(path.stem, module), "__file__", None) == module.__file__:
        sys.modules[path.stem] = module
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
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path
        ]
        if isinstance(error, SyntaxError) and error.filename == path:
            lines.append(error.lineno)
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        what = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: {type(error).__name__}: {what}; mend the file") from error


def run_main(main: Callable[[list[str]], object]) -> None:
    """Calls main(arguments). A UserError becomes one line on stderr and exit code 2; Ctrl-C exits with 130. What ends one of
    several processes ends them all."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        processes.exit_process(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        processes.exit_process(130)
    except Exception:
        if processes.is_alone():
            raise
        traceback.print_exc()
        processes.exit_process(1)
