"""Tensors in safetensors files, read in parts and written one after another.

The format: eight bytes with the header's length, a JSON header, and the numbers. Files are read
with plain reads, a few megabytes at a time. They are not mapped: the pages of a mapped file count
as this process's memory, which would then hold whole tensors.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxgrpo.errors import UserError

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's name of a dtype -> numpy's name."""

BLOCK_BYTES = 2**22
"""Bytes that are read at once, or one row of a tensor if that is more."""

INDEX = "model.safetensors.index.json"
"""The file that says which file holds which tensor, where there are several."""

HEADER_LENGTH_BYTES = 8
"""Bytes in front of the header that hold its length, little-endian."""


class HeaderEntry(TypedDict):
    """A tensor in a file's header, by the names that the format gives them."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]
    """First byte and end, counted from the end of the header."""


@dataclass(frozen=True)
class Tensor:
    """A tensor within a file, stored row after row.

    path: the file
    begin: the first byte of the tensor in the file
    """

    path: Path
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(
        self, index: tuple[slice, ...], dtype: DTypeLike, transposed: bool = False
    ) -> np.ndarray:
        """Returns a part of the tensor as a contiguous array.

        index: the part, a slice for each axis of the result; steps are 1
        dtype: of the result
        transposed: reads the tensor's transpose, to which the index then applies

        Besides the result at most one block of BLOCK_BYTES is held.
        """
        stored_index = index[::-1] if transposed else index
        bounds = [
            axis.indices(size)
            for axis, size in zip(stored_index, self.shape, strict=True)
        ]
        lengths = [stop - start for start, stop, _ in bounds]

        # The result is contiguous as it is returned; `stored` views it as the file has it.
        result = np.empty(lengths[::-1] if transposed else lengths, jnp.dtype(dtype))
        stored = result.T if transposed else result

        # The file is read in blocks of whole rows, which lie next to each other there.
        first_row, end_row, _ = bounds[0]
        row_size = math.prod(self.shape[1:])
        row_bytes = row_size * self.dtype.itemsize
        rows_per_block = max(1, BLOCK_BYTES // max(1, row_bytes))
        with self.path.open("rb", buffering=0) as file:
            for row in range(first_row, end_row, rows_per_block):
                num_rows = min(rows_per_block, end_row - row)
                file.seek(self.begin + row * row_bytes)
                block = np.fromfile(file, self.dtype, num_rows * row_size)
                block = block.reshape(num_rows, *self.shape[1:])
                # Of each row the wanted columns are kept, and converted to the result's dtype.
                target = slice(row - first_row, row - first_row + num_rows)
                stored[target] = block[(slice(None), *stored_index[1:])]
        return result

    def read_all(self, dtype: DTypeLike, transposed: bool = False) -> np.ndarray:
        """Returns the whole tensor, as `read` does a part."""
        return self.read((slice(None),) * len(self.shape), dtype, transposed)


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns every tensor of a folder by its name, without reading its numbers.

    Where there is an index, it alone decides which file holds which tensor. Else the file
    model.safetensors is read, or without it all safetensors files.

    Raises UserError naming the file that is missing or damaged.
    """
    if (folder / INDEX).is_file():
        return _find_by_index(folder)
    single_file = folder / "model.safetensors"
    files = (
        [single_file] if single_file.is_file() else sorted(folder.glob("*.safetensors"))
    )
    if not files:
        raise UserError(
            f"model folder {folder} has no *.safetensors: only that format is read; "
            "convert the weights to it"
        )
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= _read_header(path)
    return tensors


