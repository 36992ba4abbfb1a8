"""On-policy distillation (Lu and Thinking Machines Lab, 2025)."""

from dataclasses import field

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses.gspo import GSPO, GSPOToken
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.objective import Objective
from jaxgrpo.losses.pytree import frozen_pytree
from jaxgrpo.losses.wrapper import Wrapper


@frozen_pytree
class Distilled(Wrapper):
    """An objective that also learns from the reference, as a teacher, at each token.

    The student writes, and the teacher judges every token: the advantage is the negative reverse KL
    of the token that was sampled, without what follows it (a discount of 0).

        A_it = reward_weight * the objective's - weight * log(sampler_t / reference_t)

    The loss and the token weights are the objective's own. GSPO would give every token its row's
    mean, and is refused; GSPOToken takes an advantage of each token. In a run the config's
    `reference` names the teacher's folder.

    Sources: Lu and Thinking Machines Lab, "On-Policy Distillation", 2025; the reverse KL on the
    student's own samples: GKD, arXiv 2306.13649

    objective: the objective whose loss and advantages are taken
    weight: of the log-ratio to the reference
    reward_weight: of the objective's advantages (0: distillation alone)
    """

    objective: Objective
    weight: Coefficient = field(default=1.0, metadata={"at_least": 0})
    reward_weight: Coefficient = field(default=1.0, metadata={"at_least": 0})

    def __post_init__(self) -> None:
        """Raises ValueError for an objective without a gradient of each token."""
        if isinstance(self.objective, GSPO) and not isinstance(
            self.objective, GSPOToken
        ):
            raise ValueError(
                "distillation has an advantage for each token, of which GSPO would take the mean "
                "over a completion: take GSPOToken"
            )

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G T"]:
        """Returns the objective's advantages, and from each token's its log-ratio subtracted.

        A completion without a reward has none: as everywhere, it counts nothing.

        Raises ValueError without mask and kl.
        """
        if mask is None or kl is None:
            raise ValueError(
                "distillation takes each token's log-ratio to the reference: advantages() needs "
                "the completions' mask and kl"
            )
        inner = self.objective.advantages(rewards, mask, kl)
        if inner.ndim == 2:
            inner = inner[..., None]  # [P, G, 1]
        counts = mask & ~jnp.isnan(rewards)[..., None]  # [P, G, T]
        return jnp.where(counts, self.reward_weight * inner - self.weight * kl, 0.0)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the objective's loss."""
        return self.objective.token_loss(inputs)
