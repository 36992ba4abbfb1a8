"""Rotary positions (arXiv 2104.09864): how fast each pair of a head's numbers turns, and how far contexts are stretched.

A scaling is a frozen dataclass with two methods: `frequencies`, made in float64 and rounded once, and `magnitude`, what cosine
and sine are multiplied by.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxgrpo.errors import UserError


@dataclass(frozen=True)
class Rope:
    """No scaling: pair i of n turns by theta ** (-i / n) from one token to the next."""

    theta: float = 10_000.0

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        """Radians a token of each pair of numbers."""
        return self._plain(head_width).astype(np.float32)

    def magnitude(self) -> float:
        """What queries and keys are stretched by."""
        return 1.0

    def stretched(self, positions: int) -> int:
        """Returns how many positions a model has that config.json says so many of, by how it was
        trained or as scaled."""
        return positions

    def _plain(self, head_width: int) -> Float[np.ndarray, "half"]:
        half = head_width // 2
        return self.theta ** (-np.arange(half) / half)


@dataclass(frozen=True)
class Linear(Rope):
    """Positions divided by a factor (arXiv 2306.15595)."""

    factor: float = 1.0

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        return (self._plain(head_width) / self.factor).astype(np.float32)

    def stretched(self, positions: int) -> int:
        return int(positions * self.factor)


@dataclass(frozen=True)
class Llama3(Rope):
    """Slow pairs divided by a factor, fast ones left as they are, those between mixed (Llama 3.1, arXiv 2407.21783).

    low, high: how often a pair turns within the original context where the mixture begins and ends
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        plain = self._plain(head_width)
        turns = self.original * plain / (2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return (share * plain + (1 - share) * plain / self.factor).astype(np.float32)

    def stretched(self, positions: int) -> int:
        # More than there were at first is the scaled number. It may be below original * factor:
        # Llama 3.2 says 131,072, with 8,192 and 32.
        return positions if positions > self.original else int(self.original * self.factor)


@dataclass(frozen=True)
class Yarn(Rope):
    """Slow pairs divided by a factor, fast ones left, mixed along the pairs between; attention sharpened (arXiv 2309.00071).

    fast, slow: how often a pair turns within the original context where the mixture begins and ends. attention: the magnitude;
    None: 1 + 0.1 ln(factor). truncate: whether the mixture's ends are whole pairs.
    """

    factor: float = 1.0
    original: int = 8192
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    truncate: bool = True

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        plain = self._plain(head_width)
        pair = lambda turns: (
            head_width
            * math.log(self.original / (turns * 2 * math.pi))
            / (2 * math.log(self.theta))
        )
        low, high = pair(self.fast), pair(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_width - 1)
        ramp = np.clip((np.arange(len(plain)) - low) / ((high - low) or 0.001), 0.0, 1.0)
        return (ramp * plain / self.factor + (1 - ramp) * plain).astype(np.float32)

    def magnitude(self) -> float:
        if self.attention is not None:
            return self.attention
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def stretched(self, positions: int) -> int:
        return max(positions, int(self.original * self.factor))


def settings_of(hf: dict[str, Any], theta: float) -> dict[str, Any]:
    """Returns the rotary settings of a config.json whose layers all have the same.

    transformers 5 gathers them in rope_parameters. A rope_scaling, as checkpoints written before
    have it, takes the place of the whole of that. UserError where it would thereby lose what
    rope_parameters alone says.

    theta: the rotary base where config.json names none
    """
    parameters, scaling = hf.get("rope_parameters") or {}, hf.get("rope_scaling") or {}
    if not (parameters and scaling):
        return parameters or scaling
    for name, default in (("rope_theta", theta), ("partial_rotary_factor", 1.0)):
        said = parameters.get(name)
        taken = scaling.get(name) or hf.get(name) or default
        if said not in (None, taken):
            raise UserError(
                f"rope_scaling stands beside rope_parameters and takes its place, so that {name} "
                f"is {taken:g} and no longer {said:g}: move what rope_scaling says into rope_parameters, and remove it"
            )
    _refuse_nested(parameters)
    return scaling


def _refuse_nested(settings: dict[str, Any]) -> None:
    nested = [name for name, value in settings.items() if isinstance(value, dict)]
    if nested:
        raise UserError(
            f"rope_parameters has {nested[0]!r} for itself; for this family all layers have the same"
        )


def from_hf(hf: dict[str, Any], settings: dict[str, Any], theta: float) -> Rope:
    """A scaling from a config.json and its rotary settings (rope_parameters, or rope_scaling
    before transformers 5).

    theta: where the settings name none. KeyError names what is missing; UserError what is not
    computed.
    """
    _refuse_nested(settings)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    theta = settings.get("rope_theta") or theta
    share = settings.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise UserError(
            f"partial_rotary_factor is {share}; whole heads are turned here, which is 1.0"
        )
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Linear(theta, settings["factor"])
    longest: int = hf.get("max_position_embeddings") or 0
    name = "original_max_position_embeddings"
    original: int = hf.get(name) or settings.get(name) or longest
    if kind in ("llama3", "yarn") and not original:
        raise KeyError(name)
    if kind == "llama3":
        return Llama3(
            theta,
            settings["factor"],
            settings["low_freq_factor"],
            settings["high_freq_factor"],
            original,
        )
    if kind == "yarn":
        return _yarn(settings, theta, original, longest or original)
    raise UserError(
        f"rope type {kind!r} is not computed here; default, linear, llama3 and yarn are"
    )


def _yarn(settings: dict[str, Any], theta: float, original: int, longest: int) -> Yarn:
    if settings.get("mscale") or settings.get("mscale_all_dim"):
        raise UserError(
            f"mscale is {settings.get('mscale')}; of yarn only attention_factor is computed here"
        )
    return Yarn(
        theta,
        settings.get("factor") or longest / original,
        original,
        settings.get("beta_fast") or 32.0,
        settings.get("beta_slow") or 1.0,
        settings.get("attention_factor"),
        settings.get("truncate", True),
    )
