"""Meshes of all sizes, the sharding of every parameter and optimizer state, and moves of arrays."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxgrpo.device.activation_shardings import for_update
from jaxgrpo.device.optimizer import adamw, schedule
from jaxgrpo.distributed.mesh import (
    AXES,
    decode_shardings,
    device_bytes,
    make_mesh,
    named_leaves,
    replicated,
    row_devices,
    row_sharding,
    sharded_shapes,
    to_device,
    to_host,
    tree_shardings,
)
from jaxgrpo.distributed.processes import gather_json
from jaxgrpo.errors import UserError
from jaxgrpo.models import transformer
from jaxgrpo.models.transformer import SequenceInputs, look_up
from jaxgrpo.types import TrainState
from tests.tiny_devices import output_on_devices
from tests.tiny_models import NETWORK

EXPECTED = {
    "embedding": ("tensor", "fsdp"),
    "layers_0/attention/query/kernel": ("fsdp", "tensor"),
    "layers_0/attention/key/kernel": ("fsdp", "tensor"),
    "layers_0/attention/value/kernel": ("fsdp", "tensor"),
    "layers_0/attention/query/bias": ("tensor",),
    "layers_0/attention/out/kernel": ("tensor", "fsdp"),
    "layers_0/mlp/gate/kernel": ("fsdp", "tensor"),
    "layers_0/mlp/up/kernel": ("fsdp", "tensor"),
    "layers_0/mlp/down/kernel": ("tensor", "fsdp"),
    "layers_0/attention_norm/scale": (),
    "layers_1/mlp_norm/scale": (),
    "norm/scale": (),
}


@dataclass(frozen=True)
class Device:
    """Stands in for a jax.Device: enough to tell where an array would be placed."""

    id: int
    platform: str = "cpu"
    process_index: int = 0
    device_kind: str = "cpu"
    slice_index: int = 0
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def devices(count):
    return [Device(i) for i in range(count)]


def tpus(slices=1, width=4, height=2, kind="TPU v5 lite"):
    """Returns slices of width x height chips, numbered row by row as JAX does.

    Each process has 2 x 2 chips.
    """
    chips = []
    for slice_index, y, x in itertools.product(
        range(slices), range(height), range(width)
    ):
        processes_before = slice_index * (width * height // 4)
        process = processes_before + (y // 2) * (width // 2) + x // 2
        chips.append(Device(len(chips), "tpu", process, kind, slice_index, (x, y, 0)))
    return chips


@pytest.mark.parametrize(
    ("sizes", "filled"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 4, -1), (1, 4, 2)),
        ((2, 4, 1), (2, 4, 1)),
    ],
)
def test_one_size_is_filled_in(sizes, filled):
    mesh = make_mesh(*sizes, devices=devices(8))
    assert mesh.axis_names == AXES
    assert tuple(mesh.shape.values()) == filled
    assert row_devices(mesh) == filled[0] * filled[1]


@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (16, 1, 1), (2, 2, 1)]
)
def test_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(UserError) as caught:
        make_mesh(*sizes, devices=devices(8))
    message = str(caught.value)
    assert "8 devices" in message
    for axis, size in zip(AXES, sizes, strict=True):
        assert f"mesh.{axis}={size}" in message


def test_rows_are_divided_between_slices_and_nothing_else_is():
    """With 2 slices of 16 chips, each half of the `data` axis is one slice."""
    for sizes in ((2, 16, 1), (4, 8, 1), (8, 2, 2), (32, 1, 1)):
        arranged = make_mesh(*sizes, devices=tpus(2, 4, 4)).devices
        assert arranged.shape == sizes
        for slice_index, half in enumerate(np.split(arranged, 2)):
            assert {device.slice_index for device in half.flat} == {slice_index}


@pytest.mark.parametrize(
    ("sizes", "data"), [((1, 16, 1), 1), ((-1, 16, 1), 1), ((1, -1, 2), 1)]
)
def test_data_that_the_slices_do_not_divide_is_named(sizes, data):
    with pytest.raises(
        UserError, match=f"mesh.data is {data}: it must be a multiple of the 2 slices"
    ):
        make_mesh(*sizes, devices=tpus(2))


def test_neighbours_in_a_mesh_are_neighbours_in_the_network():
    """Eight chips of a v5e form a ring: each is next to the one before it."""
    chips = make_mesh(1, 8, 1, devices=tpus()).devices.flatten()
    for previous, chip in itertools.pairwise([*chips, chips[0]]):
        steps = [abs(a - b) for a, b in zip(previous.coords, chip.coords, strict=True)]
        assert sum(steps) == 1


@pytest.mark.parametrize("tensor", [2, 4])
def test_the_tensor_axis_stays_within_a_process(tensor):
    two_processes = [Device(i, process_index=i % 2) for i in range(8)]
    for machine in (two_processes, tpus(1, 4, 4), tpus(2, 4, 4)):
        for row in make_mesh(-1, 1, tensor, machine).devices.reshape(-1, tensor):
            assert len({device.process_index for device in row}) == 1
    with pytest.raises(
        UserError, match=r"mesh.tensor is 8: it must divide the 4 devices of a process"
    ):
        make_mesh(-1, 1, 8, two_processes)


def test_a_process_that_is_alone_gathers_its_own_value():
    value = object()
    assert gather_json(value) == [value]


@pytest.fixture(scope="module")
def state():
    """Returns the shapes of a train state."""
    optimizer = adamw(schedule("cosine", 1e-3, 2, 10), 0.9, 0.95, 0.1, 1.0)
    params = transformer.shapes(NETWORK)
    return TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        params,
        jax.eval_shape(optimizer.init, params),
    )


@pytest.fixture
def wide():
    return make_mesh(2, 2, 2, devices(8))


def test_every_parameter_has_its_rule(state, wide):
    shardings = named_leaves(tree_shardings(wide, state.params))
    for name, axes in EXPECTED.items():
        assert shardings[name].spec == PartitionSpec(*axes), name
    untied = {"output_embedding": jax.ShapeDtypeStruct((48, 16), jnp.float32)}
    assert tree_shardings(wide, untied)["output_embedding"].spec == PartitionSpec(
        "tensor", "fsdp"
    )


def test_no_matrix_is_left_whole(state, wide):
    shardings = named_leaves(tree_shardings(wide, state.params))
    for name, leaf in named_leaves(state.params).items():
        assert leaf.ndim < 2 or set(shardings[name].spec) == {"fsdp", "tensor"}, name


def test_the_optimizers_moments_live_where_their_parameters_do(state, wide):
    shardings = named_leaves(tree_shardings(wide, state))
    params = named_leaves(tree_shardings(wide, state.params))
    for moment in ("mu", "nu"):
        moments = {
            name: value for name, value in shardings.items() if f"/{moment}/" in name
        }
        assert len(moments) == len(params)
        for name, sharding in moments.items():
            assert sharding.spec == params[name.split(f"/{moment}/")[1]].spec, name
    counts = [name for name in shardings if name.endswith("count")]
    assert counts
    for name in ["step", *counts]:
        assert shardings[name].spec == PartitionSpec()


def test_a_tensor_that_does_not_divide_is_named(state):
    with pytest.raises(
        UserError, match=r"embedding \(48, 16\) .*mesh.tensor=5 on axis 0.* divides 48"
    ):
        tree_shardings(make_mesh(1, 1, 5, devices(5)), state.params)
    with pytest.raises(UserError, match=r"mesh.fsdp=3.* divides 16"):
        sharded_shapes(make_mesh(1, 3, 1, devices(3)), state)


def test_there_and_back_again():
    mesh = make_mesh()
    tree = {
        "rows": np.arange(12, dtype=np.int32).reshape(4, 3),
        "mask": np.eye(4, dtype=bool),
        "scalar": np.float32(2.5),
    }
    for shardings in (replicated(mesh), jax.tree.map(lambda _: replicated(mesh), tree)):
        placed = to_device(tree, shardings)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
        back = to_host(placed)
        for name, array in tree.items():
            assert isinstance(back[name], np.ndarray)
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)
    assert to_device(tree["rows"], row_sharding(mesh)).sharding.spec == PartitionSpec(
        ("data", "fsdp")
    )


def test_sharded_shapes_have_shape_dtype_and_sharding(state):
    mesh = make_mesh()
    shardings = named_leaves(tree_shardings(mesh, state))
    for name, leaf in named_leaves(sharded_shapes(mesh, state)).items():
        source = named_leaves(state)[name]
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (
            source.shape,
            source.dtype,
            shardings[name],
        )


def test_stacked_layers_have_their_rules_behind_the_layers(state, wide):
    stacked = jax.eval_shape(transformer.stack, state.params)
    shardings = named_leaves(
        tree_shardings(wide, TrainState(state.step, stacked, {"mu": stacked}))
    )
    for name, axes in EXPECTED.items():
        if name.startswith("layers_0/"):
            name = name.replace("layers_0/", "layers/")
            expected = PartitionSpec(None, *axes) if axes else PartitionSpec()
            assert (
                shardings[f"params/{name}"].spec
                == shardings[f"opt_state/mu/{name}"].spec
                == expected
            ), name
    with pytest.raises(UserError, match=r"layers/.* on axis [12]"):
        tree_shardings(make_mesh(1, 1, 5, devices(5)), {"layers": stacked["layers"]})


def test_a_copy_to_decode_with_is_divided_where_tensor_divides(state, wide):
    shapes = sharded_shapes(wide, state.params)
    shardings = named_leaves(decode_shardings(wide, shapes))
    for name, axes in EXPECTED.items():
        moved = [{"tensor": ("tensor", "fsdp"), "fsdp": None}[axis] for axis in axes]
        assert shardings[name].spec == PartitionSpec(*moved), name
    for name, leaf in named_leaves(shapes).items():
        decode_leaf = leaf.update(sharding=shardings[name])
        assert device_bytes(decode_leaf) <= device_bytes(leaf), name


def test_what_does_not_divide_so_keeps_its_rule(state):
    """8 columns cannot be divided by 16 devices; without fsdp, every leaf keeps its rule."""
    mesh = make_mesh(1, 4, 4, devices(16))
    shardings = named_leaves(decode_shardings(mesh, sharded_shapes(mesh, state.params)))
    assert shardings["layers_0/attention/key/kernel"].spec == PartitionSpec(
        "fsdp", "tensor"
    )
    query_sharding = shardings["layers_0/attention/query/kernel"]
    assert query_sharding.spec == PartitionSpec(None, ("tensor", "fsdp"))
    mesh = make_mesh(4, 1, 2, devices(8))
    shapes = sharded_shapes(mesh, state.params)
    assert named_leaves(decode_shardings(mesh, shapes)) == {
        name: leaf.sharding for name, leaf in named_leaves(shapes).items()
    }


def test_a_device_holds_its_share(state, wide):
    shapes = {
        "kernel": state.params["layers_0"]["attention"]["query"]["kernel"],
        "scale": state.params["norm"]["scale"],
    }
    placed = sharded_shapes(wide, {"query": shapes})
    assert device_bytes(placed) == 4 * (16 * 16 // 4 + 16)


def look_up_on_a_mesh():
    """Prints the largest error of an embedding's gradient, on both sides of `for_update`'s rule."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    tokens = jax.random.randint(jax.random.key(0), (4, 6), 0, 8)
    weights = jax.random.normal(jax.random.key(1), (4, 6, 10))
    for vocabulary in (8, 64):  # fewer than the 24 tokens, and more
        shardings = for_update(mesh, vocabulary)

        def loss(embedding, shardings=shardings):
            inputs = SequenceInputs(tokens, tokens, jnp.ones((4, 6, 6), bool))
            params = {"embedding": embedding}
            params, (inputs,) = look_up(params, (inputs,), jnp.float32, shardings)
            rows = shardings.embedded(inputs.embedded)
            return jnp.sum(shardings.layer(rows) * weights), params["embedding"]

        @jax.jit
        def gradient(embedding, next_use, loss=loss):
            _, pull_back = jax.vjp(loss, embedding)
            return pull_back((jnp.float32(1), next_use))[0]

        next_use = jax.random.normal(jax.random.key(2), (vocabulary, 10))
        place = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
        zeros = jax.device_put(jnp.zeros_like(next_use), place)
        right = next_use.at[tokens].add(weights)
        print(np.abs(gradient(zeros, jax.device_put(next_use, place)) - right).max())


def test_rows_are_looked_up_on_a_mesh_whichever_is_moved():
    errors = [float(line) for line in output_on_devices(look_up_on_a_mesh).split()]
    assert len(errors) == 2
    assert max(errors) < 1e-5
