"""Rotary position embeddings (arXiv 2104.09864): frequencies, and scalings for longer contexts.

A scaling is a frozen dataclass. Its `frequencies` are computed in float64 and rounded once; its
`magnitude` is the factor of cosine and sine.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxgrpo.errors import UserError
from jaxgrpo.models.hf_config import HfConfig

DEFAULT_THETA = 10_000.0
"""The rotary base where config.json names none."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions without scaling.

    theta: the rotary base; pair i of n turns by theta ** (-i / n) radians a token
    """

    theta: float = DEFAULT_THETA

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        """Returns how far each pair of a head's numbers turns, in radians a token."""
        return self._unscaled(head_width).astype(np.float32)

    def magnitude(self) -> float:
        """Returns the factor by which rotated queries and keys grow."""
        return 1.0

    def max_positions(self, positions: int) -> int:
        """Returns how many positions the model has after scaling.

        positions: config.json's max_position_embeddings, counted before or after scaling as the
            family does
        """
        return positions

    def _unscaled(self, head_width: int) -> Float[np.ndarray, "half"]:
        half = head_width // 2
        return self.theta ** (-np.arange(half) / half)


@dataclass(frozen=True)
class Linear(Rope):
    """Positions divided by a factor (arXiv 2306.15595)."""

    factor: float = 1.0

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        """Returns the unscaled frequencies divided by the factor."""
        return (self._unscaled(head_width) / self.factor).astype(np.float32)

    def max_positions(self, positions: int) -> int:
        """Returns factor times the positions: config.json counts them before scaling."""
        return int(positions * self.factor)


@dataclass(frozen=True)
class Llama3(Rope):
    """Scaling of Llama 3.1 (arXiv 2407.21783): slow pairs are divided by a factor, fast ones kept.

    low_freq_factor: pairs that turn less often within the original context are divided in full
    high_freq_factor: pairs that turn more often are kept; those between are interpolated
    original_positions: length of the original context, in tokens
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        """Returns the frequencies, interpolated by how often a pair turns in the context."""
        unscaled = self._unscaled(head_width)
        # How often each pair turns within the original context.
        num_turns = self.original_positions * unscaled / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        kept_share = np.clip((num_turns - self.low_freq_factor) / width, 0.0, 1.0)
        # Pairs that turn rarely have not seen a full turn in training: they are slowed down.
        scaled = kept_share * unscaled + (1 - kept_share) * unscaled / self.factor
        return scaled.astype(np.float32)

    def max_positions(self, positions: int) -> int:
        """Returns config.json's positions if they exceed the original context, else scaled ones."""
        # More than the original context is the scaled number already. It may be less than
        # original * factor: Llama 3.2 says 131,072, with 8,192 and 32.
        if positions > self.original_positions:
            return positions
        return int(self.original_positions * self.factor)


@dataclass(frozen=True)
class Yarn(Rope):
    """YaRN (arXiv 2309.00071): slow pairs are divided by a factor, attention is sharpened.

    original_positions: length of the original context, in tokens
    beta_fast: pairs that turn more often within the original context are kept
    beta_slow: pairs that turn less often are divided in full; those between are interpolated
    attention_factor: the magnitude; None: 1 + 0.1 ln(factor)
    truncate: whether the ends of the interpolation are rounded to whole pairs
    """

    factor: float = 1.0
    original_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def frequencies(self, head_width: int) -> Float[np.ndarray, "half"]:
        """Returns the frequencies, interpolated linearly over the pairs' numbers."""
        unscaled = self._unscaled(head_width)
        # Pairs are sorted from fast to slow: `first` is where the interpolation begins.
        first = self._pair_with_turns(self.beta_fast, head_width)
        last = self._pair_with_turns(self.beta_slow, head_width)
        if self.truncate:
            first = math.floor(first)
            last = math.ceil(last)
        # As in transformers, the upper bound is the head's width and not its number of pairs.
        first = max(first, 0)
        last = min(last, head_width - 1)
        # As in transformers, a width of 0 is avoided.
        width = (last - first) or 0.001
        scaled_share = np.clip((np.arange(len(unscaled)) - first) / width, 0.0, 1.0)
        scaled = scaled_share * unscaled / self.factor + (1 - scaled_share) * unscaled
        return scaled.astype(np.float32)

    def magnitude(self) -> float:
        """Returns the attention factor, by default 1 + 0.1 ln(factor)."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor > 1:
            return 0.1 * math.log(self.factor) + 1.0
        return 1.0

    def max_positions(self, positions: int) -> int:
        """Returns the larger of config.json's positions and the scaled original context."""
        return max(positions, int(self.original_positions * self.factor))

    def _pair_with_turns(self, num_turns: float, head_width: int) -> float:
        """Returns the (fractional) number of the pair that turns so often in the context."""
        tokens_per_radian = self.original_positions / (num_turns * 2 * math.pi)
        return head_width * math.log(tokens_per_radian) / (2 * math.log(self.theta))


