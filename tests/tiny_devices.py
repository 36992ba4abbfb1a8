"""How tests have XLA compile, and functions of tests in processes of their own with several CPU devices."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Machine code that is made in a sixth of the time and runs more slowly: tests compile hundreds of programs and run each on
a few numbers."""
DEFAULT = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_parallel_codegen_split_count": 32,
}
"""What XLA does unasked, as compiler options for the tests that look at a program's memory: theirs must be a user's."""

if version("jaxlib").startswith("0.10."):  # later ones end the process: they do not know it
    QUICK["xla_cpu_use_fusion_emitters"], DEFAULT["xla_cpu_use_fusion_emitters"] = False, True


def flags(devices: int) -> str:
    """XLA_FLAGS for so many CPU devices."""
    settings = {"xla_force_host_platform_device_count": devices} | QUICK
    return " ".join(f"--{name}={str(value).lower()}" for name, value in settings.items())


def output_on_devices(function: Callable[[], None], devices: int = 8, timeout: float = 300) -> str:
    """What a function of a test module prints in a process that has so many devices; it must not fail."""
    module = ".".join(Path(inspect.getfile(function)).relative_to(ROOT).with_suffix("").parts)
    run = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function.__name__} as run; run()"],
        env=os.environ | {"XLA_FLAGS": flags(devices)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