def _find_by_index(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors that the index names, of those that are in the files it says."""
    try:
        file_of_tensor = json.loads((folder / INDEX).read_text())["weight_map"]
        files = sorted(set(file_of_tensor.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INDEX} is no index ({type(error).__name__}: {error}): copy it anew"
        ) from error
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(files)} files its index names, "
            f"first {missing[0]}: copy it"
        )
    # A name that its file does not hold is left out; hf_folder says that it is missing.
    headers = {file: _read_header(folder / file) for file in files}
    return {
        name: headers[file][name]
        for name, file in file_of_tensor.items()
        if name in headers[file]
    }


def _read_header(path: Path) -> dict[str, Tensor]:
    """Returns the tensors that a file's header names; UserError if the file is damaged."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            # A file of something else, an HTML page for instance, has no sensible length here.
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            if not 2 <= length <= file_bytes - HEADER_LENGTH_BYTES:
                raise ValueError(
                    f"its header should have {length:,} bytes, the file has {file_bytes:,}"
                )
            header = json.loads(file.read(length))
        # Not a tensor: free text about the file.
        header.pop("__metadata__", None)
        data_begin = HEADER_LENGTH_BYTES + length
        return {
            name: _read_entry(path, data_begin, file_bytes, entry)
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): copy it anew"
        ) from error


def _read_entry(
    path: Path, data_begin: int, file_bytes: int, entry: HeaderEntry
) -> Tensor:
    """Returns the tensor of a header's entry; ValueError if the file cannot hold it.

    data_begin: the byte of the file from which the entry's offsets count
    """
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    # No network has tensors of another dtype, integers for instance. They are listed all the
    # same, as bytes, so that hf_folder can name them in its message.
    dtype = jnp.dtype(DTYPES.get(entry["dtype"], "uint8"))
    if data_begin + end > file_bytes:
        raise ValueError(
            f"it should have {data_begin + end:,} bytes and has {file_bytes:,}"
        )
    if entry["dtype"] in DTYPES and end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{end - begin:,} bytes for a tensor {shape} of {entry['dtype']}"
        )
    return Tensor(path, data_begin + begin, dtype, shape)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written.

    dtype: in the file
    make_array: returns the numbers, in any dtype; called when the tensor's turn comes
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    make_array: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Returns how many bytes the tensor takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_files(
    folder: Path, tensors: Mapping[str, PlannedTensor], max_file_bytes: int
) -> None:
    """Writes tensors into as many files as needed, one tensor in memory at a time.

    Several files get an index.

    max_file_bytes: of a file; only a single tensor that is larger makes a larger file
    """
    parts = list(_split_into_files(tensors, max_file_bytes))
    if len(parts) == 1:
        write_file(folder / "model.safetensors", parts[0])
        return
    file_of_tensor: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_file(folder / file, part)
        file_of_tensor |= dict.fromkeys(part, file)
    total_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of_tensor}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _split_into_files(
    tensors: Mapping[str, PlannedTensor], max_file_bytes: int
) -> Iterator[dict[str, PlannedTensor]]:
    """Yields the tensors of each file: in their order, as many as fit."""
    part: dict[str, PlannedTensor] = {}
    part_bytes = 0
    for name, tensor in tensors.items():
        if part and part_bytes + tensor.num_bytes > max_file_bytes:
            yield part
            part = {}
            part_bytes = 0
        part[name] = tensor
        part_bytes += tensor.num_bytes
    yield part


def write_file(path: Path, tensors: Mapping[str, PlannedTensor]) -> None:
    """Writes tensors into one file, one in memory at a time."""
    format_names = {numpy_name: name for name, numpy_name in DTYPES.items()}
    # transformers refuses a file that does not say which framework it is for.
    header: dict[str, HeaderEntry | dict[str, str]] = {"__metadata__": {"format": "pt"}}
    # Tensors lie one after another, in the order of the header.
    end = 0
    for name, tensor in tensors.items():
        begin = end
        end = begin + tensor.num_bytes
        header[name] = {
            "dtype": format_names[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    # Spaces pad the header, so that the numbers begin at a multiple of 8 bytes.
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(HEADER_LENGTH_BYTES, "little") + encoded)
        # Each array is made, written and dropped before the next is made.
        for tensor in tensors.values():
            np.ascontiguousarray(tensor.make_array(), dtype=tensor.dtype).tofile(file)
