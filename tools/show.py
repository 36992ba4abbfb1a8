"""Prints the completions of a step: every group that was written, with rewards and advantages.

    python -m tools.show OUT --step 7

With --config.save_rollouts=all a run writes every completion of every group, else a few. Words that
are not in the language of the problem are underlined. There is no colour where the output is piped.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxgrpo.config import flat
from jaxgrpo.config.command_line import run_main
from jaxgrpo.errors import UserError
from jaxgrpo.files import run_folder
from tools.report.rollouts import (
    SavedGroup,
    extraction_methods,
    mark_foreign,
    read_answer,
    read_groups,
)
from tools.report.runs import read_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

WIDTH = 80
"""Columns that are written, at most."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
"""Characters that would command the terminal; their pictures are shown in their place."""

MAX_LISTED = 12
"""Steps that a message lists, at most."""


def groups_of(out: Path, step: int | None) -> list[SavedGroup]:
    """Returns the groups that were written of a step; None: of the last step that has any.

    Raises UserError if there are none.
    """
    found: list[SavedGroup] = []
    steps: dict[int, None] = {}
    for group in read_groups(out):
        steps[group.step] = None
        # Steps are in their order: what is newer takes the place of what was found.
        if step is None and found and found[-1].step != group.step:
            found = []
        if step is None or group.step == step:
            found.append(group)
    if found:
        return found
    if not steps:
        raise UserError(f"{out}/rollouts.jsonl is empty: no step has been written yet")
    *earlier, last = map(str, steps)
    listed = [*earlier[:MAX_LISTED], *(["..."] if len(earlier) > MAX_LISTED else [])]
    raise UserError(
        f"no completions of step {step} are in {out}: choose one of "
        f"{', '.join([*listed, last])}; --config.show_rollouts_every=1 writes some of every step"
    )


def show(
    groups: Sequence[SavedGroup], methods: Sequence[str]
) -> Iterator["RenderableType"]:
    """Yields the lines of a step's groups.

    methods: where the verifier takes answers from
    """
    from rich.padding import Padding
    from rich.text import Text

    kept = sum(group.problem["kept"] for group in groups)
    count = len(groups)
    yield Text(
        f"step {groups[0].step}: {count} group{'s' * (count != 1)} written, {kept} kept",
        "bold",
    )
    for group in groups:
        problem = group.problem
        is_kept = problem["kept"]
        level = f"  level {problem['level']}" if problem["level"] else ""
        yield Text()
        yield Text.assemble(
            (f"{problem['id']}", "bold"),
            f"  {problem['language']}{level}  solved ",
            f"{problem['solved']}/{problem['judged']}  ",
            ("kept", "green") if is_kept else ("not kept", "dim"),
        )
        for message in group.context:
            content = _with_marks(message["content"], problem["language"], "cyan")
            yield Text.assemble((f"{message['role']}: ", "dim"), content)
        yield _with_marks(problem["prompt"], problem["language"], "cyan")
        yield Text.assemble("answer ", (problem["answer"], "bold"))
        for record in group.completions:
            yield Text()
            yield _facts(record, methods)
            verdicts = Text(_verdicts(record["rewards"]), "dim")
            yield Padding(verdicts, (0, 0, 0, 3))
            yield _with_marks(record["completion"], problem["language"], "")


def _facts(record: Mapping, methods: Sequence[str]) -> "Text":
    """Returns the line above a completion: rewards, advantage, length, what was read."""
    from rich.text import Text

    text = Text()
    text.append(f"#{record.get('sample', 0) + 1}", "bold")
    if "reward" in record:
        text.append("  reward ")
        text.append(*_signed(record["reward"], ""))
    if record.get("advantage") is not None:
        text.append("  advantage ")
        text.append(*_signed(record["advantage"], "+"))
    if "tokens" in record:
        cut_off = "" if record["finished"] else ", cut off"
        text.append(f"  {record['tokens']} tokens{cut_off}")
    if methods:
        text.append(f"  read {read_answer(record['completion'], methods) or '-'}")
    return text


def _signed(value: float | None, sign: str) -> tuple[str, str]:
    """Returns a number and its colour."""
    if value is None:
        return "-", "yellow"
    return f"{value:{sign}.2f}", "green" if value > 0 else "red"


def _verdicts(rewards: Mapping[str, float | None]) -> str:
    """Returns each reward and its value; of a measure such as language/ratio the last name."""
    values = {
        name.rpartition("/")[2]: "-" if value is None else f"{value:.2f}"
        for name, value in rewards.items()
    }
    return "  ".join(f"{name} {value}" for name, value in values.items())


def _with_marks(text: str, language: str, style: str) -> "Text":
    """Returns a text in which foreign words are underlined."""
    from rich.text import Text

    styled = Text(style=style)
    for place, piece in enumerate(mark_foreign(text, language)):
        piece = CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), piece)
        styled.append(piece, "underline red" if place % 2 else "")
    return styled


def make_console() -> "Console":
    """Returns a console of 80 columns, or fewer in a narrower terminal.

    Raises UserError where its library is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise UserError(
            "the colours need rich: pip install 'jaxgrpo[report]'"
        ) from error

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    # A pipe has no width of its own.
    width = min(WIDTH, console.width) if sys.stdout.isatty() else WIDTH
    console.width = width
    return console


def main(argv: list[str]) -> None:
    """Prints the groups of a step."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.show",
        description="Print a step's completions, with their rewards and advantages.",
    )
    parser.add_argument("out", metavar="OUT", help="a run's --config.out")
    parser.add_argument(
        "--step", type=int, help="a step that was written (the last one)"
    )
    arguments = parser.parse_args(argv)
    console = make_console()
    out = run_folder(arguments.out)
    groups = groups_of(out, arguments.step)
    settings = flat(read_json(out / "config.json"))
    for line in show(groups, extraction_methods(settings)):
        console.print(line)


if __name__ == "__main__":
    run_main(main)
