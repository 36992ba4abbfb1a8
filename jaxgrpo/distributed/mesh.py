"""Builds the device mesh, decides how each array is sharded over it, and moves arrays.

The mesh has three axes. Batches are sharded by row over `data` and `fsdp`. Parameters are sharded
over `fsdp` (a matrix is gathered before it is used: FSDP, or ZeRO-3, arXiv 1910.02054) and over
`tensor` (each device computes with its part of a matrix: Megatron-LM, arXiv 1909.08053).

Rules map the path of a parameter to its sharding. The optimizer state holds trees with the same
paths as the parameters below its own, so the same rules shard it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxgrpo.distributed.devices import Device, arrange, divide_cpu
from jaxgrpo.errors import UserError

AXES = ("data", "fsdp", "tensor")

ROWS = PartitionSpec(("data", "fsdp"))
"""The first axis of a batch, its rows, is divided by data * fsdp devices; other axes are whole."""

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # [V, D] Vocabulary parallel: each tensor shard has the embeddings of some tokens.
    (r"embedding$", PartitionSpec("tensor", "fsdp")),
    # [in, out] Column parallel: each tensor shard computes some of the output features (heads, or
    # units of the MLP) from all input features, without communication over `tensor`.
    (r"(query|key|value|gate|up)/kernel$", PartitionSpec("fsdp", "tensor")),
    # [in, out] Row parallel: each tensor shard multiplies the input features that it has computed
    # itself, and an all-reduce over `tensor` adds up the products.
    (r"(out|down)/kernel$", PartitionSpec("tensor", "fsdp")),
    # [out] The bias of a column-parallel matrix is divided as its columns.
    (r"(query|key|value)/bias$", PartitionSpec("tensor")),
    # [in, r] LoRA's A is divided as the rows of its matrix; the rank r is small and stays whole.
    (r"(query|key|value|gate|up)/lora_a$", PartitionSpec("fsdp", None)),
    # [r, out] LoRA's B is divided as the columns of its matrix.
    (r"(query|key|value|gate|up)/lora_b$", PartitionSpec(None, "tensor")),
    # [in, r] A of a row-parallel matrix.
    (r"(out|down)/lora_a$", PartitionSpec("tensor", None)),
    # [r, out] B of a row-parallel matrix.
    (r"(out|down)/lora_b$", PartitionSpec(None, "fsdp")),
    # [D] Scales of norms, and [out] of int8 matrices, are small: every device has them whole.
    (r"scale$", PartitionSpec()),
)
"""Sharding rules: a pattern for the end of a parameter's path -> the mesh axis of each dimension.

PartitionSpec("fsdp", "tensor") divides dimension 0 over `fsdp` and dimension 1 over `tensor`. Every
matrix is divided by both: `tensor` decides which part a device computes with, and `fsdp` divides
the other dimension only to save memory, so that part is gathered over `fsdp` before it is used.

The first pattern that matches decides. Leaves that none matches, such as the counters of an
optimizer, are replicated. A leaf that stacks all layers has one more dimension in front, whole.
"""

Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""A leaf of a tree of parameters: an array, or the shape and dtype of one."""


# --- The mesh -------------------------------------------------------------------------------------


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[Device] | None = None,
    rows: int = 1,
) -> Mesh:
    """Returns a mesh of data * fsdp * tensor devices.

    data, fsdp, tensor: sizes of the axes; one may be -1: as many as the devices allow
    devices: those to use; None: all there are. A CPU is then divided into as many as the sizes ask
        for, and with data=-1 into more, as its cores and `rows` allow
    rows: all batches have a multiple of this number of rows

    Raises UserError if the devices cannot be arranged so.
    """
    sizes = [data, fsdp, tensor]
    known_product = math.prod(size for size in sizes if size != -1)
    if devices is None:
        rows_per_device = rows // (known_product // tensor) if data == -1 else 1
        divide_cpu(known_product, rows_per_device)
        devices = jax.devices()
        if jax.process_count() > 1 and not jax.distributed.is_initialized():
            raise UserError(
                f"this is one of {jax.process_count()} processes: "
                "--config.distributed.coordinator=off is for one"
            )
    if sizes.count(-1) == 1 and len(devices) % known_product == 0:
        sizes[sizes.index(-1)] = len(devices) // known_product
    if -1 in sizes or math.prod(sizes) != len(devices):
        requested = {"data": data, "fsdp": fsdp, "tensor": tensor}
        settings = ", ".join(f"mesh.{axis}={size}" for axis, size in requested.items())
        hint = _sizes_hint(requested, len(devices))
        raise UserError(
            f"{settings} do not multiply to the {len(devices)} devices here; {hint}"
        )
    return Mesh(arrange(sizes, devices), AXES)


def _sizes_hint(requested: Mapping[str, int], device_count: int) -> str:
    """Returns the advice for sizes that do not multiply to the number of devices."""
    fillable_axes = []
    for axis in AXES:
        others = math.prod(size for other, size in requested.items() if other != axis)
        if others > 0 and device_count % others == 0:
            fillable_axes.append(f"mesh.{axis}")
    if fillable_axes:
        return f"set {' or '.join(fillable_axes)} to -1"
    return "choose sizes that do, as mesh.data=-1 with 1 for the others"


