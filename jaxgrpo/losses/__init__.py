"""Losses as pure functions of arrays; they import JAX and nothing else.

`objective.py` has the interface that all of them share, `grpo.py` an example.
"""

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.cispo import CISPO
from jaxgrpo.losses.dapo import DAPO
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.grpo import GRPO, DrGRPO
from jaxgrpo.losses.gspo import GSPO, GSPOToken
from jaxgrpo.losses.info import LossInfo, merge, report
from jaxgrpo.losses.inputs import TokenInputs
from jaxgrpo.losses.objective import Objective, batch_loss
from jaxgrpo.losses.ppo import PPO
from jaxgrpo.losses.pytree import frozen_pytree
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
    "GroupRelative",
    "LossInfo",
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
    "token_weights",
]
