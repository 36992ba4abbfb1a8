"""Reads a JSON Lines file, a `Row` a line, and names file and line in every error."""

import difflib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from jaxgrpo.errors import UserError
from jaxgrpo.problems import OTHER_ANSWERS
from jaxgrpo.text.language_codes import LANGUAGE_CODES, language_code


@dataclass(frozen=True)
class Row:
    """One line's object, and where it stood, so that an error can point at it.

    line: from 1
    values: the object's fields
    verbatim: the same fields, with each fraction as text in the digits of the file, which a float
      would not keep ("0.1000"); {} where there are no fractions
    """

    path: Path
    line: int
    values: dict[str, object]
    verbatim: dict[str, object] = field(default_factory=dict)

    def error(self, complaint: str) -> UserError:
        """Returns the UserError that says what is wrong with this line."""
        return UserError(f"{self.path} line {self.line}: {complaint}")

    def value(self, name: str, setting: str) -> object:
        """Returns the field `name`.

        Raises UserError if there is none, naming the fields that are there and the setting that
        chooses another one.
        """
        if name in self.values:
            return self.values[name]
        there = ", ".join(map(json.dumps, self.values)) or "no fields"
        raise self.error(
            f'there is no field "{name}", only {there}; set {self._field_hint(name, setting)}'
        )

    def text(self, name: str, setting: str) -> str:
        """Returns the field `name` as text; a number keeps the digits of the file.

        Raises UserError if it is blank, or neither text nor a number.
        """
        value = self.value(name, setting)
        if isinstance(value, float):
            digits = self.verbatim[name]
            if math.isinf(value):
                raise self.error(
                    f'"{name}" is {digits}, too large for a number; write it as text, in quotes'
                )
            value = digits
        # bool is a subclass of int
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(
                f'"{name}" is {_json_kind(value)}, not text or a number; mend it or set '
                f"--config.data.{setting}"
            )
        text = str(value)
        if not text.strip():
            raise self.error(
                f'"{name}" is blank; fill it in, drop the line or set --config.data.{setting}'
            )
        return text

    def level(self, name: str, setting: str) -> int:
        """Returns the field `name` as a whole number from 0 up: 3, "3" or "Level 3".

        Raises UserError if it is none.
        """
        text = self.text(name, setting)
        # Letters may stand before the digits, but a minus sign must not be lost with them.
        match = re.fullmatch(r"\D*?(\d+)\s*", text, flags=re.ASCII)
        if match is None or "-" in text:
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a level like 3 or "Level 3"; mend it or set '
                f"--config.data.{setting}"
            )
        return int(match.group(1))

    def language(self, name: str) -> str:
        """Returns the field `name` as the code of a language that can be told from words.

        Raises UserError if it names no such language.
        """
        text = self.text(name, "language_field")
        code = language_code(text)
        if code is None:
            codes = " ".join(sorted(LANGUAGE_CODES))
            raise self.error(
                f'"{name}" is {json.dumps(text)}, not a language that can be told: {codes}; '
                "mend it, or set --config.data.language_field= and --config.data.language"
            )
        return code

    def meta(self, used: set[str]) -> dict[str, object]:
        """Returns the fields that are not used.

        Further gold answers keep the digits of the file, as the answer does.
        """
        meta = {name: value for name, value in self.values.items() if name not in used}
        if OTHER_ANSWERS in meta and self.verbatim:
            meta[OTHER_ANSWERS] = self.verbatim[OTHER_ANSWERS]
        return meta

    def _field_hint(self, name: str, setting: str) -> str:
        """Returns what to set so that another field, or another file, is read."""
        if setting == "path":
            # A source whose fields have fixed names: only another file can have them.
            return "--config.data.path to a file that has it"
        similar = difflib.get_close_matches(name, self.values, n=1)
        if similar:
            return f"--config.data.{setting}={similar[0]}"
        return f"--config.data.{setting} to the field that is meant"


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yields the objects of a UTF-8 JSON Lines file, in order; blank lines are skipped.

    Raises UserError if the file is missing, is a folder or has no rows, and at a line that is not
    UTF-8, not JSON or not an object.
    """
    path = Path(path).expanduser()
    is_empty = True
    # From 1, and blank lines count, so that errors name the line that an editor shows.
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            is_empty = False
            yield _parse_row(path, number, line)
    if is_empty:
        raise UserError(f"{path} has no rows; it should hold one JSON object a line")


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to be read as bytes; raises UserError if it cannot be."""
    try:
        with path.open("rb") as file:
            yield file
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


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the file's lines as bytes; raises UserError if it cannot be read.

    Not as text: that also splits lines at characters that JSON allows in a string (U+2028).
    """
    with open_file(path) as file:
        yield from file


_ESCAPE = re.compile(
    r"\\(?:u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(?P<half>d[89a-f][0-9a-f]{2}))|.)",
    re.IGNORECASE,
)
"""An escape of a JSON text: a surrogate pair, half of one, or another."""


def _parse_row(path: Path, number: int, line: bytes) -> Row:
    """Returns the object of one line.

    A byte order mark, as some editors put first, is left out. Half a surrogate pair, which neither
    tokenizers nor UTF-8 files take, becomes U+FFFD.

    Raises UserError if the line is not UTF-8, not JSON or not an object.
    """
    where = f"{path} line {number}"
    try:
        # In the JSON text and not in its values, so that names and nested values are covered.
        text = _ESCAPE.sub(_replace_half_pair, line.decode("utf-8-sig"))
        values = json.loads(
            text,
            parse_int=_parse_whole_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_make_object,
        )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        reason = f"column {error.colno}: {error.msg}"
        raise UserError(
            f"{where} is not JSON ({reason}); one object a line is wanted"
        ) from None
    except RecursionError as error:
        raise UserError(
            f"{where} is not JSON ({error}); one object a line is wanted"
        ) from None
    except ValueError as error:
        # Raised by the three functions above that json.loads calls.
        raise UserError(f"{where}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{where} is {_json_kind(values)}, not an object; write "
            '{"question": ..., "answer": ...}'
        )
    # Few rows hold fractions, and only these are parsed a second time. Further answers are a list
    # that may hold some.
    has_fractions = OTHER_ANSWERS in values or any(
        isinstance(value, float) for value in values.values()
    )
    verbatim = json.loads(text, parse_float=str) if has_fractions else {}
    return Row(path, number, values, verbatim)


def _replace_half_pair(escape: re.Match[str]) -> str:
    """Returns an escape as it is, or that of U+FFFD if it is half a surrogate pair."""
    return r"\ufffd" if escape["half"] else escape[0]


def _parse_whole_number(text: str) -> int:
    """Returns the number; raises ValueError if Python does not convert so many digits."""
    try:
        return int(text)
    except ValueError:
        # sys.get_int_max_str_digits(): some thousand digits
        reason = f"it has a number of {len(text):,} digits; write it as text, in quotes"
        raise ValueError(reason) from None


def _make_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the object of these fields; raises ValueError if two have the same name.

    JSON does not say which of two values of one field is meant.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"the field {json.dumps(repeated)} stands in it twice; drop one"
        )
    return fields


def _refuse_constant(name: str) -> NoReturn:
    """Raises ValueError: Python reads NaN and Infinity, which are not JSON and no answer."""
    raise ValueError(
        f"{name} is not a JSON number; mend it or write it as text, in quotes"
    )


def _json_kind(value: object) -> str:
    """Returns the name of a JSON value's kind, as errors call it."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
