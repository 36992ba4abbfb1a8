"""Settings of a run: the dataclasses, reading a config file, overriding it, checking it.

schema.py and sft_schema.py have the dataclasses, bounds.py what stands beside their fields,
loader.py config files, overrides.py, objective_names.py and command_line.py flags, help_text.py and
catalogue.py --help, checks.py what is refused, resume.py OUT/config.json.
"""

from jaxgrpo.config.bounds import GAPS, ROUNDING
from jaxgrpo.config.checks import validate, validate_sft
from jaxgrpo.config.loader import (
    load,
    load_sft,
    parse_command_line,
    parse_sft_command_line,
)
from jaxgrpo.config.objective_names import override
from jaxgrpo.config.overrides import describe
from jaxgrpo.config.resume import (
    changes_evaluation,
    check_named_out,
    check_same,
    check_start,
    compare,
    flat,
    save,
    text_settings,
)
from jaxgrpo.config.schema import (
    Batch,
    Compute,
    Config,
    Distributed,
    Evaluation,
    Filter,
    Mesh,
    Optimizer,
    Order,
    Sampling,
    Verifier,
)
from jaxgrpo.config.sft_schema import EvaluationSampling, Packing, SFTConfig

__all__ = [
    "GAPS",
    "ROUNDING",
    "Batch",
    "Compute",
    "Config",
    "Distributed",
    "Evaluation",
    "EvaluationSampling",
    "Filter",
    "Mesh",
    "Optimizer",
    "Order",
    "Packing",
    "SFTConfig",
    "Sampling",
    "Verifier",
    "changes_evaluation",
    "check_named_out",
    "check_same",
    "check_start",
    "compare",
    "describe",
    "flat",
    "load",
    "load_sft",
    "override",
    "parse_command_line",
    "parse_sft_command_line",
    "save",
    "text_settings",
    "validate",
    "validate_sft",
]
