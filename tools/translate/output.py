"""Appends translations to a file, from which a program that was killed goes on."""

import json
import os
from pathlib import Path
from typing import BinaryIO

from jaxgrpo.data.json_rows import read_rows
from jaxgrpo.data.translated import SOURCE_LINE
from jaxgrpo.files import write_atomically


def mend_end(path: Path) -> None:
    """Cuts off a last line of which only a part was written; one that lacks its end gets it."""
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return
    try:
        json.loads(content[end:])
    except ValueError:
        os.truncate(path, end)
        return
    with path.open("ab") as file:
        file.write(b"\n")


def done_lines(path: Path, questions: dict[int, str], code: str) -> set[int]:
    """Returns the source lines that a file has translations of.

    questions: of the source, by line

    Raises UserError if it holds something else.
    """
    if not path.exists():
        return set()
    mend_end(path)
    if path.stat().st_size == 0:
        return set()
    lines: set[int] = set()
    for row in read_rows(path):
        line = row.values.get(SOURCE_LINE)
        is_translation = (
            row.values.get("language") == code
            and isinstance(line, int)
            and row.values.get("source_question") == questions.get(line)
        )
        if not isinstance(line, int) or not is_translation:
            raise row.error(
                f"it is no translation of a row of --source into {code}; give another --to"
            )
        lines.add(line)
    return lines


def append_row(file: BinaryIO, row: dict[str, object]) -> None:
    """Appends a row, and waits until it is on disk; what JSON lacks, such as dates, is text."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    file.write(line.encode())
    file.flush()
    os.fsync(file.fileno())


def sort_rows(path: Path) -> None:
    """Puts the rows into the order of the source, in which any language holds out the same tail."""
    with path.open("rb") as file:
        lines = sorted(file, key=lambda line: json.loads(line)[SOURCE_LINE])
    write_atomically(path, b"".join(lines))
