"""Reads CSV and TSV: the first line names the columns, and every value is text."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxgrpo.data.rows import Row
from jaxgrpo.errors import UserError


def read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """Yields the rows of a UTF-8 file, in order; blank lines are skipped.

    A value with a delimiter, a quote or a line break in it stands in double quotes (RFC 4180), in
    TSV, too. A row is named by the line at which it begins.

    Raises UserError at a line that is not UTF-8, has other columns than the first, or cannot be
    read, and OSError.
    """
    # newline="": the csv module itself knows which line breaks stand within quotes.
    text = io.StringIO(_decode(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for values in reader:
            row = Row(path, line, dict(zip(names, values, strict=False)))
            line = reader.line_num + 1
            if not values:
                continue
            if not names:
                _check_names(row, values)
                names = values
                continue
            if len(values) != len(names):
                raise row.error(
                    f"it has {len(values)} columns and the first line {len(names)}; put values "
                    "with a delimiter in them in double quotes"
                )
            yield row
    except csv.Error as error:
        raise UserError(
            f"{path} line {line} cannot be read ({error}); put values with quotes in them in "
            "double quotes, and write the quotes twice"
        ) from None


def read_tsv(path: Path) -> Iterator[Row]:
    """Yields the rows of a TSV file: see `read_csv`."""
    return read_csv(path, delimiter="\t")


def read_headless_tsv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a TSV file without a header and without quoting, as MGSM's.

    columns: the names of its columns

    Raises UserError at a line that is not UTF-8 or has another number of columns, and OSError.
    """
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        values = line.rstrip("\r").split("\t")
        row = Row(path, number, dict(zip(columns, values, strict=False)))
        if line.strip() and len(values) != len(columns):
            raise row.error(
                f"it has {len(values)} columns, separated by tabs; {len(columns)} are wanted: "
                f"{', '.join(columns)}"
            )
        if line.strip():
            yield row


def _decode(path: Path) -> str:
    """Returns a file's text without a byte order mark; raises UserError if it is not UTF-8."""
    text = path.read_bytes()
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        begin = text.rfind(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} line {line} is not UTF-8 (byte {error.start - begin + 1}); save the file as "
            "UTF-8"
        ) from None


def _check_names(row: Row, names: list[str]) -> None:
    """Raises UserError if the first line names a column twice, or one not at all."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1 or not all(name.strip() for name in names):
        blame = f'"{name}" stands in it twice' if count > 1 else "one has no name"
        raise row.error(
            f"it should hold the columns' names, and {blame}; write a name for each"
        )