def from_hf(hf: HfConfig) -> Rope:
    """Returns the rotary positions of a config.json whose layers all have the same.

    Raises as `from_settings`, and UserError if rope_scaling hides what rope_parameters says.
    """
    return from_settings(hf, _read_settings(hf), hf.get("rope_theta") or DEFAULT_THETA)


def _read_settings(hf: HfConfig) -> HfConfig:
    """Returns the rotary settings of a config.json: its rope_parameters or its rope_scaling.

    transformers 5 gathers all settings in rope_parameters. A rope_scaling, as older checkpoints
    have it, replaces all of them.

    Raises UserError where that would lose what rope_parameters alone says.
    """
    parameters = hf.get("rope_parameters") or {}
    scaling = hf.get("rope_scaling") or {}
    if not (parameters and scaling):
        return parameters or scaling

    # Both are there: a value of parameters is lost unless what replaces it is the same.
    for name, default in (
        ("rope_theta", DEFAULT_THETA),
        ("partial_rotary_factor", 1.0),
    ):
        lost = parameters.get(name)
        used = scaling.get(name) or hf.get(name) or default
        if lost not in (None, used):
            raise UserError(
                f"rope_scaling stands beside rope_parameters and takes its place, so that {name} "
                f"is {used:g} and no longer {lost:g}: "
                "move what rope_scaling says into rope_parameters, and remove it"
            )
    _refuse_nested(parameters)
    return scaling


def _refuse_nested(settings: HfConfig) -> None:
    """Raises UserError if the settings differ between types of layers."""
    nested = [name for name, value in settings.items() if isinstance(value, dict)]
    if nested:
        raise UserError(
            f"rope_parameters has {nested[0]!r} for itself; "
            "for this family all layers have the same"
        )


def from_settings(hf: HfConfig, settings: HfConfig, default_theta: float) -> Rope:
    """Returns the rotary positions that the settings within a config.json describe.

    hf: the whole config.json
    settings: its rope_parameters, or rope_scaling as before transformers 5
    default_theta: the rotary base where the settings name none

    Raises KeyError naming what is missing, and UserError naming what is not computed.
    """
    _refuse_nested(settings)
    # `type` is the spelling of older checkpoints.
    rope_type = settings.get("rope_type") or settings.get("type") or "default"
    theta = settings.get("rope_theta") or default_theta
    rotary_share = (
        settings.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1.0
    )
    if rotary_share != 1.0:
        raise UserError(
            f"partial_rotary_factor is {rotary_share}; whole heads are turned here, which is 1.0"
        )
    if rope_type == "default":
        return Rope(theta)
    if rope_type == "linear":
        return Linear(theta, settings["factor"])
    if rope_type == "llama3":
        original_positions = _original_positions(hf, settings)
        return Llama3(
            theta,
            factor=settings["factor"],
            low_freq_factor=settings["low_freq_factor"],
            high_freq_factor=settings["high_freq_factor"],
            original_positions=original_positions,
        )
    if rope_type == "yarn":
        return _read_yarn(hf, settings, theta)
    raise UserError(
        f"rope type {rope_type!r} is not computed here; default, linear, llama3 and yarn are"
    )


def _original_positions(hf: HfConfig, settings: HfConfig) -> int:
    """Returns the length of the context before scaling; KeyError if config.json does not say."""
    name = "original_max_position_embeddings"
    positions = hf.get(name) or settings.get(name) or hf.get("max_position_embeddings")
    if not positions:
        raise KeyError(name)
    return positions


def _read_yarn(hf: HfConfig, settings: HfConfig, theta: float) -> Yarn:
    """Returns YaRN as the settings describe it. Raises as `from_settings`."""
    original_positions = _original_positions(hf, settings)
    # DeepSeek's variant computes the magnitude from mscale and mscale_all_dim.
    if settings.get("mscale") or settings.get("mscale_all_dim"):
        raise UserError(
            f"mscale is {settings.get('mscale')}; of yarn only attention_factor is computed here"
        )
    # Without a factor, it is how many times longer the scaled context is.
    scaled_positions = hf.get("max_position_embeddings") or original_positions
    return Yarn(
        theta,
        factor=settings.get("factor") or scaled_positions / original_positions,
        original_positions=original_positions,
        beta_fast=settings.get("beta_fast") or 32.0,
        beta_slow=settings.get("beta_slow") or 1.0,
        attention_factor=settings.get("attention_factor"),
        truncate=settings.get("truncate", True),
    )
