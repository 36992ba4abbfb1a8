"""Compiled programs are kept on disk, so that a run that starts again need not compile them."""

from pathlib import Path

import jax

from jaxgrpo.files import cache_folder

MAX_BYTES = 4 * 2**30
"""Size of the folder; past it the programs that were not used for the longest are removed."""
MIN_COMPILE_SECONDS = 0.1
"""Programs that compile faster are not kept."""


def folder() -> Path:
    """Returns where programs are kept: jaxgrpo/compiled in the user's folder for caches."""
    return cache_folder("compiled")


def enable() -> None:
    """Has JAX keep compiled programs in `folder`.

    Does nothing if the user has chosen a folder, by JAX_COMPILATION_CACHE_DIR or in Python, or if
    this one cannot be made. JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    path = folder()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
