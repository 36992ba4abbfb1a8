"""Losses as pure functions of arrays; nothing but JAX is imported. See `objective.py` for the shape they share."""

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.cispo import CISPO
from jaxgrpo.losses.dapo import DAPO
from jaxgrpo.losses.grpo import GRPO, DrGRPO
from jaxgrpo.losses.gspo import GSPO, GSPOToken
from jaxgrpo.losses.info import Info, merge, report
from jaxgrpo.losses.objective import Objective, TokenInputs, batch_loss, frozen_pytree
from jaxgrpo.losses.ppo import PPO
from jaxgrpo.losses.reinforce import ReinforcePlusPlus, ReinforcePlusPlusBaseline
from jaxgrpo.losses.rloo import RLOO
from jaxgrpo.losses.sft import Supervised
from jaxgrpo.losses.wrappers import Corrected, Regularised

__all__ = [
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "PPO",
    "RLOO",
    "Corrected",
    "DrGRPO",
    "GSPOToken",
    "Info",
    "Objective",
    "Regularised",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "Supervised",
    "TokenInputs",
    "advantages",
    "batch_loss",
    "frozen_pytree",
    "merge",
    "report",
    "terms",
    "weights",
]
