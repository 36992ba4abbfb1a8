"""The device mesh, where each array lives on it, and moves between host and device.

Axes: `data` and `fsdp` divide the rows of a batch; `fsdp` and `tensor` divide the matrices. Rules map a parameter's path to
its axes; optimizer state has the same paths below it and so the same rules.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgrpo.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))

RULES = (
    (r"embedding$", PartitionSpec("tensor", "fsdp")),
    (r"(query|key|value|gate|up)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(out|down)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(query|key|value)/bias$", PartitionSpec("tensor")),
    (r"(query|key|value|gate|up)/lora_a$", PartitionSpec("fsdp", None)),
    (r"(query|key|value|gate|up)/lora_b$", PartitionSpec(None, "tensor")),
    (r"(out|down)/lora_a$", PartitionSpec("tensor", None)),
    (r"(out|down)/lora_b$", PartitionSpec(None, "fsdp")),
    (r"scale$", PartitionSpec()),
)
"""The first pattern found at the end of a path decides; what no pattern finds (counters) is on every device. A leaf that
holds every layer's has one axis more in front, which is whole."""


MOST_CPU_DEVICES = 4
"""More than these gain little, and each holds the parameters unless mesh.fsdp divides them."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list | None = None, rows: int = 1
) -> Mesh:
    """A mesh over all devices (or those given); one size may be -1, what the others leave. UserError if they do not fit.

    rows: what numbers of rows are multiples of. With data=-1 a CPU's cores become as many devices as divide it.
    """
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size != -1]))
    if devices is None:
        _divide_cpu(known, rows // (known // tensor) if data == -1 else 1)
        devices = jax.devices()
        if jax.process_count() > 1 and not jax.distributed.is_initialized():
            raise UserError(
                f"this is one of {jax.process_count()} processes: --config.distributed.coordinator=off is for one"
            )
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or int(np.prod(sizes)) != len(devices):
        wanted = ", ".join(
            f"mesh.{axis}={size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True)
        )
        given = {"data": data, "fsdp": fsdp, "tensor": tensor}
        rests = {
            axis: int(np.prod([size for other, size in given.items() if other != axis]))
            for axis in AXES
        }
        able = [
            f"mesh.{axis}" for axis, rest in rests.items() if rest > 0 and len(devices) % rest == 0
        ]
        mend = (
            f"set {' or '.join(able)} to -1"
            if able
            else "choose sizes that do, as mesh.data=-1 with 1 for the others"
        )
        raise UserError(f"{wanted} do not multiply to the {len(devices)} devices here; {mend}")
    return Mesh(_arranged(sizes, devices), AXES)


def _arranged(sizes: list[int], devices: list) -> np.ndarray:
    """Devices as an array of these sizes: `data` over the slices of a TPU, `tensor` within a process; UserError if that cannot
    be. As JAX arranges them for a TPU's network where that keeps to it, else one process after another."""
    plain = sorted(devices, key=lambda device: (_slice(device), device.process_index, device.id))
    slices = len(set(map(_slice, devices)))
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data is {sizes[0]}: it must be a multiple of the {slices} slices, which divide the rows"
        )
    if devices[0].platform == "tpu":
        inner, outer = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1]
        with contextlib.suppress(
            NotImplementedError, ValueError, AssertionError
        ):  # no such network as it knows
            if slices > 1:
                found = mesh_utils.create_hybrid_device_mesh(
                    inner, outer, devices, allow_split_physical_axes=True
                )
            else:
                found = mesh_utils.create_device_mesh(
                    sizes, devices, allow_split_physical_axes=True
                )
            if _tensor_within(found):
                return found
    arranged = np.asarray(plain).reshape(sizes)
    if not _tensor_within(arranged):
        each = len(devices) // len({device.process_index for device in devices})
        raise UserError(
            f"mesh.tensor is {sizes[2]}: it must divide the {each} devices of a process, for it stays within one"
        )
    return arranged


def _slice(device: Any) -> int:
    """The part of a TPU's machines that has a network of its own; 0 where there is one network."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _tensor_within(devices: np.ndarray) -> bool:
    """Whether a row's tensors are all with one process."""
    return all(
        len({device.process_index for device in row}) == 1
        for row in devices.reshape(-1, devices.shape[-1])
    )


