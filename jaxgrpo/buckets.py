"""Lists, fetches and writes files in buckets of Google Cloud Storage, through fsspec and gcsfs.

An address is gs://BUCKET/NAME. Whatever goes wrong is a UserError that names it.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgrpo.errors import UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = "gs://"

PARTIAL = ".partial"
"""The suffix of a file that is still being written."""

THREADS = 8
"""Files that are fetched side by side."""

SAID_BYTES = 100_000_000
"""Of so many bytes it is said that they are fetched."""

Version = tuple[int, int]
"""The size of a file, and when it changed, in ns."""


def is_folder(address: str) -> bool:
    """Returns whether there are files below an address."""
    with _reaching(address) as bucket:
        return bucket.isdir(address)


def versions(address: str, deep: bool = True) -> dict[str, Version]:
    """Returns the version of each file at an address, by its name from there.

    A file that has the address itself has the name "".

    deep: with those in the folders of the folder
    """
    with _reaching(address) as bucket:
        # Other processes write there, too.
        bucket.invalidate_cache()
        if deep:
            found = bucket.find(address, detail=True).values()
        elif bucket.exists(address):
            # Not by `find`, which lists what lies deeper, too: that may be a whole bucket.
            found = bucket.ls(address, detail=True)
        else:
            found = []
        start = address.removeprefix(SCHEME)
        return {
            info["name"].removeprefix(start).removeprefix("/"): _version(info)
            for info in found
            if info["type"] == "file" and _is_name(info["name"])
        }


def fetch(
    address: str, copy: Path, wanted: Callable[[str], bool], deep: bool = True
) -> bool:
    """Makes a copy the same as what is at an address: what has changed is fetched.

    copy: of a file, or of a folder, where what is no longer there is removed
    wanted: returns whether a file is copied, by its name
    deep: with the folders of the folder

    Returns whether anything is at the address.
    """
    found = versions(address, deep)
    there = {copy / name: found[name] for name in found if wanted(name)}
    if copy.is_dir():
        here = [path for path in copy.rglob("*") if path.is_file()]
        for path in here:
            is_looked_at = deep or path.parent == copy
            # Another process may be writing one.
            is_partial = path.suffix == PARTIAL
            if path not in there and is_looked_at and not is_partial:
                path.unlink(missing_ok=True)
    changed = [
        path
        for path, version in there.items()
        if not path.is_file() or local_version(path) != version
    ]

    size = sum(there[path][0] for path in changed)
    if size >= SAID_BYTES:
        # To stderr, which is nobody's output.
        text = f"fetching {len(changed)} files, {size / 1e9:.1f} GB, of {address} to {copy}"
        print(text, file=sys.stderr, flush=True)

    def fetch_file(path: Path) -> None:
        name = path.relative_to(copy).as_posix()
        source = address if path == copy else f"{address}/{name}"
        # The copy appears complete or not at all; several processes may fetch the same.
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        bucket.get_file(source, str(partial))
        _, time_ns = there[path]
        os.utime(partial, ns=(time_ns, time_ns))
        os.replace(partial, path)

    with _reaching(address) as bucket, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch_file, changed))
    return bool(found)


def put(path: Path, address: str) -> None:
    """Writes a file to an address, where it appears complete or not at all."""
    with _reaching(address) as bucket:
        bucket.put_file(str(path), address)


def remove(address: str) -> None:
    """Removes the file at an address."""
    with _reaching(address) as bucket:
        bucket.rm_file(address)


def local_version(path: Path) -> Version:
    """Returns the version of a file here."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _is_name(name: str) -> bool:
    """Returns whether a file of this name in a bucket can have a copy.

    An empty file whose name ends in "/" stands for a folder; one with ".." could be anywhere.
    """
    return not name.endswith("/") and ".." not in name.split("/")


def _version(info: Mapping[str, Any]) -> Version:
    """Returns the version of a file in a bucket, whose clock counts microseconds."""
    return info["size"], int(info["mtime"].timestamp() * 1e6) * 1000


@contextmanager
def _reaching(address: str) -> Iterator["AbstractFileSystem"]:
    """Yields what reads and writes buckets; raises UserError if it is not there, or fails."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{address} needs gcsfs: pip install 'jaxgrpo[gcs]'")
    import fsspec

    try:
        yield fsspec.filesystem("gs")
    # Whatever the libraries raise without a network, a login, a right or a bucket of that name.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{address} cannot be reached ({type(error).__name__}: {reason}); check the bucket's "
            "name, and who you are: gcloud auth application-default login"
        ) from error
