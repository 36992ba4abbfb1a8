"""Reads columns: parquet files, and the Arrow files that Hugging Face's `datasets` saves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxgrpo.data.rows import Number, Row
from jaxgrpo.errors import UserError

_FILE_MAGIC = b"ARROW1"
"""What an Arrow file begins with. `datasets` writes a stream instead, which has no such mark."""

# pyarrow is imported where it is used: JSON Lines and CSV are read without loading it.


def read_parquet(path: Path) -> Iterator[Row]:
    """Yields the rows of a parquet file, in order; columns of bytes are left out.

    Raises UserError if it cannot be read, and OSError.
    """
    import pyarrow.parquet

    with _blaming(path), path.open("rb") as file:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches()
        yield from _rows(path, batches)


def read_arrow(path: Path) -> Iterator[Row]:
    """Yields the rows of an Arrow file or stream, in order; columns of bytes are left out.

    Raises UserError if it cannot be read, and OSError.
    """
    import pyarrow

    with _blaming(path), path.open("rb") as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        yield from _rows(path, batches)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turns an error of pyarrow's into a UserError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read ({reason}); copy it anew, by `git lfs pull` if it is a pointer"
        ) from error


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    """Yields the rows of pyarrow.RecordBatch after pyarrow.RecordBatch."""
    number = 0
    for batch in batches:
        kinds = {
            field.name: field.type
            for field in batch.schema
            if not _is_bytes(field.type)
        }
        for values in batch.select(list(kinds)).to_pylist():
            number += 1
            plain = {name: _plain(values[name], kind) for name, kind in kinds.items()}
            yield Row(path, number, plain, unit="row")


def _is_bytes(kind: Any) -> bool:
    """Returns whether a pyarrow.DataType is one of bytes, for which JSON has no word."""
    from pyarrow import types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or (types.is_struct(kind) and any(_is_bytes(field.type) for field in kind))
        or (_is_list(kind) and _is_bytes(kind.value_type))
    )


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    )


def _plain(value: Any, kind: Any) -> object:
    """Returns a value of a pyarrow.DataType as JSON has it; times become text.

    Decimal numbers, and floats of fewer than 64 bits, keep the digits that tell them.
    """
    from pyarrow import types

    if value is None or types.is_string(kind) or types.is_integer(kind):
        return value
    if types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if _is_list(kind):
        return [_plain(inner, kind.value_type) for inner in value]
    if types.is_dictionary(kind):
        return _plain(value, kind.value_type)
    if types.is_float16(kind):
        return Number(str(np.float16(value)))
    if types.is_float32(kind):
        return Number(str(np.float32(value)))
    if types.is_decimal(kind):
        return Number(str(value))
    if isinstance(value, str | bool | int | float):
        return value
    return str(value)
