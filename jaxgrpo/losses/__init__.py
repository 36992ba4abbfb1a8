"""Losses as pure functions of arrays; nothing but JAX is imported. See `objective.py` for the shape they share."""

from jaxgrpo.losses import advantages, terms, weights
from jaxgrpo.losses.grpo import GRPO
from jaxgrpo.losses.objective import Objective, TokenInputs, batch_loss

__all__ = ["GRPO", "Objective", "TokenInputs", "advantages", "batch_loss", "terms", "weights"]
