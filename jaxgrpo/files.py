"""Files that are written whole or not at all: whoever reads one never sees half of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it has either its old content or the new, even if the power fails.

    The content goes to PATH.partial first, which then takes the place of the file.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        # Without this the rename could reach the disk before the content does.
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes a file of indented JSON atomically. Raises ValueError for NaN, which JSON lacks."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8"))