# --- Shardings ------------------------------------------------------------------------------------


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over data and fsdp, every other axis whole."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def row_devices(mesh: Mesh) -> int:
    """Returns the number of shards that the rows of a batch are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def tree_shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns the sharding of each leaf of parameters, or of a train state, according to RULES.

    Raises UserError if a dimension is not a multiple of the size of its mesh axis.
    """

    def sharding_of(path: tuple, leaf: Leaf) -> NamedSharding:
        name = path_name(path)
        spec = _spec_by_rules(name)
        for dimension, axis in enumerate(spec):
            if axis and leaf.shape[dimension] % mesh.shape[axis]:
                raise UserError(
                    f"{name} {tuple(leaf.shape)} cannot be divided by "
                    f"mesh.{axis}={mesh.shape[axis]} on axis {dimension}: "
                    f"choose a mesh.{axis} that divides {leaf.shape[dimension]}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding_of, tree)


def _spec_by_rules(name: str) -> PartitionSpec:
    """Returns the PartitionSpec of the first rule whose pattern matches a leaf's path."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            # [layers, ...]: a scan goes over the layers, so their axis is not divided.
            return PartitionSpec(None, *spec) if spec and is_stacked(name) else spec
    return PartitionSpec()


def sharded_shapes(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns a jax.ShapeDtypeStruct for each leaf, with its sharding according to RULES.

    Raises UserError if a dimension is not a multiple of the size of its mesh axis.
    """

    def sharded_shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(sharded_shape, tree, tree_shardings(mesh, tree))


def decode_shardings(mesh: Mesh, shapes: PyTree) -> PyTree:
    """Returns the sharding of each parameter of the copy that tokens are decoded with.

    A decode step multiplies large matrices with few activations: one token of each row. FSDP would
    gather every matrix in every step. So this copy is weight-stationary (arXiv 2211.05102): the
    dimension that `tensor` divides is divided by `fsdp` too, the one that `fsdp` divided is whole,
    and the activations move instead.

    shapes: what sharded_shapes returns; a leaf that cannot be divided so keeps its sharding
    """
    shards = mesh.shape["tensor"] * mesh.shape["fsdp"]
    stationary_axes = {"tensor": ("tensor", "fsdp"), "fsdp": None}

    def sharding_of(leaf: jax.ShapeDtypeStruct) -> Sharding:
        if mesh.shape["fsdp"] == 1:  # nothing would be gathered
            return leaf.sharding
        spec = PartitionSpec(
            *(stationary_axes.get(axis, axis) for axis in leaf.sharding.spec)
        )
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % shards:
                return leaf.sharding
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding_of, shapes)


def decode_state_shardings(mesh: Mesh, kv_heads: int) -> Callable[[Any], PyTree]:
    """Returns a function that gives the sharding of every field of the sampler's states.

    The function takes the class of a state, a NamedTuple (sampler.DecodeState, sampler.Prefilled),
    and returns an instance of it whose fields are shardings: an out_shardings of jax.jit.

    kv_heads: key-value heads of the model; they are divided by `tensor` if its size divides them
    """
    head_axis = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    cache_sharding = NamedSharding(mesh, PartitionSpec(*ROWS, head_axis))
    field_shardings = {
        # Keys and values of each layer, [rows, kv_heads, ...].
        "cache": cache_sharding,
        # One number for all rows.
        "ring_position": replicated(mesh),
    }
    # All other fields are [rows, ...].
    default_sharding = row_sharding(mesh)

    def shardings_of(state_class: Any) -> PyTree:
        shardings = {}
        for name in state_class._fields:
            shardings[name] = field_shardings.get(name, default_sharding)
        return state_class(**shardings)

    return shardings_of


# --- Trees ----------------------------------------------------------------------------------------


def path_name(path: tuple) -> str:
    """Returns the path of a leaf as text, such as "layers_0/attention/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by the names of their paths, in the tree's order."""
    return {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def is_stacked(name: str) -> bool:
    """Returns True for the path of a leaf whose first axis is the layers (transformer.stack)."""
    return re.search(r"(^|/)layers/", name) is not None


def matrix_mask(tree: PyTree) -> PyTree:
    """Returns True for each parameter that is a matrix, or a stack of the matrices of all layers.

    Biases and the scales of norms are False; weight decay is for the others.
    """

    def is_matrix(path: tuple, leaf: Leaf) -> bool:
        return leaf.ndim - is_stacked(path_name(path)) > 1

    return jax.tree_util.tree_map_with_path(is_matrix, tree)


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of sharded arrays or ShapeDtypeStructs."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shard_shape = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(shard_shape) * leaf.dtype.itemsize
    return total


# --- Between host and devices ---------------------------------------------------------------------


def to_device(tree: PyTree, shardings: PyTree) -> PyTree:
    """Places host arrays on the devices.

    tree: the same on every process; each process places the shards of its own devices
    shardings: a sharding for each leaf, or one for all of them
    """

    def place(array: ArrayLike, sharding: NamedSharding) -> jax.Array:
        host_array = np.asarray(array)
        return jax.make_array_from_callback(
            host_array.shape, sharding, lambda index: host_array[index]
        )

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: place(array, shardings), tree)
    return jax.tree.map(place, tree, shardings)


def to_host(tree: PyTree) -> PyTree:
    """Returns device arrays as NumPy arrays; every process gets the whole of each."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
