"""Says whether a run fits its chips and what they allow; compiled ahead of time, without a TPU.

    python -m jaxgrpo.plan --config FILE [--config.name=value ...] [--topology v5e:4x4] [--json]
                           [--arrays]

Without --topology: for the devices here. Exit code 0: it fits; 1: it does not, and what was tried
to make it fit is shown; 2: bad input. Of times there are two: a bound, a chip at its peak with
everything overlapped, which cannot be beaten; and a forecast. For the devices here it comes from a
call of each program, with --topology from what others have published of such chips.
"""

import argparse
import sys
from typing import NoReturn

from jaxgrpo import config as run_config
from jaxgrpo.config.command_line import split
from jaxgrpo.errors import UserError
from jaxgrpo.plan import times
from jaxgrpo.plan.compiled import Compiler
from jaxgrpo.plan.forecast import Forecast, measured_forecast, published_forecast
from jaxgrpo.plan.planner import (
    ALL_PROGRAMS,
    Plan,
    make_plan,
    make_target,
    try_remedies,
)
from jaxgrpo.plan.report import attempts_text, plan_json, plan_text
from jaxgrpo.plan.trial import time_calls


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _make_parser() -> _Parser:
    """Returns the parser of the planner's own flags."""
    about = str(__doc__).splitlines()[0]
    parser = _Parser(
        prog="python -m jaxgrpo.plan", description=about, allow_abbrev=False
    )
    parser.add_argument(
        "--topology",
        help="chips that need not be here: v5e:4x4, v5p:2x2x1, ...; by default those here",
    )
    parser.add_argument(
        "--memory", type=float, help="GiB of a device, in place of what its kind has"
    )
    parser.add_argument(
        "--mean-new",
        type=int,
        help="tokens of a completion that are expected; by default half of the most",
    )
    parser.add_argument(
        "--kept",
        type=float,
        help="share of the groups that the filter keeps; by default 0.5, with rule off 1",
    )
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="compile nothing: the arrays alone, in seconds",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    return parser


def parse(argv: list[str]) -> tuple[argparse.Namespace, str, list[str]]:
    """Returns the planner's own flags, the path of the config file, and its overrides.

    Raises UserError for bad flags.
    """
    options, rest = _make_parser().parse_known_args(argv)
    path, changes, _ = split(rest)
    if path is None:
        raise UserError(
            "no config file given; run python -m jaxgrpo.plan --config FILE, for example "
            "configs/quickstart.py"
        )
    if options.memory is not None and options.memory <= 0:
        raise UserError(f"--memory is {options.memory}: it must be above 0")
    return options, path, changes


def main(argv: list[str]) -> None:
    """Plans as the command line says; exits with 1 if the run does not fit."""
    options, path, changes = parse(argv)
    config = run_config.load(path, changes)
    assumptions = times.assume(config, options.mean_new, options.kept)
    compiler = Compiler(log_progress)
    names = () if options.arrays else ALL_PROGRAMS
    target = make_target(config, options.topology, options.memory)
    plan = make_plan(config, target, compiler, names)
    forecast = _forecast(plan, assumptions)
    # People see the plan before remedies are tried, for that can take minutes; JSON is one object.
    if not options.json:
        print(plan_text(plan, assumptions, forecast), flush=True)
    attempts = [] if plan.fits else try_remedies(plan, compiler, names)
    if options.json:
        print(plan_json(plan, attempts, assumptions, forecast))
    elif attempts:
        print(f"\n{attempts_text(attempts)}")
    if not plan.fits:
        sys.exit(1)


def _forecast(plan: Plan, assumptions: times.Assumptions) -> Forecast | None:
    """Returns the forecast of a run that fits, measured where its devices are here."""
    if not plan.compiled or not plan.fits:
        return None
    if plan.target.is_here:
        log_progress("timing a call of each program ...")
        return measured_forecast(plan, time_calls(plan), assumptions)
    if plan.target.chip is None:
        return None
    return published_forecast(plan, plan.target.chip, assumptions)


def log_progress(text: str) -> None:
    """Prints a line about a compile beside the output."""
    print(text, file=sys.stderr, flush=True)
