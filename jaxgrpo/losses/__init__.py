"""Losses as pure functions of arrays; they import JAX and nothing else.

`objective.py` has the interface that all of them share, `grpo.py` an example.
"""

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.cispo import CISPO
from jaxgrpo.losses.dapo import DAPO
from jaxgrpo.losses.distilled import Distilled
from jaxgrpo.losses.dppo import DPPO
from jaxgrpo.losses.entropy import EntropyTargeted, TopEntropy
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.grpo import GRPO, DrGRPO
from jaxgrpo.losses.gspo import GSPO, GSPOToken
from jaxgrpo.losses.info import LossInfo, merge, report
from jaxgrpo.losses.inputs import TokenInputs
from jaxgrpo.losses.maxrl import MaxRL
from jaxgrpo.losses.moving import after_step, moving_values, with_moving_values
from jaxgrpo.losses.objective import Objective, batch_loss
from jaxgrpo.losses.ppo import PPO
from jaxgrpo.losses.pytree import frozen_pytree
from jaxgrpo.losses.reinforce import ReinforcePlusPlus, ReinforcePlusPlusBaseline
from jaxgrpo.losses.rloo import RLOO
from jaxgrpo.losses.scale_rl import ScaleRL
from jaxgrpo.losses.sft import Supervised
from jaxgrpo.losses.wrappers import (
    Corrected,
    OffPolicyMasked,
    Regularised,
    TrustRegionMasked,
)

__all__ = [
    "CISPO",
    "DAPO",
    "DPPO",
    "GRPO",
    "GSPO",
    "PPO",
    "RLOO",
    "Corrected",
    "Distilled",
    "DrGRPO",
    "EntropyTargeted",
    "GSPOToken",
    "GroupRelative",
    "LossInfo",
    "MaxRL",
    "Objective",
    "OffPolicyMasked",
    "Regularised",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "ScaleRL",
    "Supervised",
    "TokenInputs",
    "TopEntropy",
    "TrustRegionMasked",
    "advantages",
    "after_step",
    "batch_loss",
    "frozen_pytree",
    "merge",
    "moving_values",
    "report",
    "terms",
    "token_weights",
    "with_moving_values",
]
