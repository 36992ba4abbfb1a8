"""A checkpoint restores what was saved, and nothing whose save did not finish."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrpo.checkpoint import Checkpoints
from jaxgrpo.errors import UserError
from jaxgrpo.types import TrainState

HOST = {"position": 17, "visits": {"en-1": [3, 0.5]}, "text": "한국어"}


def make_state(width=3, dtype=jnp.float32, seed=0):
    kernel, bias = jax.random.normal(jax.random.key(seed), (2, 4, width), dtype)
    params = {
        "layers": [{"kernel": kernel}, {"kernel": bias}],
        "norm": jnp.ones(width, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return TrainState(jnp.int32(7), params, opt_state)


def shapes(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(7, make_state(), HOST)
    return tmp_path


def test_restore_gives_back_every_bit(saved):
    state = make_state()
    with Checkpoints(saved, keep=2) as checkpoints:
        restored, host = checkpoints.restore(shapes(state))
    assert_same(restored, state)
    assert host == HOST


def test_restore_puts_arrays_where_asked(saved):
    mesh = jax.make_mesh(
        (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    restored, _ = Checkpoints(saved).restore(shapes(make_state(), sharding))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


def test_parameters_alone_in_another_dtype(saved):
    params = make_state().params
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    assert_same(
        Checkpoints(saved).restore_params(like),
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), params),
    )


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        for step in (1, 2, 10):
            checkpoints.save(step, make_state(seed=step), {"step": step})
        checkpoints.save(10, make_state(seed=0), {"step": 0})  # is there already
        restored, host = checkpoints.restore(shapes(make_state()))
    assert_same(restored, make_state(seed=10))
    assert host == {"step": 10}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "10",
        "2",
    ]


def test_reading_leaves_no_trace(tmp_path):
    assert Checkpoints(tmp_path / "typo").latest() is None
    assert not (tmp_path / "typo").exists()
    with pytest.raises(UserError, match="there is no checkpoint"):
        Checkpoints(tmp_path / "typo").restore(shapes(make_state()))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (
            make_state(width=5),
            "params/layers/0/kernel is float32[4,3] in the checkpoint and float32[4,5] in this run",
        ),
        (
            make_state(dtype=jnp.bfloat16),
            "params/layers/0/kernel is float32[4,3] in the checkpoint and bfloat16[4,3]",
        ),
        (
            make_state()._replace(opt_state=()),
            "opt_state/1/0/count is int32[] in the checkpoint and missing in this run",
        ),
        (
            make_state()._replace(opt_state={"m": jnp.ones(2)}),
            "opt_state/m is missing in the checkpoint and float32[2]",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(saved, state, expected):
    with pytest.raises(UserError) as error:
        Checkpoints(saved).restore(shapes(state))
    assert f"checkpoints/7: {expected}" in str(error.value)
    assert "give another --config.out" in str(error.value)
    assert "\n" not in str(error.value)


def test_parameters_of_another_shape_are_refused(saved):
    with pytest.raises(
        UserError,
        match=r"params/layers/0/kernel is \[4,3\] in the checkpoint and \[4,5\] in this run",
    ):
        Checkpoints(saved).restore_params(shapes(make_state(width=5).params))


def cut_host(folder):
    (folder / "host" / "metadata").write_text('{"position": ')


def no_host(folder):
    shutil.rmtree(folder / "host")


def no_state(folder):
    shutil.rmtree(folder / "state")


def no_arrays(folder):
    for file in (folder / "state").rglob("d/*"):
        file.unlink()


def torn_arrays(folder):
    for file in (folder / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def nothing(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage", [cut_host, no_host, no_state, no_arrays, torn_arrays, nothing]
)
def test_damage_is_said_in_one_line(saved, damage, monkeypatch):
    # When one read fails, those that still run report to an event loop that Orbax has closed.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(8, make_state(), HOST)
    damage(saved / "checkpoints" / "8")
    with pytest.raises(UserError) as error:
        Checkpoints(saved).restore(shapes(make_state()))
    time.sleep(0.1)
    assert "checkpoints/8: the checkpoint is damaged" in str(error.value)
    assert "go on from step 7" in str(error.value)
    assert "\n" not in str(error.value)


SAVE_FOREVER = """
import jax.numpy as jnp
from jaxgrpo.checkpoint import Checkpoints
with Checkpoints({out!r}, keep=2) as checkpoints:
    for step in range(100_000):
        state = {{"step": jnp.int32(step), "w": jnp.full(50_000, step)}}
        checkpoints.save(step, state, {{"step": step}})
"""


def test_a_killed_save_is_not_there(tmp_path):
    """Whenever SIGKILL comes, a complete checkpoint is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER.format(out=str(tmp_path))]
    )
    folder = tmp_path / "checkpoints"
    deadline = time.monotonic() + 60
    # Only a kill in the middle of a save tests anything: wait until the second save has begun.
    while not (
        any(folder.glob("*tmp*"))
        and any(path.name.isdigit() for path in folder.glob("*"))
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder / "99.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        like = {
            "step": jax.ShapeDtypeStruct((), jnp.int32),
            "w": jax.ShapeDtypeStruct((50_000,), jnp.int32),
        }
        state, host = checkpoints.restore(like)
        assert (
            int(state["step"])
            == host["step"]
            == int(state["w"][0])
            == int(state["w"][-1])
            == checkpoints.latest()
        )
    assert not any(folder.glob("*tmp*"))


def test_nothing_is_pickled(saved):
    for file in Path(saved).rglob("*"):
        if file.is_file():
            assert not file.read_bytes().startswith(b"\x80")
    assert (
        json.loads((saved / "checkpoints" / "7" / "host" / "metadata").read_text())
        == HOST
    )
