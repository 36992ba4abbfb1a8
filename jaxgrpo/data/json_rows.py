"""Reads JSON Lines: one object a line. A file may also be one JSON list of objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jaxgrpo.data.rows import Number, Row, json_kind
from jaxgrpo.errors import UserError


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the objects of a UTF-8 file, in order; blank lines are skipped.

    Raises UserError at a line that is not UTF-8, not JSON or not an object, and OSError.
    """
    # As bytes: as text, lines are also split at characters that JSON allows in a string (U+2028).
    with path.open("rb") as file:
        # From 1, and blank lines count, so that errors name the line that an editor shows.
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _make_row(path, number, _parse(f"{path} line {number}", line))


def read_list(path: Path) -> Iterator[Row]:
    """Yields the objects of a file that is one JSON list; of another file its lines' objects.

    Raises UserError as `read_rows`.
    """
    text = path.read_bytes()
    if not text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from read_rows(path)
        return
    values = _parse(str(path), text)
    assert isinstance(values, list)
    for number, value in enumerate(values, start=1):
        yield _make_row(path, number, value, unit="row")


def read_object(path: Path) -> Iterator[Row]:
    """Yields the one object of a file; raises UserError as `read_rows`."""
    yield _make_row(path, 1, _parse(str(path), path.read_bytes()))


_ESCAPE = re.compile(
    r"\\(?:u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(?P<half>d[89a-f][0-9a-f]{2}))|.)",
    re.IGNORECASE,
)
"""An escape of a JSON text: a surrogate pair, half of one, or another."""


def _parse(where: str, text: bytes) -> object:
    """Returns the value of a JSON text; fractions keep their digits.

    A byte order mark, as some editors put first, is left out. Half a surrogate pair, which neither
    tokenizers nor UTF-8 files take, becomes U+FFFD.

    where: what an error names

    Raises UserError if the text is not UTF-8 or not JSON.
    """
    try:
        # In the JSON text and not in its values, so that names and nested values are covered.
        return json.loads(
            _ESCAPE.sub(_replace_half_pair, text.decode("utf-8-sig")),
            parse_float=Number,
            parse_int=_parse_whole_number,
            parse_constant=_refuse_constant,
            object_pairs_hook=_make_object,
        )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        reason = f"{line}column {error.colno}: {error.msg}"
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


def _make_row(path: Path, number: int, value: object, unit: str = "line") -> Row:
    """Returns the row of a value; raises UserError if it is not an object."""
    if not isinstance(value, dict):
        raise UserError(
            f"{path} {unit} {number} is {json_kind(value)}, not an object; write "
            '{"question": ..., "answer": ...}'
        )
    return Row(path, number, value, unit)


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
