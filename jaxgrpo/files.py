"""Files that are written whole or not at all, here or in a bucket of Google Cloud Storage.

A path gs://BUCKET/NAME is read and written through a copy here. What is only read (models, data,
other runs) is kept in `cache_folder("gs")`, and fetched again when it has changed. A run's own
files are in a temporary folder. Those that are written whole go to the bucket at once. A bucket
has no appending, so those that grow are written there anew by `upload`, before a checkpoint is
saved. Checkpoints have no copy: Orbax writes them to the bucket itself.
"""

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxgrpo import buckets
from jaxgrpo.buckets import PARTIAL, SCHEME, Version, local_version
from jaxgrpo.errors import UserError

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints."""

CONTINUED = (".json", ".jsonl")
"""Files of a run that one that goes on reads."""

CONTINUED_FOLDERS = ("evaluations", "mlruns")
"""Folders of a run that one that goes on reads."""

NEVER_READ = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")
"""Weights in formats that are not read, which model folders may hold besides."""


# 1. Writing.


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it has either its old content or the new, even if the power fails.

    The content goes to PATH.partial first, which then takes the place of the file.
    """
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        # Without this the rename could reach the disk before the content does.
        os.fsync(file.fileno())
    os.replace(partial, path)
    upload(path)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes a file of indented JSON atomically. Raises ValueError for NaN, which JSON lacks."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8"))


def remove(path: Path) -> None:
    """Removes a file, which need not be there."""
    path.unlink(missing_ok=True)
    run = _run_of(path)
    if run is not None and path in run.versions:
        del run.versions[path]
        buckets.remove(run.address_of(path))


@contextmanager
def written_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a folder that is to be made: `target`, or one that goes there at the end.

    Raises UserError if something is there in the bucket, or it cannot be written.
    """
    if not is_remote(target):
        yield Path(target)
        return
    address = _normal(target)
    if buckets.is_folder(address):
        raise UserError(f"{address} is there already: name a folder that is not")
    with tempfile.TemporaryDirectory(prefix="jaxgrpo-") as root:
        folder = Path(root) / address.rpartition("/")[2]
        yield folder
        for path in sorted(_files_in(folder)):
            buckets.put(path, f"{address}/{path.relative_to(folder).as_posix()}")


# 2. Paths.


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is in a bucket. Raises UserError for any other kind of address."""
    text = os.fspath(path)
    if text.startswith(SCHEME):
        return True
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise UserError(
            f"{text} is an address that is neither read nor written here: give a folder or a file, "
            f"or one in Google Cloud Storage, {SCHEME}BUCKET/NAME"
        )
    return False


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a folder is there. Raises UserError if its bucket cannot be read."""
    return buckets.is_folder(_normal(path)) if is_remote(path) else Path(path).is_dir()


def cache_folder(name: str) -> Path:
    """Returns jaxgrpo/NAME in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "jaxgrpo" / name


def with_addresses(text: str) -> str:
    """Returns a text with gs://BUCKET/NAME where it names the copy of that."""
    for root in (cache_folder("gs"), *(run.root for run in _runs.values())):
        text = text.replace(f"{root}/", SCHEME)
    return text


# 3. Reading.


def fetched(path: str | os.PathLike, deep: bool = True) -> Path:
    """Returns a file or folder to read: the path itself, or the copy of what is in a bucket.

    deep: with the folders of the folder

    Raises UserError if nothing is in the bucket, or it cannot be read.
    """
    if not is_remote(path):
        return Path(path)
    address = _normal(path)
    copy = _copy_of(address)
    if not buckets.fetch(address, copy, _is_read, deep):
        raise UserError(f"there is nothing at {address}: check the path")
    return copy


def fetched_file(folder: str | os.PathLike, name: str) -> Path:
    """Returns a file of a folder to read, which need not be there.

    Raises UserError if the bucket cannot be read.
    """
    if not is_remote(folder):
        return Path(folder) / name
    address = f"{_normal(folder)}/{name}"
    copy = _copy_of(address)
    if not buckets.fetch(address, copy, _is_read):
        copy.unlink(missing_ok=True)
    return copy


def file_versions(folder: str | os.PathLike) -> list[tuple[str, int, int]]:
    """Returns path, size and time of change of all files in a folder, and in folders within it."""
    if is_remote(folder):
        address = _normal(folder)
        found = buckets.versions(address)
        return [(f"{address}/{name}", *found[name]) for name in sorted(found)]
    files = sorted(_files_in(Path(folder)))
    return [(str(path.resolve()), *local_version(path)) for path in files]


# 4. A run's own folder.


class _Run(NamedTuple):
    """A run's folder in a bucket, and its copy here.

    address: gs://BUCKET/NAME
    root: stands for "gs://": the copy is ROOT/BUCKET/NAME
    folder: the copy
    versions: of the files of the copy that are in the bucket as they are here
    """

    address: str
    root: Path
    folder: Path
    versions: dict[Path, Version]

    def address_of(self, path: Path) -> str:
        """Returns the address of a file of the copy."""
        return f"{self.address}/{path.relative_to(self.folder).as_posix()}"


_runs: dict[str, _Run] = {}
"""The folders in buckets that this process writes, by their addresses."""


def run_folder(out: str | os.PathLike, again: bool = False) -> Path:
    """Returns the folder to write a run's files in: `out` itself, or a copy.

    The copy begins with what a run that goes on reads of it, but for checkpoints.

    again: whether the copy is brought up to date although this process has it already

    Raises UserError if the bucket cannot be read.
    """
    if not is_remote(out):
        return Path(out)
    address = _normal(out)
    if address not in _runs:
        root = Path(tempfile.mkdtemp(prefix="jaxgrpo-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        folder = root / address.removeprefix(SCHEME)
        folder.mkdir(parents=True)
        _runs[address] = _Run(address, root, folder, {})
        again = True
    run = _runs[address]
    if again:
        buckets.fetch(address, run.folder, _is_continued, deep=False)
        for name in CONTINUED_FOLDERS:
            buckets.fetch(f"{address}/{name}", run.folder / name, _is_read)
        run.versions.clear()
        for path in _files_in(run.folder):
            run.versions[path] = local_version(path)
    return run.folder


def upload(path: Path) -> None:
    """Brings a file, or what has changed in a folder, to the bucket if it is a run's in one.

    Raises UserError if the bucket cannot be written.
    """
    run = _run_of(path)
    if run is None:
        return
    for file in _files_in(path) if path.is_dir() else [path]:
        # Looked at before it is read: what is written meanwhile goes there the next time.
        version = local_version(file)
        if file.suffix != PARTIAL and run.versions.get(file) != version:
            buckets.put(file, run.address_of(file))
            run.versions[file] = version


def _run_of(path: Path) -> _Run | None:
    """Returns the run in a bucket that a path belongs to; None: it belongs to none."""
    runs = (run for run in _runs.values() if path.is_relative_to(run.folder))
    return next(runs, None)


def _normal(address: str | os.PathLike) -> str:
    """Returns an address without slashes at its end."""
    return os.fspath(address).rstrip("/")


def _copy_of(address: str) -> Path:
    """Returns where what is read from an address is kept."""
    return cache_folder("gs") / address.removeprefix(SCHEME)


def _files_in(folder: Path) -> list[Path]:
    """Returns all files in a folder, and in folders within it."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _is_read(name: str) -> bool:
    return not name.endswith(NEVER_READ)


def _is_continued(name: str) -> bool:
    return name.endswith(CONTINUED)
