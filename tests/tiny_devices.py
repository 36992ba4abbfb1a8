"""XLA options for tests, and test functions that run in a process with several CPU devices."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Options that compile in a sixth of the time, to slower machine code: tests compile hundreds of
programs, and run each on a few numbers."""
DEFAULT = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_parallel_codegen_split_count": 32,
}
"""XLA's defaults, for tests of a program's memory: they must compile as users do."""

if version("jaxlib").startswith("0.10."):
    # Later versions do not know this option, and would end the process.
    QUICK_COMPILATION["xla_cpu_use_fusion_emitters"] = False
    DEFAULT["xla_cpu_use_fusion_emitters"] = True


def flags(devices: int) -> str:
    """Returns XLA_FLAGS for a number of CPU devices."""
    options = {"xla_force_host_platform_device_count": devices} | QUICK_COMPILATION
    return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


def output_on_devices(
    function: Callable[[], None], devices: int = 8, timeout: float = 300
) -> str:
    """Returns what a function of a test module prints in a process with so many CPU devices.

    Fails if the function does.
    """
    module = ".".join(
        Path(inspect.getfile(function)).relative_to(ROOT).with_suffix("").parts
    )
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from {module} import {function.__name__} as run; run()",
        ],
        env=os.environ | {"XLA_FLAGS": flags(devices)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
