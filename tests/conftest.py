"""Sets up every test: types and shapes are checked at run time, on one CPU device, offline.

Nothing is cached between runs, not even compiled programs: a rerun tests the code as it is now.
Within a run its processes share them.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from coverage import Coverage

from tests.tiny_devices import flags

# Set before jax is imported. A machine with an accelerator must give the same numbers, and tests
# must not occupy the accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = flags(devices=1)
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="jaxgrpo-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["HF_HUB_OFFLINE"] = "1"
# A tokenizer that has started threads would warn when a worker process is forked.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

# In tests only: every annotated function of the package checks the types and axes of its arguments
# and of its result.
install_import_hook("jaxgrpo", "beartype.beartype")

SLOWEST_FILES = (
    "test_training",
    "test_train",
    "test_processes",
    "test_packing",
    "test_engine",
    "test_programs",
    "test_sft_runs",
    "test_evaluations",
    "test_readme",
    "test_bad_input",
    "test_logprobs",
)
"""Test files that take the longest, in the order in which they start.

They start before all others: one that started last would keep a single worker busy at the end.
"""

UNMEASURED_FILES = (
    "test_int8",
    "test_lora",
    "test_optimizer",
    "test_packing",
    "test_precision",
    "test_programs",
    "test_train",
    "test_training",
    "test_updates",
)
"""Test files in which coverage is not measured: they trace the same programs for many settings,
which takes nearly twice as long where it is. Other files run the same lines."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Runs a test, with its fixtures, measured or not."""
    coverage = Coverage.current()
    if coverage is None or item.path.stem not in UNMEASURED_FILES:
        return (yield)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts tests so that the slowest files come first; the others keep their order."""
    positions = {name: position for position, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: positions.get(item.path.stem, len(SLOWEST_FILES)))
