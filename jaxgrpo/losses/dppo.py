"""DPPO (arXiv 2602.04879)."""

from dataclasses import field

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree

THRESHOLDS = {"tv": 0.15, "kl": 0.05}
"""The authors' thresholds by divergence."""


@frozen_pytree
class DPPO(GroupRelative):
    """Divergence proximal policy optimisation (arXiv 2602.04879), with its binary divergences.

    In the place of the ratio's clip, a token loses its gradient where the policy moves on away from
    the sampler's and its probability has moved too far already. Rare tokens, whose ratio is soon
    large, keep their gradient; frequent ones lose it sooner.

        A_i = r_i - mean(r)
        D_t = |sampler_t - policy_t|, or KL of the token against all others ("kl")
        M_t = 0 where D_t > threshold and (A_i > 0 and r_t > 1, or A_i < 0 and r_t < 1), else 1
        loss = -1/(rows * budget) sum_i sum_t M_t r_t A_i

    Its anchor is the policy that sampled; with batch.old_logprobs "trainer" it is the trainer's
    own, with which the paper's runs collapse. The paper's top-K divergences need more of the
    distribution than the sampled token, and are not here.

    threshold: of D; None: the authors' value, 0.15 for "tv" and 0.05 for "kl"
    divergence: "tv", total variation, or "kl"
    budget: tokens, a constant: the most that may be generated (1: the paper's sum over tokens)
    """

    threshold: Coefficient | None = field(default=None, metadata={"above": 0})
    divergence: str = field(
        default="tv", metadata={"static": True, "one_of": terms.BINARY_DIVERGENCES}
    )
    budget: Coefficient = field(default=1.0, metadata={"above": 0})

    def __post_init__(self) -> None:
        """Raises ValueError for a divergence that there is not."""
        terms.check_binary_divergence(self.divergence)

    def advantages(
        self,
        rewards: Float[Array, "P G"],
        mask: Bool[Array, "P G T"] | None = None,
        kl: Float[Array, "P G T"] | None = None,
    ) -> Float[Array, "P G"]:
        """Returns r - mean(r) over each group."""
        return advantages.centred(rewards)

    def token_weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        """Returns 1 / (rows * budget) at each token."""
        return token_weights.per_budget(mask, self.budget)

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns -ratio * A, 0 where the token has moved too far, and the tokens that have."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        divergence = terms.binary_divergence(
            self.divergence, inputs.logprobs, inputs.old_logprobs
        )
        threshold = self.threshold
        if threshold is None:
            threshold = THRESHOLDS[self.divergence]
        too_far = divergence > threshold
        # Only a token that goes on away from the anchor is stopped: one may always come back.
        high = too_far & (inputs.advantages > 0) & (log_ratio > 0)
        low = too_far & (inputs.advantages < 0) & (log_ratio < 0)
        metrics = {
            "policy/clipped_low": low.astype(jnp.float32),
            "policy/clipped_high": high.astype(jnp.float32),
        }
        loss = -terms.ratio(log_ratio) * inputs.advantages
        return jnp.where(low | high, 0.0, loss), metrics
