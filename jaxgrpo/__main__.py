"""The command `jaxgrpo PROGRAM ...`, also `python -m jaxgrpo PROGRAM ...`.

    jaxgrpo train --config quickstart --config.steps=3

A program is imported when it is run, for that takes seconds; listing them imports nothing heavy.
"""

import difflib
import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from jaxgrpo.errors import UserError


class Program(NamedTuple):
    """A program of the command line.

    module: where its main(arguments) is
    about: what it does, for the list of programs
    """

    module: str
    about: str


PROGRAMS = {
    "train": Program(
        "jaxgrpo.train", "train a model as a config says, or go on with a run"
    ),
    "sft": Program(
        "jaxgrpo.sft.program", "fine-tune a model on prompts with worked solutions"
    ),
    "evaluate": Program(
        "jaxgrpo.evaluate", "measure a run's newest checkpoint on held-out problems"
    ),
    "sample": Program(
        "jaxgrpo.sample", "print what a model or a run answers to a prompt"
    ),
    "export": Program(
        "jaxgrpo.export", "write a run's checkpoint as a Hugging Face folder"
    ),
    "plan": Program(
        "jaxgrpo.plan.command", "say whether a run fits its chips, without having them"
    ),
}


def main() -> None:
    """Runs the program that the command line names, or lists the programs."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-h"):
        print(usage())
        return
    # Not at the top: it imports jax.
    from jaxgrpo.config.command_line import run_main

    run_main(run_program)


def usage() -> str:
    """Returns how to call the command, and a line about each program."""
    lines = [f"  {name:10}{program.about}" for name, program in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: jaxgrpo PROGRAM ...",
            "",
            *lines,
            "",
            "`jaxgrpo PROGRAM --help` lists what a program takes.",
        ]
    )


def run_program(arguments: list[str]) -> None:
    """Runs a program.

    arguments: its name, and then its own arguments

    Raises UserError if there is no such program, or what it imports is not installed.
    """
    name, *rest = arguments
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"choose one of {', '.join(PROGRAMS)}"
        )
        raise UserError(f"jaxgrpo {name}: there is no such program; {hint}")
    _import_main(name)(rest)


def _import_main(name: str) -> Callable[[list[str]], object]:
    """Returns the main function of a program."""
    try:
        module = importlib.import_module(PROGRAMS[name].module)
    except ModuleNotFoundError as error:
        # The base installation is for the losses alone. A module of ours that is missing is a bug.
        missing = str(error.name)
        if missing.split(".")[0] == "jaxgrpo":
            raise
        raise UserError(
            f"jaxgrpo {name} needs {missing}, which is not installed: pip install 'jaxgrpo[train]'"
        ) from error
    program_main: Callable[[list[str]], object] = module.main
    return program_main


if __name__ == "__main__":
    main()
