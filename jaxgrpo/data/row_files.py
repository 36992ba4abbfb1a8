"""Reads rows of whatever file or folder a path names, by the suffix of the files.

A file: .jsonl (or any other name), .json, .csv, .tsv, .parquet, .arrow. A folder: one that
`datasets.save_to_disk` wrote, or one of such files in shards, as data sets on the Hugging Face hub
are. The files of a folder belong to splits, by their names as on the hub:

    data/train-00000-of-00002.parquet    train
    main/test-00000-of-00001.parquet     test
    default/validation/0000.parquet      validation
    problems.jsonl                       train
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxgrpo import hub
from jaxgrpo.data import json_rows
from jaxgrpo.data.arrow_rows import read_arrow, read_parquet
from jaxgrpo.data.csv_rows import read_csv, read_tsv
from jaxgrpo.data.rows import Row
from jaxgrpo.errors import UserError
from jaxgrpo.files import fetched

READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_rows.read_rows,
    ".json": json_rows.read_list,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
"""By the suffix of the file. One with another suffix is read as JSON Lines."""

SHARD_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".csv", ".tsv")
"""Files of a folder that may be data. Those of .json are mostly about the data instead."""

# "train-00000-of-00002"; in a folder that save_to_disk wrote, "data-00000-of-00002"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_SPLIT_WORD = re.compile(
    r"(?<![a-z0-9])(?:(train)(?:ing)?|(test)|(validation|valid|val|dev))(?![a-z0-9])"
)


def read_rows(
    path: str | Path, reader: Callable[[Path], Iterator[Row]] | None = None
) -> Iterator[Row]:
    """Yields the rows of a file, in order.

    reader: what reads it; None: by the file's suffix

    Raises UserError if the file is missing, has no rows, or cannot be read.
    """
    path = fetched(path).expanduser()
    if reader is None:
        reader = READERS.get(path.suffix.lower(), json_rows.read_rows)
    is_empty = True
    try:
        for row in reader(path):
            is_empty = False
            yield row
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}; check --config.data.path and --config.data.heldout_path"
            f"{_fetch_hint(path)}"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} cannot be read ({reason}); check it and its permissions"
        ) from None
    if is_empty:
        raise UserError(f"{path} has no rows; give a file that has some")


def read_files(paths: Iterable[Path]) -> list[Row]:
    """Returns the rows of several files, one after another; raises UserError as `read_rows`."""
    return [row for path in paths for row in read_rows(path)]


def find_splits(path: str | Path) -> dict[str, list[Path]]:
    """Returns the files of each split of a folder.

    A file, or a folder of one data set that `save_to_disk` wrote, has a single split named "".

    Raises UserError if a folder has no data files, or those of several data sets.
    """
    folder = fetched(path).expanduser()
    # Not folder.is_dir(), which raises for a name that no file can have.
    if not os.path.isdir(folder):
        return {"": [folder]}
    if (folder / "state.json").is_file():
        return {"": _saved_files(folder)}
    saved = sorted(state.parent for state in folder.glob("*/state.json"))
    if saved:
        return {inner.name: _saved_files(inner) for inner in saved}
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in _data_files(folder):
        splits[_split_of(file.relative_to(folder))].append(file)
    for files in splits.values():
        _refuse_several_sets(folder, files)
    return dict(splits)


def _fetch_hint(path: Path) -> str:
    """Returns how to fetch a data set of the hub; a name of a file is none of the hub's."""
    return "" if path.suffix in READERS else hub.fetch_hint(str(path), "dataset")


def _saved_files(folder: Path) -> list[Path]:
    """Returns the files of a data set that `save_to_disk` wrote, in order."""
    # Other Arrow files may lie there, which `datasets` has cached.
    path = folder / "state.json"
    try:
        names = [
            entry["filename"] for entry in json.loads(path.read_bytes())["_data_files"]
        ]
        return [folder / name for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} names no data files ({type(error).__name__}: {error}); save the data set anew"
        ) from error


def _data_files(folder: Path) -> list[Path]:
    """Returns the files of a folder that hold data, all of one kind; raises UserError otherwise."""
    # Hidden folders, such as the .cache of `hf download`, hold no data.
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix in SHARD_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    suffixes = sorted({file.suffix for file in files})
    if not files:
        raise UserError(
            f"{folder} is a folder without data files; name one with {' '.join(SHARD_SUFFIXES)} "
            "files, or a file"
        )
    if len(suffixes) > 1:
        raise UserError(
            f"{folder} is a folder with files of several kinds ({' '.join(suffixes)}); name a "
            "file or a folder in it"
        )
    return files


def _split_of(file: Path) -> str:
    """Returns the split that a file of a data set belongs to, by its name and its folders'."""
    shard = _SHARD.fullmatch(file.stem)
    if shard and shard[1] != "data":
        return shard[1]
    # The innermost name that says it.
    for name in reversed([*file.parent.parts, file.stem]):
        if word := _SPLIT_WORD.search(name.lower()):
            train, test, _ = word.groups()
            return train or test or "validation"
    return "train"


def _refuse_several_sets(folder: Path, files: list[Path]) -> None:
    """Raises UserError if files of one split lie in several folders: they are several data sets."""
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise UserError(
            f"{folder} has several data sets, {', '.join(folders[:4])}"
            f"{' ...' if len(folders) > 4 else ''}; name one of these folders"
        )
