"""Command lines of the programs: `--config FILE --config.name=value ... --help`.

`split` reads one, help_text.py answers --help, and `run_main` turns a UserError into one line on
stderr and exit code 2.
"""

import re
import sys
import traceback
from collections.abc import Callable, Iterator

from jaxgrpo.config import overrides
from jaxgrpo.config.schema import any_config
from jaxgrpo.config.sft_schema import AnyConfig
from jaxgrpo.config.suggestions import flag_near
from jaxgrpo.distributed import processes
from jaxgrpo.errors import UserError
from jaxgrpo.files import with_addresses


def split(
    argv: list[str], defaults: AnyConfig | None = None
) -> tuple[str | None, list[str], bool]:
    """Returns the config file, the flags `--config.name=value`, and whether help is wanted.

    The file is None where --config is not given. A flag's value may also be the next argument.

    defaults: whose settings are suggested; None: those of reinforcement learning

    Raises UserError for anything else.
    """
    path: str | None = None
    flags: list[str] = []
    wants_help = False
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            wants_help = True
        elif re.match(r"--config(=|$)", argument):
            # Two files would be two configs; which one is meant?
            if path is not None:
                raise UserError(
                    f"{argument}: --config is given twice; {path} came first"
                )
            path = argument.partition("=")[2] or _next_value(
                argument, arguments, "FILE"
            )
        elif argument.startswith("--config."):
            if "=" not in argument:
                argument = f"{argument}={_next_value(argument, arguments, 'VALUE')}"
            flags.append(argument)
        else:
            # Most likely --steps=3, where --config.steps=3 is meant; or another library's --lr.
            flag = ""
            if argument.startswith("--"):
                known = overrides.fields(defaults or any_config())
                flag = flag_near(argument.lstrip("-"), known)
            hint = f"; did you mean {flag}?" if flag else ""
            raise UserError(
                f"{argument}: the flags are --config FILE, --config.name=value and --help{hint}"
            )
    return path, flags, wants_help


def _next_value(flag: str, arguments: Iterator[str], kind: str) -> str:
    """Returns the next argument, as the value of a flag.

    kind: FILE or VALUE, for the message

    Raises UserError if there is none, or if it is a flag itself.
    """
    value = next(arguments, None)
    if value is None or value.startswith("--"):
        raise UserError(
            f"{flag}: nothing comes after it; write {flag.rstrip('=')}={kind}"
        )
    return value


def run_main(main: Callable[[list[str]], object]) -> None:
    """Calls main(arguments), and exits with the code that its error stands for.

    A UserError becomes one line on stderr and exit code 2; Ctrl-C exits with 130. Where several
    processes train together, an error of one ends them all.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        # One line, whatever the message's own line breaks are.
        print("error:", " ".join(with_addresses(str(error)).split()), file=sys.stderr)
        processes.exit_process(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        processes.exit_process(130)
    except Exception:
        # Alone, Python's own way: the traceback, and exit code 1.
        if processes.is_alone():
            raise
        traceback.print_exc()
        processes.exit_process(1)
