"""For every test: shapes and types are checked at run time, on one CPU device, without a network.

Nothing is cached between runs, compiled programs included: a rerun tests what is there now.
"""

import os

import pytest

from tests.tiny_devices import flags

# Before jax is imported. A machine with an accelerator must give the same numbers, and leave it alone.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = flags(devices=1)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = (
    "false"  # a tokenizer that has made threads warns when a worker is started
)

from jaxtyping import install_import_hook

# In tests only: every annotated function of the package checks its arguments' and its result's types and axes.
install_import_hook("jaxgrpo", "beartype.beartype")

LONGEST = (
    "test_training",
    "test_train",
    "test_processes",
    "test_engine",
    "test_steps",
    "test_bad_input",
    "test_logprobs",
)
"""Files that take the longest, which begin first: begun last, one of them would keep a single worker busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all else stays in its order."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
