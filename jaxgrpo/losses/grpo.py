"""GRPO (arXiv 2402.03300)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, weights
from jaxgrpo.losses.objective import Coefficient, TokenInputs


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (arXiv 2402.03300, equation 3).

        A_i = (r_i - mean(r)) / std(r)
        loss = 1/rows sum_i 1/|o_i| sum_t [ max(-r_t A_i, -clip(r_t, 1 - clip_low, 1 + clip_high) A_i) + kl * k3_t ]

    r_t is the ratio of the policy's probability of token t to that of the policy that sampled it; k3_t estimates
    KL(policy || reference).

    clip_low: the ratio is clipped from below at 1 - clip_low; the paper's epsilon
    clip_high: the ratio is clipped from above at 1 + clip_high; the paper's epsilon, too
    kl: weight of the KL to the reference; the paper's beta
    """

    clip_low: Coefficient = 0.2
    clip_high: Coefficient = 0.2
    kl: Coefficient = 0.04

    def advantages(self, rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
        return advantages.standardised(rewards)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return weights.per_sequence(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
        log_ratio = inputs.logprobs - inputs.old_logprobs
        surrogate = terms.clipped_surrogate(log_ratio, inputs.advantages, self.clip_low, self.clip_high)
        kl = terms.kl_k3(inputs.logprobs, inputs.ref_logprobs)
        ratio = jnp.exp(log_ratio)
        gain = inputs.advantages[:, None]
        clipped = ((ratio < 1 - self.clip_low) & (gain < 0)) | ((ratio > 1 + self.clip_high) & (gain > 0))
        return surrogate + self.kl * kl, {"policy/kl": kl, "policy/clipped": clipped.astype(jnp.float32)}
