"""Forecasts a GRPO step's time, beside the bound of times.py.

For the devices here: from the times of the compiled programs on them (trial.py). For chips that are
not here: a program reaches a share of what its bound allows, as others have published.
"""

import math
from dataclasses import dataclass

from jaxgrpo.plan import times
from jaxgrpo.plan.chips import CHIPS, Chip
from jaxgrpo.plan.planner import Plan
from jaxgrpo.plan.times import Assumptions

SAMPLING_SHARE = (0.38, 0.52)
"""Lowest and highest share of the HBM's rate that sampling reaches: Qwen3-8B and 32B on v6e-4 by
sglang-jax, Llama 3.3 70B on v6e-8 by vLLM. Published tokens/s, over what reading the parameters in
bfloat16 and the cache allows."""


@dataclass(frozen=True)
class Forecast:
    """The time that a GRPO step is expected to take.

    seconds: of each program, the fewest and the most
    basis: where the forecast comes from, in words
    """

    seconds: dict[str, tuple[float, float]]
    basis: str

    @property
    def total(self) -> tuple[float, float]:
        """Seconds of the step, the fewest and the most."""
        fewest, most = zip(*self.seconds.values(), strict=True)
        return sum(fewest), sum(most)


def published_forecast(plan: Plan, chip: Chip, assumptions: Assumptions) -> Forecast:
    """Returns the forecast at the shares of the bound that others have published."""
    product_share, trained_on = chip.mfu, chip.name
    if product_share is None:
        shares = [other.mfu for other in CHIPS.values() if other.mfu]
        product_share = (min(low for low, _ in shares), max(high for _, high in shares))
        trained_on = "other TPUs"
    bounds = times.step_times(
        plan.config, plan.inputs, plan.compiled, chip, assumptions
    )
    seconds = {}
    for name, bound in bounds.items():
        low, high = product_share if bound["binds"] == "flops" else SAMPLING_SHARE
        seconds[name] = (bound["seconds"] / high, bound["seconds"] / low)
    return Forecast(
        _with_longest_rows(plan, seconds, assumptions),
        f"not measured; at {_percent(SAMPLING_SHARE)} of the rate of HBM and links, as published "
        f"of sampling on v6e, and {_percent(product_share)} of the peak FLOP/s, as published of "
        f"training on {trained_on}",
    )


def measured_forecast(
    plan: Plan, call_seconds: dict[str, float], assumptions: Assumptions
) -> Forecast:
    """Returns the forecast for the devices here.

    call_seconds: of a call of each program, as measured
    """
    calls = times.calls_per_step(plan.config, plan.inputs, assumptions)
    seconds = {}
    for name, once in call_seconds.items():
        seconds[name] = (calls[name] * once, calls[name] * once)
    return Forecast(
        _with_longest_rows(plan, seconds, assumptions),
        "each program was timed here just now, on zeros",
    )


def _with_longest_rows(
    plan: Plan, seconds: dict[str, tuple[float, float]], assumptions: Assumptions
) -> dict[str, tuple[float, float]]:
    """Returns seconds whose most is that of slots that wait for rows of the greatest length."""
    if "decode" not in seconds:
        return seconds
    steps = times.calls_per_step(plan.config, plan.inputs, assumptions)["decode"]
    rows = times.rows_per_step(plan.config, assumptions)
    turns = math.ceil(rows / plan.inputs.programs.slot_counts[0])
    most_steps = turns * plan.config.sampling.max_new_tokens
    fewest, most = seconds["decode"]
    return seconds | {"decode": (fewest, most * max(1.0, most_steps / steps))}


def _percent(share: tuple[float, float]) -> str:
    return f"{100 * share[0]:.0f} to {share[1]:.0%}"
