"""GSPO and GSPO-token (arXiv 2507.18071)."""

from jaxtyping import Array, Float

from jaxgrpo.losses import terms
from jaxgrpo.losses.group_relative import GroupRelative
from jaxgrpo.losses.inputs import Coefficient, TokenInputs, TokenLoss
from jaxgrpo.losses.pytree import frozen_pytree


@frozen_pytree
class GSPO(GroupRelative):
    """Group sequence policy optimisation (arXiv 2507.18071, equation 5).

    The ratio, and its clip, are those of whole completions.

        A_i = (r_i - mean(r)) / std(r)
        s_i = exp(1/|o_i| sum_t log r_t)
        loss = 1/rows sum_i max(-s_i A_i, -clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

    A completion is clipped as a whole; the logged clip fractions count its tokens. Each row must
    hold exactly one completion.

    clip_low: s_i is clipped from below at 1 - clip_low; the paper's experiments take 3e-4
    clip_high: s_i is clipped from above at 1 + clip_high; the paper's experiments take 4e-4
    """

    clip_low: Coefficient = 3e-4
    clip_high: Coefficient = 4e-4

    def token_loss(self, inputs: TokenInputs) -> TokenLoss:
        """Returns the clipped surrogate of the completion's ratio, at each of its tokens."""
        # The same value at each token of a row, whose token weights are 1 / (rows * |o_i|): their
        # weighted sum is the paper's 1/rows of the completion's loss.
        log_ratio = self._log_ratio(inputs)
        clip_range = (self.clip_low, self.clip_high)
        metrics = terms.clip_metrics(log_ratio, inputs.advantages, *clip_range)
        loss = terms.clipped_surrogate(log_ratio, inputs.advantages, *clip_range)
        return loss, metrics

    def _log_ratio(self, inputs: TokenInputs) -> Float[Array, "B T"]:
        """Computes log s_i at each token of row i."""
        return terms.sequence_log_ratio(
            inputs.logprobs - inputs.old_logprobs, inputs.mask
        )


@frozen_pytree
class GSPOToken(GSPO):
    """GSPO-token (arXiv 2507.18071, equation 13).

    The ratio has GSPO's value and a gradient for each token, so that advantages may differ within
    a completion. Where they do not, loss and gradient are GSPO's.

        s_it = sg[s_i] * policy_t / sg[policy_t]
        loss = 1/rows sum_i 1/|o_i| sum_t
                   max(-s_it A_t, -clip(s_it, 1 - clip_low, 1 + clip_high) A_t)

    clip_low: s_i is clipped from below at 1 - clip_low
    clip_high: s_i is clipped from above at 1 + clip_high
    """

    def _log_ratio(self, inputs: TokenInputs) -> Float[Array, "B T"]:
        """Computes log s_it."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        return terms.sequence_log_ratio_with_token_gradient(
            log_ratio, inputs.logprobs, inputs.mask
        )
