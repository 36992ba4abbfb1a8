"""Settings of a run: the dataclasses, reading a config file, overriding it, checking it.

schema.py has the dataclasses, bounds.py what stands beside their fields, loader.py config files,
overrides.py and command_line.py flags, checks.py what is refused, resume.py OUT/config.json.
"""

from jaxgrpo.config.bounds import GAPS, ROUNDING
from jaxgrpo.config.checks import validate
from jaxgrpo.config.loader import load, parse_command_line
from jaxgrpo.config.overrides import describe, override
from jaxgrpo.config.resume import check_same, compare, flat, save
from jaxgrpo.config.schema import (
    Batch,
    Compute,
    Config,
    Distributed,
    Evaluation,
    Filter,
    Mesh,
    Optimizer,
    Sampling,
    Verifier,
)

__all__ = [
    "GAPS",
    "ROUNDING",
    "Batch",
    "Compute",
    "Config",
    "Distributed",
    "Evaluation",
    "Filter",
    "Mesh",
    "Optimizer",
    "Sampling",
    "Verifier",
    "check_same",
    "compare",
    "describe",
    "flat",
    "load",
    "override",
    "parse_command_line",
    "save",
    "validate",
]
