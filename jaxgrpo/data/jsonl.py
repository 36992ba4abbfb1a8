"""Problems from a JSON Lines file: one object a line, whatever its fields are called.

An example row, and the config that reads it:

    {"problem": "What is 6 * 7?", "answer": 42, "level": "Level 1"}
    Jsonl(path="mine.jsonl", question="problem", level_field="level")
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxgrpo.errors import UserError
from jaxgrpo.problems import OTHER_ANSWERS, Problem, Problems
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line's object, and where it stood, so that an error can point at it.

    line: from 1
    values: the object's fields
    written: the same with fractions as texts, in the digits of the file; {} where there are none
    """

    path: Path
    line: int
    values: dict[str, Any]
    written: dict[str, Any] = field(default_factory=dict)

    def error(self, what: str) -> UserError:
        """The UserError that says `what` is wrong with this line."""
        return UserError(f"{self.path} line {self.line}: {what}")

    def value(self, name: str, setting: str) -> Any:
        """The field `name`; a UserError names the fields that are there and the setting that chooses another."""
        if name in self.values:
            return self.values[name]
        there = ", ".join(map(json.dumps, self.values)) or "no fields"
        near = difflib.get_close_matches(name, self.values, n=1)
        mend = (
            f"--config.data.{setting}={near[0]}"
            if near
            else f"--config.data.{setting} to the field that is meant"
        )
        if setting == "path":  # of a source whose fields have their names
            mend = "--config.data.path to a file that has it"
        raise self.error(f'there is no field "{name}", only {there}; set {mend}')

    def text(self, name: str, setting: str) -> str:
        """The field `name` as text that is not blank; a number keeps the digits of the file."""
        value = self.value(name, setting)
        if isinstance(value, float):
            if math.isinf(value):
                number = self.written[name]
                raise self.error(
                    f'"{name}" is {number}, too large for a number; write it as text, in quotes'
                )
            value = self.written[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(
                f'"{name}" is {_kind(value)}, not text or a number; mend it or set --config.data.{setting}'
            )
        text = str(value)
        if not text.strip():
            raise self.error(
                f'"{name}" is blank; fill it in, drop the line or set --config.data.{setting}'
            )
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

    def language(self, name: str) -> str:
        """The field `name` as the code of a language that can be told."""
        text = self.text(name, "language_field")
        code = language_code(text)
        if code is None:
            codes = " ".join(sorted(LANGUAGE_CODES))
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a language that can be told: {codes}; '
                "mend it, or set --config.data.language_field= and --config.data.language"
            )
        return code

    def meta(self, used: set[str]) -> dict[str, Any]:
        """The fields not used. Further gold answers keep their digits, as the answer does."""
        meta = {name: value for name, value in self.values.items() if name not in used}
        if OTHER_ANSWERS in meta and self.written:
            meta[OTHER_ANSWERS] = self.written[OTHER_ANSWERS]
        return meta


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
            yield _row(path, number, line)
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
    path: str,
    heldout_path: str,
    heldout_size: int,
    to_problem: Callable[[Row, str], Problem],
    split: str,
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
    question, answer: the fields that hold them. An answer is text or a number, whose digits stay as
    they are written; mathematics also takes one that is a box or a whole solution.
    language_field, level_field, id_field: fields of the same meaning as Problem's; "" where the file has none. Then the
    language is `language`, the level 0, and the id the file's name, the split and the line number.
    language: a code or a name, such as "pt", "pt-BR" or "Portuguese"; so in the language field.
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
        return self._split("train")

    def heldout(self) -> Problems:
        """The held-out problems, none of them in train(); UserError where the file cannot be read as set."""
        return self._split("heldout")

    def _split(self, split: str) -> Problems:
        if not self.language_field and language_code(self.language) is None:
            raise UserError(
                f"--config.data.language is {self.language!r}, not a language that can be told; "
                f"set it to one of {' '.join(sorted(LANGUAGE_CODES))}"
            )
        return read_split(self.path, self.heldout_path, self.heldout_size, self._problem, split)

    def _problem(self, row: Row, split: str) -> Problem:
        used = {self.question, self.answer, self.language_field, self.level_field, self.id_field}
        return Problem(
            id=row.text(self.id_field, "id_field")
            if self.id_field
            else f"{row.path.stem}:{split}:{row.line}",
            prompt=row.text(self.question, "question"),
            answer=row.text(self.answer, "answer"),
            language=row.language(self.language_field) if self.language_field else self.language,
            level=row.level(self.level_field, "level_field") if self.level_field else 0,
            meta=row.meta(used),
        )


def _lines(path: Path) -> Iterator[bytes]:
    """The file's lines. As bytes, for text splits lines at characters that JSON allows inside a string (U+2028)."""
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; check --config.data.path and --config.data.heldout_path"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the JSON Lines file in it") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check it and its permissions"
        ) from None


_ESCAPE = re.compile(
    r"\\(?:u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(?P<half>d[89a-f][0-9a-f]{2}))|.)",
    re.IGNORECASE,
)
"""An escape of a JSON text: a surrogate pair, half of one, or another."""


def _row(path: Path, number: int, line: bytes) -> Row:
    """Returns the object of one line. A byte order mark, as some editors put first, is left out.

    Half a surrogate pair, which neither tokenizers nor UTF-8 files take, becomes U+FFFD.
    """
    where = f"{path} line {number}"
    try:
        text = line.decode("utf-8-sig")
        text = _ESCAPE.sub(lambda escape: r"\ufffd" if escape["half"] else escape[0], text)
        values = json.loads(
            text,
            parse_int=_whole_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_repetition,
        )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        why = f"column {error.colno}: {error.msg}"
        raise UserError(f"{where} is not JSON ({why}); one object a line is wanted") from None
    except RecursionError as error:
        raise UserError(f"{where} is not JSON ({error}); one object a line is wanted") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f'{where} is {_kind(values)}, not an object; write {{"question": ..., "answer": ...}}'
        )
    has_fractions = any(isinstance(value, float) for value in values.values())
    has_fractions |= OTHER_ANSWERS in values  # which may hold some
    return Row(path, number, values, json.loads(text, parse_float=str) if has_fractions else {})


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python converts no more than some thousand digits
        why = f"it has a number of {len(text):,} digits; write it as text, in quotes"
        raise ValueError(why) from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields. JSON does not say which of two values of one field is meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {json.dumps(repeated)} stands in it twice; drop one")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON and no answer."""
    raise ValueError(f"{name} is not a JSON number; mend it or write it as text, in quotes")


def _kind(value: object) -> str:
    """What a JSON value is called in an error."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
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
