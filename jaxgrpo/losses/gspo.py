"""GSPO and GSPO-token (arXiv 2507.18071)."""

from jaxtyping import Array, Bool, Float

from jaxgrpo.losses import advantages, terms, token_weights
from jaxgrpo.losses.objective import Coefficient, TokenInputs, TokenMetrics, frozen_pytree


@frozen_pytree
class GSPO:
    """Group sequence policy optimisation (arXiv 2507.18071, equation 5): the ratio, and its clip, of whole completions.

        A_i = (r_i - mean(r)) / std(r);  s_i = exp(1/|o_i| sum_t log r_t)
        loss = 1/rows sum_i max(-s_i A_i, -clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

    A whole completion is clipped or not; the reported shares count its tokens. Rows must hold one completion each, whole.

    clip_low: s_i is clipped from below at 1 - clip_low; the paper's experiments take 3e-4
    clip_high: s_i is clipped from above at 1 + clip_high; the paper's experiments take 4e-4
    """

    clip_low: Coefficient = 3e-4
    clip_high: Coefficient = 4e-4

    def advantages(self, rewards: Float[Array, "P G"], mask=None, kl=None) -> Float[Array, "P G"]:
        return advantages.standardised(rewards)

    def weights(self, mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
        return token_weights.per_sequence(mask)

    def token_loss(self, inputs: TokenInputs) -> tuple[Float[Array, "B T"], TokenMetrics]:
        log_ratio = self._log_ratio(inputs)
        figures = terms.clipped(log_ratio, inputs.advantages, self.clip_low, self.clip_high)
        return terms.clipped_surrogate(
            log_ratio, inputs.advantages, self.clip_low, self.clip_high
        ), figures

    def _log_ratio(self, inputs: TokenInputs) -> Float[Array, "B T"]:
        return terms.sequence_log_ratio(inputs.logprobs - inputs.old_logprobs, inputs.mask)


@frozen_pytree
class GSPOToken(GSPO):
    """GSPO-token (arXiv 2507.18071, equation 13): GSPO's ratio in value, with a gradient for each token, so that advantages
    may differ within a completion. Where they do not, loss and gradient are GSPO's.

        s_it = sg[s_i] * policy_t / sg[policy_t]
        loss = 1/rows sum_i 1/|o_i| sum_t max(-s_it A_t, -clip(s_it, 1 - clip_low, 1 + clip_high) A_t)

    clip_low: s_i is clipped from below at 1 - clip_low
    clip_high: s_i is clipped from above at 1 + clip_high
    """

    def _log_ratio(self, inputs: TokenInputs) -> Float[Array, "B T"]:
        log_ratio = inputs.logprobs - inputs.old_logprobs
        return terms.token_of_sequence_log_ratio(log_ratio, inputs.logprobs, inputs.mask)
