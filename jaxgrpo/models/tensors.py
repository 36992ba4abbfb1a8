"""Tensors in safetensors files, read in parts and written one after another.

The format is simple: eight bytes of length, that much JSON, and the numbers. It is read with plain reads, a few megabytes at a
time: pages of a mapped file would count as this process's memory, whole tensors of them.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrpo.errors import UserError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What the format calls a dtype -> numpy's name."""

BLOCK = 2**22
"""Bytes that are read at once, or one row if that is more."""

INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where there are several."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: row after row, from a byte of a file on."""

    file: Path
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self, index: tuple[slice, ...], dtype: Any, turned: bool = False) -> np.ndarray:
        """A part of it in another dtype, contiguous; of its transpose if turned. No more than a block is held besides."""
        parts = index[::-1] if turned else index
        (first, last, _), *rest = (
            part.indices(size) for part, size in zip(parts, self.shape, strict=True)
        )
        lengths = (last - first, *(stop - start for start, stop, _ in rest))
        out = np.empty(lengths[::-1], dtype).T if turned else np.empty(lengths, dtype)
        row = math.prod(self.shape[1:])
        step = max(1, BLOCK // max(1, row * self.dtype.itemsize))
        with self.file.open("rb", buffering=0) as file:
            for start in range(first, last, step):
                count = min(step, last - start)
                file.seek(self.begin + start * row * self.dtype.itemsize)
                block = np.fromfile(file, self.dtype, count * row).reshape(count, *self.shape[1:])
                out[start - first : start - first + count] = block[(slice(None), *parts[1:])]
        return out.T if turned else out

    def whole(self, dtype: Any, turned: bool = False) -> np.ndarray:
        """All of it, as `read` gives a part."""
        return self.read((slice(None),) * len(self.shape), dtype, turned)


def found_in(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its name. Where there is an index it alone decides which file holds what; else the file
    model.safetensors is read, or without it all there are. UserError names the file that is missing or damaged."""
    if (folder / INDEX).is_file():
        return _by_index(folder)
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"model folder {folder} has no *.safetensors: only that format is read; convert the weights to it"
        )
    return {name: tensor for file in files for name, tensor in _header(file).items()}


def _by_index(folder: Path) -> dict[str, Tensor]:
    try:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INDEX} is no index ({type(error).__name__}: {error}): copy it anew"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(names)} files its index names, first {missing[0]}: copy it"
        )
    headers = {name: _header(folder / name) for name in names}
    return {name: headers[file][name] for name, file in places.items() if name in headers[file]}


def _header(path: Path) -> dict[str, Tensor]:
    """What a file says it holds; UserError if it does not hold that."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        return {name: _tensor(path, 8 + length, size, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): copy it anew"
        ) from error


def _tensor(path: Path, data: int, size: int, entry: dict[str, Any]) -> Tensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    # Of another dtype, integers for instance, no tensor is wanted; it is named as one too many.
    dtype = jnp.dtype(DTYPES.get(entry["dtype"], "uint8"))
    if data + end > size:
        raise ValueError(f"it should have {data + end:,} bytes and has {size:,}")
    if entry["dtype"] in DTYPES and end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin:,} bytes for a tensor {shape} of {entry['dtype']}")
    return Tensor(path, data + begin, dtype, shape)


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written; `array` makes it, in any dtype, when its turn comes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    array: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(folder: Path, tensors: Mapping[str, Planned], limit: int) -> None:
    """Writes tensors, one in memory at a time, into files of at most `limit` bytes, or one tensor; several get an index."""
    files = list(_shared_out(tensors, limit))
    if len(files) == 1:
        return write_file(folder / "model.safetensors", files[0])
    places: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        write_file(folder / name, part)
        places |= dict.fromkeys(part, name)
    total = sum(tensor.size for tensor in tensors.values())
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"
    )
    return None


def _shared_out(tensors: Mapping[str, Planned], limit: int) -> Iterator[dict[str, Planned]]:
    """In their order, as many to a file as fit."""
    part: dict[str, Planned] = {}
    for name, tensor in tensors.items():
        if part and sum(other.size for other in part.values()) + tensor.size > limit:
            yield part
            part = {}
        part[name] = tensor
    yield part


def write_file(path: Path, tensors: Mapping[str, Planned]) -> None:
    """Writes tensors into one file."""
    names = {numpy: name for name, numpy in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.size
        header[name] = {
            "dtype": names[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor.array(), dtype=tensor.dtype).tofile(file)
