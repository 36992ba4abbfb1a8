"""GRPO (arXiv 2402.03300)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GRPO:
    """placeholder while the house is being built"""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.04