def _divide_cpu(devices: int, most_times: int) -> None:
    """Makes so many devices of the CPU, or 2, 4, ... times as many where its cores allow it and most_times divides by that;
    unless JAX has begun, or somebody else chose, or several processes share it.

    Decoding is small operations one after another, most of which occupy one core of a device however many there are.
    """
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or "JAX_NUM_CPU_DEVICES" in os.environ
    ):
        return
    if jax.distributed.is_initialized():
        return
    times = 1
    while (
        2 * times * devices <= min(os.cpu_count() or 1, MOST_CPU_DEVICES)
        and most_times % (2 * times) == 0
    ):
        times *= 2
    with contextlib.suppress(RuntimeError):  # JAX has begun: it keeps what it has
        jax.config.update("jax_num_cpu_devices", times * devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp; every other axis whole."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def decode_state_shardings(mesh: Mesh, kv_heads: int) -> Callable[[Any], Any]:
    """A function that gives, for the class of a sampler's state, where each of its fields lives: rows over data and fsdp; the
    key-value heads of a cache over tensor, too, where they divide; the clock everywhere."""
    heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    cache = NamedSharding(mesh, PartitionSpec(*ROWS, heads))
    places = {"prompt_cache": cache, "ring_cache": cache, "cache": cache, "ring_position": replicated(mesh)}
    return lambda state: state(
        **{name: places.get(name, row_sharding(mesh)) for name in state._fields}
    )


def row_devices(mesh: Mesh) -> int:
    """Into how many shards the rows of a batch are divided."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def path_name(path: tuple) -> str:
    """layers_0/attention/query/kernel"""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Each leaf of a tree by its path's name."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def is_stacked(name: str) -> bool:
    """Whether a leaf holds every layer's, the layers being its first axis (transformer.stack)."""
    return re.search(r"(^|/)layers/", name) is not None


def matrices(tree: Any) -> Any:
    """Whether each leaf of parameters is a matrix, of one layer or of all."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - is_stacked(path_name(path)) > 1, tree
    )


def device_bytes(like: Any) -> int:
    """Bytes that a device holds of a tree of arrays, or of jax.ShapeDtypeStruct, with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(like)
    )


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each leaf of parameters, or of a state that holds them, by RULES.

    UserError if a matrix does not divide by its axes, naming it and the sizes.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in RULES if re.search(pattern, name)), PartitionSpec())
        if spec and is_stacked(name):
            spec = PartitionSpec(None, *spec)
        for dimension, axis in enumerate(spec):
            if axis and leaf.shape[dimension] % mesh.shape[axis]:
                raise UserError(
                    f"{name} {tuple(leaf.shape)} cannot be divided by mesh.{axis}={mesh.shape[axis]} "
                    f"on axis {dimension}: choose a mesh.{axis} that divides {leaf.shape[dimension]}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def decode_shardings(mesh: Mesh, like: Any) -> Any:
    """The sharding of each leaf of a copy to decode with, `like` being what tree_like gives: fsdp divides what tensor divides,
    and no axis that is contracted with whole activations; a leaf that does not divide so keeps its own.

    A token of each row is little and matrices are much: activations move to the matrices (arXiv 2211.05102).
    """

    def sharding(leaf: Any) -> NamedSharding:
        spec = PartitionSpec(
            *(
                {"tensor": ("tensor", "fsdp"), "fsdp": None}.get(axis, axis)
                for axis in leaf.sharding.spec
            )
        )
        parts = mesh.shape["tensor"] * mesh.shape["fsdp"]
        divides = all(
            size % parts == 0 for size, axis in zip(leaf.shape, spec, strict=False) if axis
        )
        return NamedSharding(mesh, spec) if divides else leaf.sharding

    return jax.tree.map(sharding if mesh.shape["fsdp"] > 1 else lambda leaf: leaf.sharding, like)


def sharded_shapes(mesh: Mesh, tree: Any) -> Any:
    """A jax.ShapeDtypeStruct for each leaf, with the sharding that tree_shardings gives it. UserError as there."""
    place = lambda shape, sharding: jax.ShapeDtypeStruct(
        shape.shape, shape.dtype, sharding=sharding
    )
    return jax.tree.map(place, tree, tree_shardings(mesh, tree))


def to_device(tree: Any, shardings: Any) -> Any:
    """Host arrays onto the devices. Every process holds the whole and places its own shards."""

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: put(array, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Device arrays -> numpy, whole on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


EXCHANGED = 2048
"""Bytes of each process that are exchanged in one go; more take a second."""


def gather_json(value: Any) -> list[Any]:
    """The JSON values that the processes call this with, in the processes' order; alone, it is the one value.

    All of them must call it at the same point of the program, as they do everything that touches devices.
    """
    # process_count() would open the devices, too early for a run that has not divided its CPU yet.
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    first = _gathered(len(text).to_bytes(8, "little") + text[: EXCHANGED - 8], EXCHANGED)
    sizes = [int.from_bytes(row[:8], "little") for row in first]
    rows = [row[8:] for row in first]
    if max(sizes) > EXCHANGED - 8:
        rows = _gathered(text, 1 << max(sizes).bit_length())  # few widths: each is compiled
    return [json.loads(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def _gathered(text: bytes, width: int) -> list[bytes]:
    """Each process's bytes, padded to the width."""
    padded = np.frombuffer(text.ljust(width, b"\0"), np.uint8)
    return [row.tobytes() for row in multihost_utils.process_allgather(padded)]
