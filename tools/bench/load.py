"""`python -m tools.bench load`: host memory and time that reading a folder of weights takes."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.distributed.mesh import make_mesh, named_leaves, sharded_shapes
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, tensors, transformer
from jaxgrpo.models.hf_config import HfConfig
from jaxgrpo.models.hf_folder import EMBEDDED
from jaxgrpo.models.tensors import PlannedTensor
from tools.bench.turns import Result

ALLOWED_TENSORS = 1.3
"""Host memory that reading may take besides the shards, in largest tensors of the folder."""


def bench_load(arguments: argparse.Namespace) -> Result:
    """Measures peak memory and time of reading a random bfloat16 folder, in several files, into a
    fresh process's devices."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), arguments.gigabytes, arguments.file_gigabytes)
        # A process of its own: this one's memory would hide the peak.
        command = [sys.executable, "-m", "tools.bench.load", folder, arguments.dtype]
        flags = f"--xla_force_host_platform_device_count={arguments.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise UserError(
            f"the process that reads the folder failed: {done.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def make_folder(folder: Path, gigabytes: float, file_gigabytes: float) -> None:
    """Writes a Llama of about so many gigabytes in several files, its numbers random and small."""
    hf = json.loads((EMBEDDED / "config.json").read_text()) | {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "num_hidden_layers": 1,
    }

    # As many layers as bring the folder closest to its size, at 2 bytes a parameter.
    one_layer_model = _write_config(folder, hf)
    embedding_and_norm = (hf["vocab_size"] + 1) * hf["hidden_size"]
    layer = one_layer_model - embedding_and_norm
    hf["num_hidden_layers"] = max(
        1, round((gigabytes * 1e9 / 2 - embedding_and_norm) / layer)
    )
    _write_config(folder, hf)

    # Tensors are made as they are written: the folder may be larger than memory.
    rng = np.random.default_rng(0)
    planned = {}
    expected = hf_folder.expected_tensors(folder, hf_folder.load_config(folder))
    for name, tensor in expected.items():
        shape = tensor.stored_shape
        planned[name] = PlannedTensor(
            np.dtype(jnp.bfloat16), shape, partial(_random_bfloat16, rng, shape)
        )
    tensors.write_files(folder, planned, int(file_gigabytes * 1e9))


def _write_config(folder: Path, hf: HfConfig) -> int:
    """Writes a config.json; returns how many parameters its network has."""
    (folder / "config.json").write_text(json.dumps(hf))
    return transformer.parameter_count(
        transformer.shapes(hf_folder.load_config(folder))
    )


def _random_bfloat16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random bits that are bfloat16 numbers between 0 and 2."""
    return rng.integers(0, 2**14, shape, np.uint16).view(jnp.bfloat16)


def load(folder: Path, dtype: str) -> Result:
    """Measures reading a folder onto this process's devices, over which fsdp divides it.

    Returns among others:
    grown_bytes: peak of the resident memory (VmHWM), less what was resident before. No file is
        mapped: pages of files neither hide in it nor add to it.
    within: whether that is at most the shards and 1.3 times the folder's largest tensor.
    """
    mesh = make_mesh(1, -1, 1, devices=jax.devices())
    like = sharded_shapes(mesh, transformer.shapes(hf_folder.load_config(folder)))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding
        ),
        like,
    )
    # The first transfer allocates what is no part of the reading.
    jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    resident_before = status_bytes("VmRSS")
    started_at = time.perf_counter()
    params = jax.block_until_ready(hf_folder.load_params(folder, like))
    seconds = time.perf_counter() - started_at
    grown = status_bytes("VmHWM") - resident_before

    shards_bytes = 0
    for leaf in jax.tree.leaves(params):
        shards_bytes += sum(shard.data.nbytes for shard in leaf.addressable_shards)
    largest = max(
        2 * leaf.size for leaf in named_leaves(params).values()
    )  # in the folder
    allowed = round(ALLOWED_TENSORS * largest) + shards_bytes
    return {
        "devices": jax.device_count(),
        "grown_bytes": grown,
        "allowed_bytes": allowed,
        "shards_bytes": shards_bytes,
        "largest_tensor_bytes": largest,
        "load_s": seconds,
        "within": grown <= allowed,
    }


def status_bytes(field: str) -> int:
    """Returns a field of /proc/self/status, such as VmRSS, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(
        1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")
    )


if __name__ == "__main__":
    print(json.dumps(load(Path(sys.argv[1]), sys.argv[2])))
