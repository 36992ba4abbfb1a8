"""Compiled programs are kept where it is said, unless the user has chosen otherwise."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from jaxgrpo.distributed import compilation_cache
compilation_cache.MIN_COMPILE_SECONDS = 0.0
compilation_cache.enable()
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x * 2 + jnp.sin(x))(jnp.ones(3))
"""


def run(cache, **variables):
    """Returns the folder that a process of its own has chosen."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)} | variables
    for name in ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        if name not in variables:
            environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def test_programs_are_kept_in_the_users_folder_for_caches(tmp_path):
    assert run(tmp_path) == str(tmp_path / "jaxgrpo" / "compiled")
    assert any((tmp_path / "jaxgrpo" / "compiled").iterdir())


def test_a_folder_that_the_user_has_chosen_stays(tmp_path):
    chosen = str(tmp_path / "chosen")
    assert run(tmp_path / "caches", JAX_COMPILATION_CACHE_DIR=chosen) == chosen
    assert not (tmp_path / "caches").exists()


def test_without_a_folder_that_can_be_made_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == "None"
