"""`python -m tools.bench load`: what reading a folder of weights takes of the host's memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrpo.distributed.mesh import make_mesh, named_leaves, sharded_shapes
from jaxgrpo.errors import UserError
from jaxgrpo.models import hf_folder, tensors, transformer
from jaxgrpo.models.hf_folder import EMBEDDED
from tools.bench.turns import Result

ALLOWED = 1.3
"""What may be held besides the shards, in largest tensors."""


def bench_load(arguments: argparse.Namespace) -> Result:
    """Peak memory and time of reading a random bfloat16 folder, in several files, into a fresh process's devices."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), arguments.gigabytes, arguments.file_gigabytes)
        command = [sys.executable, "-m", "tools.bench.load", folder, arguments.dtype]
        flags = f"--xla_force_host_platform_device_count={arguments.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"the process that reads the folder failed: {done.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def make_folder(folder: Path, gigabytes: float, file_gigabytes: float) -> None:
    """A Llama of about so many bytes, its numbers random and small, with an index."""
    hf = json.loads((EMBEDDED / "config.json").read_text())
    hf |= {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "head_dim": 128,
    }
    hf |= {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "num_hidden_layers": 1,
    }
    write_config = lambda: (folder / "config.json").write_text(json.dumps(hf))
    write_config()
    one = transformer.parameter_count(transformer.shapes(hf_folder.load_config(folder)))
    layer = one - hf["vocab_size"] * hf["hidden_size"] - hf["hidden_size"]
    hf["num_hidden_layers"] = max(1, round((gigabytes * 1e9 / 2 - (one - layer)) / layer))
    write_config()
    rng = np.random.default_rng(0)
    # As bits these are bfloat16 numbers between 0 and 2.
    bits = lambda shape: rng.integers(0, 2**14, shape, np.uint16).view(jnp.bfloat16)
    planned = {}
    for name, (path, own) in hf_folder.wanted_tensors(
        folder, hf_folder.load_config(folder)
    ).items():
        shape = own[::-1] if path.endswith("kernel") else own
        planned[name] = tensors.Planned(
            np.dtype(jnp.bfloat16), shape, lambda shape=shape: bits(shape)
        )
    tensors.write(folder, planned, int(file_gigabytes * 1e9))


def load(folder: Path, dtype: str) -> Result:
    """Reads the folder onto this process's devices, over which fsdp divides it.

    grown_bytes: the peak of the resident memory during it (VmHWM), less what was resident before. No file is mapped: pages of
    files do not hide in it, nor blow it up. within: whether that is at most the shards and 1.3 times the largest tensor of the
    folder.
    """
    mesh = make_mesh(1, -1, 1, devices=jax.devices())
    like = sharded_shapes(mesh, transformer.shapes(hf_folder.load_config(folder)))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), like
    )
    jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, begin = memory("VmRSS"), time.perf_counter()
    params = jax.block_until_ready(hf_folder.load_params(folder, like))
    seconds, grown = time.perf_counter() - begin, memory("VmHWM") - before
    shards = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
    )
    largest = max(2 * leaf.size for leaf in named_leaves(params).values())
    allowed = round(ALLOWED * largest) + shards
    return {
        "devices": jax.device_count(),
        "grown_bytes": grown,
        "allowed_bytes": allowed,
        "shards_bytes": shards,
        "largest_tensor_bytes": largest,
        "load_s": seconds,
        "within": grown <= allowed,
    }


def memory(field: str) -> int:
    """Bytes, by a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    print(json.dumps(load(Path(sys.argv[1]), sys.argv[2])))
