"""Reads the rows of a table, whatever kind of file it is: JSON Lines, parquet, or tab-separated."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxgrpo.data.json_rows import Row, open_file, read_lines, read_rows
from jaxgrpo.errors import UserError


def read_table(path: str | Path) -> Iterator[Row]:
    """Yields the rows of a file: parquet where it is called so, else JSON Lines.

    Raises UserError if the file cannot be read.
    """
    path = Path(path).expanduser()
    return _read_parquet(path) if path.suffix == ".parquet" else read_rows(path)


def read_tsv(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a UTF-8 file of tab-separated values without a header.

    columns: the names of its columns

    Raises UserError if the file cannot be read, and at a line that has another number of columns.
    """
    path = Path(path).expanduser()
    for number, line in enumerate(read_lines(path), start=1):
        row = Row(path, number, {})
        try:
            values = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise row.error("it is not UTF-8; save the file as UTF-8") from None
        if len(values) != len(columns):
            raise row.error(
                f"it has {len(values)} columns, separated by tabs; {len(columns)} are wanted: "
                f"{', '.join(columns)}"
            )
        row.values.update(zip(columns, values, strict=True))
        yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    """Yields the rows of a parquet file, numbered from 1."""
    try:
        # Here and not at the top: only this kind of file needs it.
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"{path} is a parquet file, which pyarrow reads; pip install 'jaxgrpo[data]'"
        ) from None
    with open_file(path) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches()
            rows = (values for batch in batches for values in batch.to_pylist())
            for number, values in enumerate(rows, start=1):
                # A float's digits are not in the file; Python's are the fewest that mean this one.
                digits: dict[str, object] = {
                    name: str(value)
                    for name, value in values.items()
                    if isinstance(value, float)
                }
                yield Row(path, number, values, values | digits)
        except (OSError, pyarrow.ArrowException) as error:
            reason = textwrap.shorten(str(error), 160)
            raise UserError(
                f"{path} is not a parquet file ({reason}); fetch it again"
            ) from None
