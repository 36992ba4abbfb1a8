"""Problems from a JSON Lines file: one object a line, whatever its fields are called.

An example row, and the config that reads it:

    {"problem": "What is 6 * 7?", "answer": 42, "level": "Level 1"}
    Jsonl(path="mine.jsonl", question="problem", level_field="level")
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxgrpo.errors import UserError
from jaxgrpo.problems import Problem, Problems

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line's object, and where it stood (lines count from 1), so that an error can point at it."""

    path: Path
    line: int
    values: dict[str, Any]

    def error(self, what: str) -> UserError:
        """The UserError that says `what` is wrong with this line."""
        return UserError(f"{self.path} line {self.line}: {what}")

    def value(self, name: str, setting: str) -> Any:
        """The field `name`; a UserError names the fields that are there and the setting that chooses another."""
        if name in self.values:
            return self.values[name]
        there = ", ".join(map(json.dumps, self.values)) or "no fields"
        near = difflib.get_close_matches(name, self.values, n=1)
        mend = f"--config.data.{setting}={near[0]}" if near else f"--config.data.{setting} to the field that is meant"
        if setting == "path":  # of a source whose fields have their names
            mend = "--config.data.path to a file that has it"
        raise self.error(f'there is no field "{name}", only {there}; set {mend}')

    def text(self, name: str, setting: str) -> str:
        """The field `name` as text that is not blank; numbers are written as JSON writes them."""
        value = self.value(name, setting)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(f'"{name}" is {_kind(value)}, not text or a number; mend it or set --config.data.{setting}')
        text = str(value)
        if not text.strip():
            raise self.error(f'"{name}" is blank; fill it in, drop the line or set --config.data.{setting}')
        return text

    def level(self, name: str, setting: str) -> int:
        """The field `name` as a whole number from 0 up: 3, "3" or "Level 3"."""
        text = self.text(name, setting)
        found = re.fullmatch(r"\D*?(\d+)\s*", text, flags=re.ASCII)
        if found is None or "-" in text:
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a level like 3 or "Level 3"; mend it or set --config.data.{setting}'
            )
        return int(found.group(1))


def read_rows(path: str | Path) -> Iterator[Row]:
    """The objects of a UTF-8 JSON Lines file, in order; blank lines are skipped.

    Raises UserError where the file is missing, is a folder or has no rows, and at a line that is not UTF-8, not JSON or
    not an object.
    """
    path = Path(path).expanduser()
    rows = 0
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            rows += 1
            yield Row(path, number, _object(path, number, line))
    if not rows:
        raise UserError(f"{path} has no rows; it should hold one JSON object a line")


def split_tail(items: Sequence[T], size: int, path: str | Path) -> tuple[Sequence[T], Sequence[T]]:
    """(train, heldout): all but the last `size` items, and those. UserError unless 0 <= size < len(items)."""
    if not 0 <= size < len(items):
        # With none held out there would be nothing to evaluate on.
        mend = f"set it between 1 and {len(items) - 1}, or " if len(items) > 1 else ""
        raise UserError(
            f"{path} has {len(items):,} problems, and --config.data.heldout_size={size} of them cannot be held out; "
            f"{mend}give --config.data.heldout_path"
        )
    cut = len(items) - size
    return items[:cut], items[cut:]


def read_split(
    path: str, heldout_path: str, heldout_size: int, to_problem: Callable[[Row, str], Problem], split: str
) -> Problems:
    """The problems of one split, "train" or "heldout", in file order.

    Without a `heldout_path` the two share `path`: the last `heldout_size` rows are held out. `to_problem(row, split)`
    makes a row a problem, with an id that is unique over both splits.
    """
    if not path and (split == "train" or not heldout_path):
        raise UserError("the data has no file; set --config.data.path=train.jsonl")
    if heldout_path:
        rows: Sequence[Row] = list(read_rows(path if split == "train" else heldout_path))
    else:
        train, heldout = split_tail(list(read_rows(path)), heldout_size, path)
        rows = train if split == "train" else heldout
    problems = [to_problem(row, split) for row in rows]
    _refuse_repeated_ids(rows, problems)
    return problems


@dataclass
class Jsonl:
    """A Source: problems from JSON Lines files.

    path: the training file; heldout_path: the held-out one. Without it the last `heldout_size` rows of `path` are held
    out and never trained on.
    question, answer: the fields that hold them; an answer is text or a number.
    language_field, level_field, id_field: fields of the same meaning as Problem's; "" where the file has none. Then the
    language is `language`, the level 0, and the id the file's name, the split and the line number.
    A row's other fields travel in Problem.meta.
    """

    path: str = ""
    heldout_path: str = ""
    question: str = "question"
    answer: str = "answer"
    language_field: str = ""
    level_field: str = ""
    id_field: str = ""
    language: str = "en"
    heldout_size: int = 256

    def train(self) -> Problems:
        """The training problems; UserError where the file cannot be read as set."""
        return read_split(self.path, self.heldout_path, self.heldout_size, self._problem, "train")

    def heldout(self) -> Problems:
        """The held-out problems, none of them in train(); UserError where the file cannot be read as set."""
        return read_split(self.path, self.heldout_path, self.heldout_size, self._problem, "heldout")

    def _problem(self, row: Row, split: str) -> Problem:
        used = {self.question, self.answer, self.language_field, self.level_field, self.id_field}
        return Problem(
            id=row.text(self.id_field, "id_field") if self.id_field else f"{row.path.stem}:{split}:{row.line}",
            prompt=row.text(self.question, "question"),
            answer=row.text(self.answer, "answer"),
            language=row.text(self.language_field, "language_field") if self.language_field else self.language,
            level=row.level(self.level_field, "level_field") if self.level_field else 0,
            meta={name: value for name, value in row.values.items() if name not in used},
        )


def _lines(path: Path) -> Iterator[bytes]:
    """The file's lines. As bytes, for text splits lines at characters that JSON allows inside a string (U+2028)."""
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check --config.data.path and --config.data.heldout_path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the JSON Lines file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check it and its permissions") from None


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The JSON object of one line. A byte order mark, which some editors put first, is not part of it."""
    where = f"{path} line {number}"
    try:
        values = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        why = f"column {error.colno}: {error.msg}"
        raise UserError(f"{where} is not JSON ({why}); one object a line is wanted") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); one object a line is wanted") from None
    if not isinstance(values, dict):
        raise UserError(f'{where} is {_kind(values)}, not an object; write {{"question": ..., "answer": ...}}')
    return values


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON and no answer."""
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    """What a JSON value is called in an error."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse_repeated_ids(rows: Sequence[Row], problems: Problems) -> None:
    """Randomness and visit counts are keyed by the id: two problems must not share one."""
    first: dict[str, int] = {}
    for row, problem in zip(rows, problems, strict=True):
        if first.setdefault(problem.id, row.line) != row.line:
            raise row.error(
                f"the id {json.dumps(problem.id)} is that of line {first[problem.id]} too; make it unique or leave "
                "--config.data.id_field empty"
            )
